"""Worker processes: started when first needed, replaced when they die, ended with the run."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from pebble import ProcessExpired, ProcessPool

from bench.base.types import Outcome
from bench.runner.task import Report, Settings, Task
from bench.runner.worker import call, initialise, reason_of, run_task

T = TypeVar("T")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LocalExecutor:
    """A few persistent spawned processes, one task at a time each.

    ``timeout``: seconds a cell may take, or None. A task that exceeds it, and a process that
    dies, end as a failed report; neither hangs nor ends the run.
    """

    def __init__(self, settings: Settings, workers: int, timeout: float | None = None) -> None:
        self.settings = settings
        self.workers = workers
        self.timeout = timeout
        self._pool: ProcessPool | None = None
        self._clean: ProcessPool | None = None

    def submit(self, task: Task) -> concurrent.futures.Future[Report]:
        """Start ``task``; the result is its report, as ``report`` reads it."""
        if self._pool is None:
            # Read by the numerical libraries as a worker loads them; left set, for a worker
            # that dies is replaced later.
            os.environ.update(dict.fromkeys(THREADS, "1"))
            self._pool = ProcessPool(
                self.workers,
                initializer=initialise,
                initargs=(self.settings,),
                context=multiprocessing.get_context("spawn"),
            )
        timeout = self.timeout if task.kind == "cell" else None
        return self._pool.schedule(run_task, args=[task], timeout=timeout)

    def fresh(self, work: Callable[..., T], *args: object) -> concurrent.futures.Future[T]:
        """Call ``work(settings, *args)`` in a process that has done nothing before."""
        if self._clean is None:
            os.environ.update(dict.fromkeys(THREADS, "1"))
            self._clean = ProcessPool(
                self.workers,
                max_tasks=1,
                initializer=initialise,
                initargs=(self.settings,),
                context=_clean_context(self.settings.device_class),
            )
        return self._clean.schedule(call, args=[work, self.settings, *args], timeout=self.timeout)

    def outcome(self, future: concurrent.futures.Future[T]) -> tuple[T | None, str | None]:
        """Return what a call of ``fresh`` returned, or None and why there is nothing."""
        try:
            return future.result(), None
        except concurrent.futures.TimeoutError:
            return None, f"timed out after {self.timeout:g} s"
        except ProcessExpired as error:
            return None, f"its process died with exit code {error.exitcode}"
        except Exception as error:  # noqa: BLE001 (other people's code, in another process)
            return None, reason_of(error)

    def report(self, future: concurrent.futures.Future[Report]) -> Report:
        """Return the report of a finished future; a time-out or a death is a failed one."""
        try:
            return future.result()
        except concurrent.futures.TimeoutError:
            return Report(Outcome("failed", f"timed out after {self.timeout:g} s"))
        except ProcessExpired as error:
            return Report(
                Outcome("failed", f"its worker process died with exit code {error.exitcode}")
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes: at once where the run was interrupted."""
        for pool in (self._pool, self._clean):
            if pool is not None:
                end = pool.close if kind is None else pool.stop
                end()  # type: ignore[no-untyped-call]
                pool.join()


def _clean_context(device: str) -> Any:
    """Return a way to start a process that costs little: a copy of one that has only imported."""
    if device != "cpu" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.runner.worker"])
    return context


def default_workers(device: str) -> int:
    """Return one worker a core that this process may use; one on a GPU."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
