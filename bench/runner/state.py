"""The state of a process and of what it holds, so that what a plugin leaves behind is seen.

A worker runs task after task. What one leaves in the process would be part of the next one's
result: a default dtype, a patched function, a plugin's own cache. ``ProcessState`` is compared
after each task; a process that is not as it was is replaced.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import signal
import sys
import threading
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.plugins.code_hash import OURS
from bench.plugins.discovery import plugin_modules

PATCHABLE = (
    "builtins", "hashlib", "json", "math", "os", "pathlib", "random", "time",
    "numpy", "numpy.linalg", "numpy.random", "pandas", "safetensors.torch",
    "torch", "torch.autograd", "torch.cuda", "torch.func", "torch.linalg", "torch.nn",
    "torch.nn.functional", "torch.nn.init", "torch.optim", "torch.random", "torch.special",
)  # fmt: skip
"""Modules whose functions and classes are compared by identity, with those classes' own methods."""

DEPTH = 12
"""How deep the values of a plugin's module are looked at."""


def checksum(tensors: Iterable[Tensor]) -> int:
    """Return a CRC-32 of the bytes of ``tensors``, in order: against accidents, not forgers."""
    found = 0
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().flatten()
        found = zlib.crc32(plain.view(torch.uint8).numpy().data, found)
    return found


class Peak:
    """What this process holds at most, from when it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with contextlib.suppress(OSError):  # where the system has no such file, it does not say
            Path("/proc/self/clear_refs").write_text("5")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def memory(self) -> int:
        """Return bytes of memory; 0 where the system does not say."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0

    def gpu(self) -> float:
        """Return the share of the GPU's memory."""
        if self.device.type != "cuda":
            return 0.0
        total = torch.cuda.get_device_properties(self.device).total_memory
        return torch.cuda.max_memory_reserved(self.device) / total


class ProcessState:
    """The state of this process when it was made: settings, functions, modules of plugins."""

    def __init__(self) -> None:
        self._names = list(_namespaces())
        self._settings = settings()
        self._modules = _modules()

    def admit(self) -> None:
        """Take as it is what has been imported for a task that has not run yet."""
        self._settings["import path"] = list(sys.path)
        self._modules |= _modules(besides=self._modules)

    def changes(self) -> list[str]:
        """Return what differs now, in words; empty where nothing does."""
        now = settings()
        found = [
            _differing(name, value, now[name])
            for name, value in self._settings.items()
            if now[name] != value
        ]
        found += self.patched()
        loaded, before = _modules(), self._modules
        changed = sorted(name for name in loaded if loaded[name] != before.get(name))
        return found + [f"the module {name}" for name in changed]

    def patched(self) -> list[str]:
        """Return which functions and classes are other objects now: those of a module, a class."""
        return sorted({what for what, *names in self._names if not _same(*names)})


def _differing(name: str, before: Any, now: Any) -> str:
    """Return ``name``, and of a mapping with names the entries that differ."""
    if not isinstance(before, Mapping) or not all(isinstance(key, str) for key in before):
        return name
    entries = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return f"{name} ({', '.join(entries)})"


def settings() -> dict[str, Any]:
    """Return the settings of torch, numpy, Python and the process that a plugin can leave."""
    return {**_torch_settings(), **_python_settings(), **_process_settings()}


def _torch_settings() -> dict[str, Any]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    kinds = ("cpu", "cuda")
    hooks = vars(nn.modules.module) | vars(sys.modules["torch.optim.optimizer"])
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds],
        "threads of torch": torch.get_num_threads(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        ),
        "denormal numbers": sys.float_info.min * float(np.float64(0.5)) != 0,
        "precision of matrix products": (
            torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32, cudnn.allow_tf32,
            cuda.matmul.allow_fp16_reduced_precision_reduction,
            cuda.matmul.allow_bf16_reduced_precision_reduction,
        ),
        "backends of torch": (
            torch.backends.mkldnn.enabled, cudnn.enabled, cudnn.benchmark, cudnn.deterministic,
            *(getattr(cuda, f"{how}_sdp_enabled")() for how in ("flash", "math", "mem_efficient")),
        ),
        "anomaly mode": torch.is_anomaly_enabled(),
        "function modes": torch._C._len_torch_function_stack(),  # noqa: SLF001 (no other way)
        "global hooks": {
            name: tuple(map(id, value.values())) if isinstance(value, Mapping) else value
            for name, value in hooks.items()
            if name.startswith("_global_")
        },
    }  # fmt: skip


