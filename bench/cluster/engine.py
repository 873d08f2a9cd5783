"""What runs a function somewhere else: any ``concurrent.futures`` executor, or Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor as FuturesExecutor
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from bench.base.types import UserError
from bench.cluster.parcel import Stored
from bench.plugins.discovery import find
from bench.runner.prepare import absolute
from bench.runner.processes import default_workers


@dataclass(frozen=True)
class Needs:
    """What a task is known to need, None where nobody knows: bytes of memory, a share of a GPU."""

    memory: int | None = None
    gpu: float | None = None


class Engine(Protocol):
    """Machines, a way to run a function on one of them, and a store that all of them read."""

    @property
    def slots(self) -> int:
        """How many tasks can run at a time."""

    def machines(self) -> Sequence[str]:
        """Return the names of the machines that can be asked for by name; one "" where none can."""

    def submit(self, work: Callable[..., Any], *args: object, needs: Needs) -> Future[Any]:
        """Call ``work(*args, machine)`` on some machine, again where that dies."""

    def on(self, machine: str, work: Callable[..., Any], *args: object) -> Future[Any]:
        """Call ``work(*args, machine)`` on this one."""

    def store(self, content: bytes) -> Stored | None:
        """Put ``content`` where every machine can read it; None where there is no such place."""


class FuturesEngine:
    """A ``concurrent.futures`` executor: no names of machines, no store, no word about needs."""

    def __init__(self, executor: FuturesExecutor, slots: int) -> None:
        self.executor = executor
        self.slots = slots

    def machines(self) -> Sequence[str]:
        """Return one name for wherever the executor runs things."""
        return [""]

    def submit(self, work: Callable[..., Any], *args: object, needs: Needs) -> Future[Any]:
        """Hand it to the executor, which knows what to do where a machine dies."""
        return self.executor.submit(work, *args)

    def on(self, machine: str, work: Callable[..., Any], *args: object) -> Future[Any]:
        """Hand it to the executor."""
        return self.executor.submit(work, *args)

    def store(self, content: bytes) -> None:
        """Return None: large files travel to each machine that lacks them."""
        return


@contextlib.contextmanager
def made_by(reference: str, workers: int | None) -> Iterator[FuturesEngine]:
    """Make the executor of ``my_module:factory``, and shut it down at the end.

    Raises UserError where there is none, or it makes something else.
    """
    # A file that a command names starts where the command is called.
    source, _, name = reference.rpartition(":")
    factory = find(f"{absolute([source])[0]}:{name}")
    try:
        executor = factory()
    except Exception as error:
        raise UserError(f"{reference}: {type(error).__name__}: {error}") from error
    if not isinstance(executor, FuturesExecutor) and not callable(
        getattr(executor, "submit", None)
    ):
        raise UserError(
            f"{reference} must return a concurrent.futures.Executor, "
            f"and it returned {type(executor).__name__}"
        )
    try:
        yield FuturesEngine(executor, workers or default_workers("cpu"))
    finally:
        if callable(shut := getattr(executor, "shutdown", None)):
            shut()
