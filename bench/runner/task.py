"""What goes to a worker and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from bench.base.types import DataInfo, Document, Outcome
from bench.evidence.parts import part_id
from bench.plan.graph import Kind
from bench.plugins.contracts import DataSettings

T = TypeVar("T")

Answer = tuple[T | None, str | None]
"""What was returned, or None and why there is nothing."""


@dataclass(frozen=True)
class Settings:
    """What every worker of a run shares.

    ``base``: where relative paths of plugins start, None where each process stands. ``info``: what
    a network has to know of the data, so that a model can be built without them. ``fit_timeout``:
    seconds that a fit, or the measuring of its model, may take. ``memory``: bytes that a process
    may hold. ``trusted``: SHA-256 of the pickled modules that a worker may read.
    ``sealed``: whether only code may run that was named as a plugin. ``shards``: the most tasks
    that a cell is split into, None: one a block. Where the run is another machine's: ``root``,
    below which the files of that machine lie by their whole paths there, and ``carried``, the data
    set as it was sent (``bench.plugins.data.pack``).
    """

    run: Path
    cache: Path
    data: DataSettings
    device: str = "cpu"
    info: DataInfo | None = None
    plugins: tuple[str, ...] = ()
    fit_timeout: float | None = None
    memory: int | None = None
    base: Path | None = None
    trusted: tuple[str, ...] = ()
    sealed: bool = False
    shards: int | None = None
    root: Path | None = None
    carried: Path | None = None

    @property
    def device_class(self) -> str:
        """``cpu`` or ``cuda``: the number of a GPU does not change a result."""
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class Task:
    """One node to run.

    ``needs`` names fits by role; ``key`` is stored as the node's evidence; ``only``: sample ids of
    the sources that are left to a closer, None where all are attacked. ``blocks``: those of a cell
    that this task attacks, each for itself; None where the cell is not split.
    """

    id: str
    kind: Kind
    document: Document
    needs: Mapping[str, str]
    key: Document
    only: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None

    @property
    def leaves(self) -> tuple[str, ...]:
        """The ids under which its evidence lies: its own, or one for each block."""
        if self.blocks is None:
            return (self.id,)
        return tuple(part_id(self.id, block) for block in self.blocks)


@dataclass(frozen=True)
class Report:
    """How a task ended, what it took, and the traceback where it raised.

    ``training``: of a fit, what its training took when it was learnt, now or long ago: seconds of
    the clock and of the processor, how many processes wanted each core, and the machine.
    ``memory``: bytes that its process held at most, 0 where the system does not say; ``gpu``: the
    share of the GPU's memory that it took at most.
    """

    outcome: Outcome
    seconds: float = 0.0
    cached: bool = False
    trace: str | None = None
    training: Document | None = None
    memory: int = 0
    gpu: float = 0.0


class Executor(Protocol):
    """Runs tasks somewhere: the one seam between a schedule and the processes that do the work.

    A task that is done has left its evidence in the run's folder when its future is. No future
    raises: what goes wrong is a failed report, or an answer with a reason.
    """

    @property
    def workers(self) -> int:
        """How many tasks it is worth to have submitted at a time."""

    @property
    def device(self) -> str:
        """The model of the processors or of the GPUs that do the work."""

    def submit(self, task: Task) -> Future[Report]:
        """Start ``task``."""

    def fresh(
        self, work: Callable[..., T], *args: object, reads: Sequence[tuple[Kind, str]] = ()
    ) -> Future[Answer[T]]:
        """Call ``work(settings, *args)`` in a process that has done nothing before.

        ``reads``: the nodes, by kind and id, whose evidence it reads from the run's folder.
        """

    def __enter__(self) -> Self:
        """Take what it needs to run."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what it started: at once where the run was interrupted."""
