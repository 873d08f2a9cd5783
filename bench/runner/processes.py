"""Worker processes: started when first needed, replaced when they die, ended with the run."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from types import TracebackType
from typing import Self

from pebble import ProcessExpired, ProcessPool

from bench.base.types import Outcome
from bench.runner.task import Report, Settings, Task
from bench.runner.worker import initialise, run_task

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
        if self._pool is not None:
            end = self._pool.close if kind is None else self._pool.stop
            end()  # type: ignore[no-untyped-call]
            self._pool.join()


def default_workers(device: str) -> int:
    """Return one worker a core that this process may use; one on a GPU."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
