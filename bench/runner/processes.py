"""Worker processes: started when first needed, replaced when they die or are not as they were."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from bench.base.types import Outcome
from bench.evidence.environment import device_name
from bench.plan.graph import Kind
from bench.runner.task import Answer, Report, Settings, Task
from bench.runner.worker import call, reason_of, run_task, serve

T = TypeVar("T")

NUMERICAL = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # Where a model is asked with two threads, one that waits for the other is to sleep: on cores
    # that are taken it would burn a tenth of a second a question.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Settings of the numerical libraries in worker processes."""

STARTUP = 600.0
"""Seconds that a process may take to import plugins: one that hangs there is ended."""

POLL = 0.25
"""Seconds between two looks at what memory a process uses."""


class LocalExecutor:
    """A few persistent processes of this machine, one task at a time each.

    ``timeout``: seconds a cell may take, or None; the settings say what a fit may take, and how
    much memory a process. Whatever ends a process ends as a failed report: it neither hangs nor
    ends the run. A task that leaves its process otherwise than it found it is its last one there.
    """

    def __init__(self, settings: Settings, workers: int, timeout: float | None = None) -> None:
        self.settings = settings
        self.workers = workers
        self.timeout = timeout
        self._devices = devices(settings.device)
        self._threads = ThreadPoolExecutor(workers)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._living: set[_Process] = set()
        self._stopped = False

    @property
    def device(self) -> str:
        """The model of this machine's processor or GPU."""
        return device_name(self.settings.device)

    def submit(self, task: Task) -> Future[Report]:
        """Start ``task``; a time-out or a death is a failed report."""
        return self._threads.submit(self._run, task)

    def fresh(
        self, work: Callable[..., T], *args: object, reads: Sequence[tuple[Kind, str]] = ()
    ) -> Future[Answer[T]]:
        """Call ``work(settings, *args)`` in a process that has done nothing before.

        All that it may read (``reads``) lies in the run's folder.
        """
        return self._threads.submit(self._once, work, *args)

    def _run(self, task: Task) -> Report:
        limit = self.timeout if task.kind == "cell" else self.settings.fit_timeout
        report, reason = self._ask(limit, False, run_task, task)
        return Report(Outcome("failed", reason)) if report is None else report

    def _once(self, work: Callable[..., Any], *args: object) -> tuple[Any, str | None]:
        return self._ask(self.timeout, True, work, *args)

    def _ask(
        self, limit: float | None, once: bool, work: Callable[..., Any], *args: object
    ) -> tuple[Any, str | None]:
        """Return what ``work(*args)`` returned in a process, or None and why there is nothing.

        ``once``: in one that has done nothing before, whose settings come before ``args``.
        """
        process = None
        try:
            process = self._take(once)
            if once:
                work, args = call, (work, process.settings, *args)
            value, reason, stays = process.ask(work, args, limit)
        except _EndedError as error:
            value, reason, stays = None, str(error), False
        except OSError as error:  # no process, no pipe, no room for either
            value, reason, stays = None, f"no worker process: {reason_of(error)}", False
        if process is not None and (once or not stays):
            process.end(gently=stays)
            self._living.discard(process)
        elif process is not None:
            self._idle.append(process)
        return value, reason

    def _take(self, once: bool) -> _Process:
        with self._lock:
            if self._stopped:
                raise _EndedError("the run was interrupted")
            if self._idle and not once:
                return self._idle.pop()
        with self._lock:
            taken = Counter(process.settings.device for process in self._living)
            free = min(self._devices, key=lambda device: taken[device])
            process = _Process(replace(self.settings, device=free), alone=once)
            self._living.add(process)
        if self._stopped:
            process.end()
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes: at once where the run was interrupted."""
        if kind is not None:
            with self._lock:
                self._stopped = True
                living = list(self._living)
            for process in living:
                process.kill()
        self._threads.shutdown(cancel_futures=kind is not None)
        for process in list(self._living):
            process.end(gently=kind is None)


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """Let no process that starts inside import the script that runs, as multiprocessing would.

    It would run from its top once more there, and what is handed over travels without it.
    """
    main = sys.modules["__main__"]
    kept = {name: vars(main).get(name) for name in ("__spec__", "__file__")}
    vars(main).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(main).update(kept)


class _EndedError(Exception):
    """A process ended, or was ended, before it answered; the message says how."""


class _Process:
    """A process that answers one question at a time; one that is ``alone`` may have workers."""

    def __init__(self, settings: Settings, alone: bool = False) -> None:
        # Read by the numerical libraries as a worker loads them; left set, for a worker that dies
        # is replaced later.
        os.environ.update(NUMERICAL)
        self.settings = settings
        context = _context(settings.device_class)
        ours, theirs = context.Pipe()
        self._connection: Connection = ours
        self._memory = settings.memory
        self._ready = False
        environment = dict(os.environ)
        self._process = context.Process(
            target=serve, args=(theirs, settings, environment), daemon=not alone
        )
        try:
            self._process.start()
        except EOFError as error:  # of the process that would have forked it
            raise _EndedError("its worker process cannot be started") from error
        finally:
            theirs.close()

    def ask(
        self, work: Callable[..., Any], args: tuple[object, ...], limit: float | None
    ) -> tuple[Any, str | None, bool]:
        """Return the value of ``work(*args)`` or None, why there is none, and whether it may stay.

        Raises _EndedError where the process ends first, or has no answer in ``limit`` seconds.
        """
        if not self._ready:
            if (broken := self._receive(STARTUP, "starting ")) is not None:
                raise _EndedError(broken)
            self._ready = True
        try:
            self._connection.send((work, args))
        except OSError as error:
            raise self._ended() from error
        value, reason, stays = self._receive(limit)
        # What is left behind must not add up over tasks.
        leaks = self._memory is not None and self._resident() > self._memory / 2
        return value, reason, stays and not leaks

    def _receive(self, limit: float | None, doing: str = "") -> Any:
        end = time.monotonic() + (limit or 0)
        while not wait([self._connection, self._process.sentinel], POLL):
            if limit is not None and time.monotonic() > end:
                self.kill()
                raise _EndedError(f"{doing}timed out after {limit:g} s")
            if self._memory is not None and self._resident() > self._memory:
                self.kill()
                raise _EndedError(f"its process used more than {self._memory / 2**30:.3g} GiB")
        try:
            if self._connection.poll():
                return self._connection.recv()
        except (EOFError, OSError):
            pass  # it closed its end, or died while it wrote
        raise self._ended()

    def _ended(self) -> _EndedError:
        self._process.join(1)
        self.kill()
        self._process.join()
        return _EndedError(f"its worker process died with exit code {self._process.exitcode}")

    def _resident(self) -> int:
        """Return the bytes of memory that the process holds; 0 where the system does not say."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        return 0

    def kill(self) -> None:
        """End it at once; whoever waits for its answer is told."""
        self._process.kill()

    def end(self, gently: bool = False) -> None:
        """End it and free what it held here; ``gently``: let one that waits clean up before."""
        self._connection.close()
        if gently:
            self._process.join(2)
        self.kill()
        self._process.join()


def _context(device: str) -> Any:
    """Return a way to start a process that costs little: a copy of one that has only imported."""
    if device != "cpu" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.runner.worker"])
    return context


def devices(device: str) -> list[str]:
    """Return where processes of a run on ``device`` compute: on ``cuda`` every GPU of the machine.

    Those of one model, which is the first one's: on another one results differ in the last bit.
    """
    if device != "cuda":
        return [device]
    every = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [one for one in every if device_name(one) == device_name(every[0])] or [device]


def default_workers(device: str) -> int:
    """Return one worker a core that this process may use; one a GPU."""
    if device != "cpu":
        return len(devices(device))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_memory(workers: int) -> int | None:
    """Return the bytes that each of ``workers`` processes may hold: 90 % of the machine's memory.

    Of a container's where that is less; None where the system does not say.
    """
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(0.9 * total / workers)
