"""What goes to a worker and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.base.types import DataInfo, Document, Outcome
from bench.plan.graph import Kind
from bench.plugins.contracts import DataSettings


@dataclass(frozen=True)
class Settings:
    """What every worker of a run shares.

    ``base``: where relative paths of plugins start, None where each process stands. ``info``: what
    a network has to know of the data, so that a model can be built without them. ``fit_timeout``:
    seconds that a fit, or the measuring of its model, may take. ``memory``: bytes that a process
    may hold. ``trusted``: SHA-256 of the pickled modules that a worker may read.
    ``sealed``: whether only code may run that was named as a plugin.
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

    @property
    def device_class(self) -> str:
        """``cpu`` or ``cuda``: the number of a GPU does not change a result."""
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class Task:
    """One node to run.

    ``needs`` names fits by role; ``key`` is stored as the node's evidence; ``only``: sample ids of
    the sources that are left to a closer, None where all are attacked.
    """

    id: str
    kind: Kind
    document: Document
    needs: Mapping[str, str]
    key: Document
    only: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Report:
    """How a task ended, what it took, and the traceback where it raised.

    ``training``: of a fit, what its training took when it was learnt, now or long ago: seconds of
    the clock and of the processor, how many processes wanted each core, and the machine.
    """

    outcome: Outcome
    seconds: float = 0.0
    cached: bool = False
    trace: str | None = None
    training: Document | None = None
