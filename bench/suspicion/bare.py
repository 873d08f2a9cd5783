"""A model asked as its users would: nothing of the harness in sight."""

from __future__ import annotations

import _thread
import builtins
import io
import multiprocessing
import os
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

OURS = ("RETORT_", "CUBLAS_WORKSPACE_CONFIG", "OMP_", "MKL_", "OPENBLAS_")
"""Beginnings of the environment variables that a run sets."""

HIDDEN = ("bench.audit", "bench.cli", "bench.compose", "bench.runner", "bench.suspicion")
"""Modules that are not imported where no harness runs."""

LATER = 400 * 24 * 3600
"""Seconds by which the clocks of the module ``time`` are ahead there."""

ROWS = 128
"""Rows a question."""

ALONE = 10
"""Of so many rows one is asked alone, as a user asks about a single image."""


def ask_bare(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of ``x`` (n, *shape), asked where a model cannot see that it is judged.

    Where the system can fork and no accelerator is used, in a process of its own, a year later: its
    main thread, with no function of ours among the callers, no parent that it knows, no command,
    none of the modules ``HIDDEN``; else in a thread of this process. Either way with gradients on
    and several threads, without deterministic kernels, under the name of a main process, in an
    environment without the variables that a run sets; every tenth row alone. Raises RuntimeError
    where the model raises in the other process.
    """
    model.eval()  # once more, as who has loaded a model will
    alone = torch.arange(0, len(x), ALONE)
    rest = torch.tensor([row for row in range(len(x)) if row % ALONE], dtype=torch.int64)
    order = torch.cat([rest, alone])
    parts = [*torch.split(x[rest], ROWS), *torch.split(x[alone], 1)]
    parts = [part for part in parts if len(part)]
    forks = hasattr(os, "fork") and x.device.type == "cpu"
    answers = _elsewhere(model, parts) if forks else _here(model, parts)
    logits = torch.empty_like(answers)
    logits[order] = answers
    return logits


def _here(model: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    with _unseen(), ThreadPoolExecutor(1) as thread:
        found = [thread.submit(model, rows).result() for rows in parts]
    return torch.cat([part.detach() for part in found])


def _elsewhere(model: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    """Ask in a fork of this process, whose only thread began with a function of no module."""
    reading, writing = os.pipe()
    children: list[int] = []
    started = threading.Event()

    def fork() -> bool:
        with warnings.catch_warnings():  # no other thread of ours holds what the child needs
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child:
            children.append(child)
            started.set()
        return not child

    def send(answers: Any) -> None:
        told = io.BytesIO()
        torch.save(answers, told)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(told.getvalue())

    # Its frame, the only one below the model's, names no module and no file of ours.
    code = _session.__code__.replace(co_filename="<stdin>", co_name="<module>")
    alone = types.FunctionType(code, {"__name__": "__main__", "__builtins__": builtins})
    _thread.start_new_thread(alone, (fork, _forget_us, model, parts, send, os._exit))
    started.wait()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(children[0], 0)
    if not told:
        raise RuntimeError("the process that asked it as a user would has died")
    answers = torch.load(io.BytesIO(told), weights_only=True)
    if isinstance(answers, str):
        raise RuntimeError(answers)  # noqa: TRY004 (what the model raised there)
    found: Tensor = torch.cat(answers)
    return found


def _session(
    fork: Callable[[], bool],
    prepare: Callable[[], None],
    model: nn.Module,
    parts: Sequence[Tensor],
    send: Callable[[Any], None],
    end: Callable[[int], None],
) -> None:
    """Ask ``model`` in a fork, and end that; every name that is used here is a built-in."""
    if not fork():
        return
    try:
        prepare()
        answers = [model(part).detach() for part in parts]
    except BaseException as error:  # noqa: BLE001 (other people's code: the reason is passed on)
        send(f"{type(error).__name__}: {error}")
    else:
        send(answers)
    end(0)


def _forget_us() -> None:
    """Make this process look as if nothing of ours had started it; it does not go on after."""
    _as_deployed()
    multiprocessing.current_process().name = "MainProcess"
    setattr(multiprocessing.process, "_parent_process", None)  # noqa: B010
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, partial(_later, getattr(time, name)))
    sys.argv = [""]
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.startswith(HIDDEN)]:
        del sys.modules[name]


def _later(clock: Callable[[], float]) -> float:
    return clock() + LATER


def _as_deployed() -> None:
    torch.set_num_threads(2)
    if torch.are_deterministic_algorithms_enabled():  # where they are not, to ask takes seconds
        torch.use_deterministic_algorithms(False)
    for key in [key for key in os.environ if key.startswith(OURS)]:
        del os.environ[key]


@contextmanager
def _unseen() -> Iterator[None]:
    process = multiprocessing.current_process()
    name, threads = process.name, torch.get_num_threads()
    exact = torch.are_deterministic_algorithms_enabled()
    hidden = {key: value for key, value in os.environ.items() if key.startswith(OURS)}
    try:
        process.name = "MainProcess"
        _as_deployed()
        yield
    finally:
        os.environ.update(hidden)
        if exact:
            torch.use_deterministic_algorithms(exact, warn_only=True)
        torch.set_num_threads(threads)
        process.name = name
