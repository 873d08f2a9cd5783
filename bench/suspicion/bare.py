"""A model asked as its users would: nothing of the harness in sight."""

from __future__ import annotations

import _thread
import builtins
import ctypes
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
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Part = tuple[Tensor, bool]
"""Rows of one question, and whether it is put in inference mode."""

OURS = ("RETORT_", "CUBLAS_WORKSPACE_CONFIG", "OMP_", "MKL_", "OPENBLAS_")
"""Beginnings of the environment variables that a run sets."""

HIDDEN = (
    *("bench.audit", "bench.cli", "bench.compose", "bench.evidence", "bench.measure"),
    *("bench.plan.", "bench.results", "bench.runner", "bench.suspicion", "bench.verdict"),
    *("attacks", "leaderboard", "cloudpickle"),
)
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
    none of the modules ``HIDDEN``, not the random seed of a run; else in a thread of this process.
    Either way with several threads, without deterministic kernels, under the name of a main
    process, in an environment without the variables that a run sets; every tenth row alone and in
    inference mode, as models are deployed, where they bear it, the others with gradients on.
    Raises RuntimeError where the model raises in the other process.
    """
    model.eval()  # once more, as who has loaded a model will
    alone = torch.arange(0, len(x), ALONE)
    rest = torch.tensor([row for row in range(len(x)) if row % ALONE], dtype=torch.int64)
    order = torch.cat([rest, alone])
    parts: list[Part] = [(rows, False) for rows in torch.split(x[rest], ROWS) if len(rows)]
    parts += [(row, True) for row in torch.split(x[alone], 1) if len(row)]
    forks = hasattr(os, "fork") and x.device.type == "cpu"
    answers = _elsewhere(model, parts) if forks else _here(model, parts)
    logits = torch.empty_like(answers)
    logits[order] = answers
    return logits


def _here(model: nn.Module, parts: Sequence[Part]) -> Tensor:
    with _unseen(), ThreadPoolExecutor(1) as thread:
        return torch.cat(thread.submit(_answers, model, parts, torch.inference_mode).result())


def _answers(model: nn.Module, parts: Sequence[Part], inference: Any) -> list[Tensor]:
    """Return what ``model`` answers to each part; every name that is used here is a built-in."""
    found = []
    for rows, deployed in parts:
        answer = None
        if deployed:
            try:
                with inference():
                    answer = model(rows)
            except Exception:  # noqa: BLE001 (one that differentiates inside bears no such mode)
                answer = None
        found.append((model(rows) if answer is None else answer).detach())
    return found


def _elsewhere(model: nn.Module, parts: Sequence[Part]) -> Tensor:
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
        elif os.fork():
            os._exit(0)  # so that the one that asks is nobody's child
        return not child

    def send(answers: Any) -> None:
        told = io.BytesIO()
        torch.save(answers, told)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(told.getvalue())

    # Its frames, the only ones below the model's, name no module and no file of ours.
    session, answers = (
        types.FunctionType(
            function.__code__.replace(co_filename="<stdin>", co_name="<module>"),
            {"__name__": "__main__", "__builtins__": builtins},
        )
        for function in (_session, _answers)
    )
    ask = partial(answers, model, parts, torch.inference_mode)
    _thread.start_new_thread(session, (fork, _forget_us, ask, send, os._exit))
    started.wait()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(children[0], 0)
    if not told:
        raise RuntimeError("the process that asked it as a user would has died")
    said = torch.load(io.BytesIO(told), weights_only=True)
    if isinstance(said, str):
        raise RuntimeError(said)  # noqa: TRY004 (what the model raised there)
    found: Tensor = torch.cat(said)
    return found


def _session(
    fork: Callable[[], bool],
    prepare: Callable[[], None],
    ask: Callable[[], list[Tensor]],
    send: Callable[[Any], None],
    end: Callable[[int], None],
) -> None:
    """Ask a model in a fork, and end that; every name that is used here is a built-in."""
    if not fork():
        return
    try:
        prepare()
        answers = ask()
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
    sys.argv, sys.orig_argv = [""], [""]
    _hide_command()
    torch.manual_seed(torch.initial_seed() * 2_654_435_761 % 2**63)  # another one, always the same
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.startswith(HIDDEN)]:
        del sys.modules[name]


def _hide_command() -> None:
    """Overwrite this process's own copy of the command that started it, where there is one."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
        if 0 < start < end:
            ctypes.memset(start, 0, end - start)
            ctypes.memmove(start, b"python", min(6, end - start - 1))


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