def _python_settings() -> dict[str, Any]:
    return {
        "floating-point errors of numpy": (np.geterr(), np.geterrcall()),
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "trace or profile function": (sys.gettrace(), sys.getprofile()),
        "import path": list(sys.path),
        "standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "garbage collector": (gc.isenabled(), gc.get_threshold()),
        # But for the one that progress bars of tqdm share, which touches nothing else.
        "threads": sum(type(t).__name__ != "TMonitor" for t in threading.enumerate()),
        "locale": locale.setlocale(locale.LC_ALL),
    }


def _process_settings() -> dict[str, Any]:
    found: dict[str, Any] = {
        "environment": dict(os.environ),
        "current folder": _folder(),
        "umask": _umask(),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
    }
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
        found["resource limits"] = [resource.getrlimit(getattr(resource, n)) for n in names]
    if hasattr(os, "sched_getaffinity"):
        found["processors"] = os.sched_getaffinity(0)
    if hasattr(signal, "getitimer"):
        found["timer"] = signal.getitimer(signal.ITIMER_REAL)[1]
    return found


def _folder() -> str | None:
    try:
        return str(os.getcwd())  # noqa: PTH109 (a path object is compared no better)
    except FileNotFoundError:
        return None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _namespaces() -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """Yield a description, an object, its functions and classes, and whether it is a class."""
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if name not in PATCHABLE and name.partition(".")[0] not in OURS:
            continue
        yield f"functions of {name}", module, _callables(vars(module)), False
        for cls in vars(module).values():
            if isinstance(cls, type) and id(cls) not in seen and cls.__flags__ & 512:  # on the heap
                seen.add(id(cls))
                yield f"{cls.__module__}.{cls.__qualname__}", cls, _callables(vars(cls)), True


def _callables(names: Mapping[str, Any]) -> dict[str, Any]:
    kept = (classmethod, staticmethod, property)
    return {
        key: value for key, value in names.items() if callable(value) or isinstance(value, kept)
    }


def _same(item: Any, before: Mapping[str, Any], is_class: bool) -> bool:
    # A name that is new in a class may hide its base's; in a module it hides nothing.
    now = vars(item)
    if any(now.get(name) is not value for name, value in before.items()):
        return False
    return not is_class or len(_callables(now)) == len(before)


def _modules(besides: Container[str] = ()) -> dict[str, Any]:
    """Return what the loaded modules of plugins hold, by name, but for those ``besides``."""
    found = {}
    for name in plugin_modules():
        if name in besides:
            continue
        own = {k: v for k, v in vars(sys.modules[name]).items() if not k.startswith("__")}
        found[name] = _content(own, name, {})
    return found


def _content(  # noqa: PLR0911 (one return a kind of value)
    value: Any, module: str, seen: dict[int, tuple[int, Any]], depth: int = 0
) -> Any:
    """Return something to compare that differs where ``value`` was changed, by whatever means."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if id(value) in seen:
        return ("seen", seen[id(value)][0])
    if depth > DEPTH or isinstance(value, ModuleType | CodeType | BuiltinFunctionType):
        return id(value)
    seen[id(value)] = (len(seen), value)  # kept, so that nothing else gets its id meanwhile

    def inside(item: Any) -> Any:
        return _content(item, module, seen, depth + 1)

    if isinstance(value, Tensor):
        return (id(value), checksum([value]))
    if isinstance(value, torch.Generator):
        return checksum([value.get_state()])
    if isinstance(value, Mapping):
        return [(inside(key), inside(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [inside(item) for item in value]
    if hasattr(value, "cache_info"):
        return (id(value), value.cache_info())
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _full(cell)]
        return (id(value), inside([value.__defaults__, value.__kwdefaults__, vars(value), cells]))
    if isinstance(value, MethodType | classmethod | staticmethod):
        return (id(value.__func__), inside(value.__func__))
    if isinstance(value, type):
        return (id(value), inside(dict(vars(value))) if value.__module__ == module else None)
    return (type(value).__qualname__, *_state(value, inside))


def _state(value: Any, inside: Any) -> tuple[Any, ...]:
    names = getattr(value, "__dict__", None)
    reduce: Any = type(value).__reduce__
    if names and reduce is object.__reduce__:
        return (id(value), inside(names))
    try:
        told = value.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 (a lock, a handle, an iterator: which one it is must do)
        return (id(value), inside(names))
    # What would make a copy of it: a constructor, its arguments, a state.
    return (told,) if isinstance(told, str) else (id(told[0]), inside(list(told[1:3])))


def _full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
