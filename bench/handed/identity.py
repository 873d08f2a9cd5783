"""What a module is that was handed over in memory: all that its answers may hang on, as a hash."""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import importlib
import importlib.util
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.plugins.unpickle import is_own, is_own_file

LEFT_OUT = {
    *("training", "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"),
}
"""Attributes that say nothing: a model is asked in evaluation mode, whatever it comes in."""


def identity(model: nn.Module) -> str:
    """Return a hash of the structure, the code, the weights and all attributes of ``model``.

    With it stand and fall the results of an earlier run. Pickles of one module may differ between
    two processes; this does not. Of code it takes what Python made of it, with the functions,
    classes and values that it mentions, in other modules too, where they are their user's and no
    library's. Of an object of a library it takes what a copy of it would be made of, and where
    that cannot be had what it shows of itself.
    """
    found = hashlib.sha256()
    seen: dict[int, tuple[int, object]] = {}
    try:
        for part in _parts([_shown(model), model.state_dict(), model], seen):
            found.update(part)
            found.update(b"\0")
    except RecursionError:  # what cannot be followed to its end is no earlier run's
        found.update(secrets.token_bytes())
    return found.hexdigest()[:16]


def _parts(value: Any, seen: dict[int, tuple[int, object]]) -> Iterator[bytes]:
    """Yield ``value`` and all that hangs on it; ``seen``: by id, and held so that no id returns."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    if not isinstance(value, tuple | CodeType):  # of these Python makes one or several, as it likes
        if id(value) in seen:
            yield f"again {seen[id(value)][0]}".encode()
            return
        seen[id(value)] = (len(seen), value)
    yield type(value).__qualname__.encode()
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.tolist()  # its bytes are addresses
    if isinstance(value, torch.Tensor | np.ndarray):
        yield from _numbers(value)
        return
    for part in _of(value):
        yield from _parts(part, seen)


def _numbers(value: torch.Tensor | np.ndarray[Any, Any]) -> Iterator[bytes]:
    if isinstance(value, np.ndarray) and value.dtype.names:  # what lies between is left over
        for name in value.dtype.names:
            yield name.encode()
            yield from _numbers(value[name])
    elif isinstance(value, torch.Tensor):
        if value.is_sparse or value.is_quantized:
            value = value.to_dense() if value.is_sparse else value.dequantize()
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()


@functools.singledispatch
def _of(value: Any) -> Iterable[Any]:
    """Return what makes ``value`` out, in an order that is the same in every process."""
    if is_own(type(value).__module__):
        return [type(value), _attributes(value)]
    # What wraps a function shows nothing of it: a property, a cached one, a decorated method.
    inner = [getattr(value, name, None) for name in ("__wrapped__", "func", "fget", "fset")]
    return [type(value).__module__, _shown(value), *inner, *_copied(value)]


def _copied(value: Any) -> Iterable[Any]:
    """Return what a copy of ``value`` would be made of; nothing where it cannot be copied."""
    try:
        told = value.__reduce_ex__(4)
    except Exception:  # noqa: BLE001 (a lock, a handle: it cannot be handed over either)
        return []
    if isinstance(told, str):
        return [told]
    made, arguments, state, *items = (*told, None, None, None)[:5]
    return [made, arguments, state, *(None if item is None else list(item) for item in items)]


@_of.register
def _(value: torch.jit.ScriptModule) -> Iterable[Any]:
    # Its code is its own; what Python holds of it are handles.
    parts = [(name, getattr(one, "code", "")) for name, one in value.named_modules()]
    return [value.original_name, parts, dict(value.state_dict())]


@_of.register
def _(value: nn.Module) -> Iterable[Any]:
    compiled = getattr(value, "_orig_mod", None)
    if isinstance(compiled, nn.Module):  # how it is computed differs in every process
        return [type(value).__name__, compiled]
    return [type(value), _attributes(value)]


@_of.register
def _(value: Mapping) -> Iterable[Any]:  # type: ignore[type-arg]
    return [item for pair in value.items() for item in pair]


@_of.register
def _(value: AbstractSet) -> Iterable[Any]:  # type: ignore[type-arg]
    return sorted(map(repr, value))


@_of.register
def _(value: list | tuple) -> Iterable[Any]:  # type: ignore[type-arg]
    return value


@_of.register
def _(value: functools.partial) -> Iterable[Any]:  # type: ignore[type-arg]
    return [value.func, value.args, value.keywords]


@_of.register
def _(value: CellType) -> Iterable[Any]:
    return [value.cell_contents] if value != CellType() else []


@_of.register
def _(value: ModuleType) -> Iterable[Any]:
    return [value.__name__, _read_of(value, vars(value))]


@_of.register
def _(value: MethodType) -> Iterable[Any]:
    return [value.__func__, value.__self__]


@_of.register
def _(value: CodeType) -> Iterable[Any]:
    return [value.co_code, value.co_consts, value.co_names, value.co_varnames]


@_of.register
def _(value: type) -> Iterable[Any]:
    name = f"{value.__module__}.{value.__qualname__}"
    if not is_own(value.__module__):
        return [name]
    own = {key: item for key, item in vars(value).items() if key not in LEFT_OUT}
    return [name, value.__bases__, {key: own[key] for key in sorted(own)}]


@_of.register
def _(value: FunctionType) -> Iterable[Any]:
    if not is_own_file(value.__code__.co_filename):
        return [f"{value.__module__}.{value.__qualname__}"]
    known = _mentioned(value.__code__, value.__globals__)
    held = [value.__defaults__, value.__kwdefaults__, value.__closure__, known, vars(value)]
    return [value.__code__, *held]


def _shown(value: object) -> str:
    shown = repr(value)
    return "" if " at 0x" in shown else shown  # else it differs in every process


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    named = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    named.update(getattr(value, "__dict__", {}))
    return {
        # Hooks are numbered as they come, over all modules of a process.
        name: list(named[name].values()) if _is_hooks(name, named[name]) else named[name]
        for name in sorted(named)
        if name not in LEFT_OUT
    }


def _is_hooks(name: str, value: Any) -> bool:
    return "_hooks" in name and isinstance(value, Mapping)


def _mentioned(code: CodeType, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``code`` and the functions within it read: globals, and of modules what they do.

    An import within a function counts as well.
    """
    codes, names, imported, attributes = [code], set[str](), set[str](), set[str]()
    while codes:
        one = codes.pop()
        codes += [inner for inner in one.co_consts if isinstance(inner, CodeType)]
        attributes |= set(one.co_names)
        for step in dis.get_instructions(one):
            if step.opname == "LOAD_GLOBAL":
                names.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                imported.add(step.argval)
    found = {name: known[name] for name in sorted(names) if name in known}
    found |= {f"import {name}": _imported(name, known) for name in sorted(imported)}
    return {
        name: _read_of(value, attributes) if isinstance(value, ModuleType) else value
        for name, value in found.items()
    }


def _imported(name: str, known: Mapping[str, Any]) -> ModuleType | None:
    """Return a module that a function of the globals ``known`` imports, where it is its user's."""
    for whole in (f"{known.get('__package__') or ''}.{name}".strip("."), name):
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(whole)
            if whole in sys.modules:
                return sys.modules[whole]
            if spec is not None and spec.origin and is_own_file(spec.origin):
                return importlib.import_module(whole)
    return None


def _read_of(module: ModuleType, names: Iterable[str]) -> dict[str, Any] | str:
    """Return what ``names`` are in ``module``, and in modules within it; a library's name."""
    if not is_own(module.__name__):
        return module.__name__
    held = {name: vars(module)[name] for name in sorted(names) if name in vars(module)}
    return {
        name: _read_of(value, names) if isinstance(value, ModuleType) else value
        for name, value in held.items()
        if not name.startswith("__") and value is not module
    }
