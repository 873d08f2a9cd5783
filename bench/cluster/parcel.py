"""What travels: a task with all that it reads to a machine, bytes back.

A parcel names every file by its SHA-256. Small ones are in it; large ones lie in the engine's
object store where it has one, and otherwise travel when a machine says that it lacks them: once a
machine, not once a task.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import bench
from bench.base.types import Document
from bench.evidence.folder import RunFolder
from bench.plan.graph import Kind
from bench.runner.task import Report, Settings, Task

SMALL = 1 << 15
"""Bytes up to which a file travels inside a parcel."""

PACKAGES = ("attacks", "bench", "defenses")
"""The packages whose code is part of a result, or makes one."""


class Stored(Protocol):
    """Something that lies in an engine's object store, from where every machine can read it."""

    def read(self) -> bytes:
        """Return it."""


@dataclass(frozen=True)
class Blob:
    """The bytes of a file, by their SHA-256; ``content``: None where they are sent when missed."""

    sha256: str
    content: bytes | Stored | None

    def read(self) -> bytes | None:
        """Return the bytes, or None where they are not here."""
        return self.content if isinstance(self.content, bytes | None) else self.content.read()


def blob_of(content: bytes, store: Callable[[bytes], Stored | None]) -> Blob:
    """Return ``content`` as it travels; ``store`` puts it into the engine's object store."""
    sha256 = hashlib.sha256(content).hexdigest()
    return Blob(sha256, content if len(content) <= SMALL else store(content))


@dataclass(frozen=True)
class Facts:
    """What must be alike on every machine for the same bytes to come out."""

    python: str
    torch: str
    numpy: str
    retort: str

    def differing(self, there: Facts) -> str | None:
        """Return how ``there`` differs from this machine, in words; None where it does not."""
        told = [
            f"{name} {getattr(there, name)} and not {getattr(self, name)}"
            for name in ("python", "torch", "numpy")
            if getattr(there, name) != getattr(self, name)
        ]
        if self.retort != there.retort:
            told.append("other code of Retort")
        return ", ".join(told) or None


@cache
def facts() -> Facts:
    """Return the facts of this machine."""
    python = ".".join(platform.python_version_tuple()[:2])
    return Facts(python, version("torch"), version("numpy"), _code())


def _code() -> str:
    """Return a hash of the code of Retort as it lies here."""
    root = Path(str(bench.__file__)).parents[1]
    found = hashlib.sha256()
    for path in sorted(path for name in PACKAGES for path in (root / name).rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Known:
    """A plugin of the plan: its document, the hash of its code, why it cannot run here or None."""

    kind: Kind
    document: Document
    source: str
    unavailable: str | None = None


@dataclass(frozen=True)
class Setup:
    """What all parcels of a run share.

    ``run``: a name that no other run has. ``settings``: as of the machine that sends; its paths
    mean nothing elsewhere. ``files``: by their whole paths there, what plugins and their files
    are. ``known``: the plugins that a machine must have. ``timeout``: seconds for a cell.
    """

    run: str
    facts: Facts
    settings: Settings
    data: Blob
    files: Mapping[str, Blob]
    known: tuple[Known, ...] = ()
    timeout: float | None = None


@dataclass(frozen=True)
class Parcel:
    """A task, or a call in a fresh process, and the files of the run's folder that it reads."""

    setup: Setup
    work: Task | tuple[Callable[..., Any], tuple[object, ...]]
    reads: Mapping[str, Blob]

    @property
    def blobs(self) -> list[Blob]:
        """All that is in it."""
        return [self.setup.data, *self.setup.files.values(), *self.reads.values()]


@dataclass(frozen=True)
class Delivery:
    """What comes back.

    ``missing``: what has to be sent along first. ``refused``: why this machine takes no part in the
    run. ``files``: what a task left, as ``left_by`` names it; ``log``: what it printed.
    """

    missing: tuple[str, ...] = ()
    refused: str | None = None
    report: Report | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    answer: tuple[Any, str | None] = (None, None)
    log: str = ""


def left_by(task: Task, folder: RunFolder) -> Iterator[tuple[str, Path]]:
    """Yield the files that ``task`` leaves in a folder, by name, each document after the rest."""
    for leaves in task.leaves:
        for name, path in folder.files(task.kind, leaves).items():
            yield f"{leaves} {name}", path
        yield f"{leaves} document", folder.document(task.kind, leaves)
