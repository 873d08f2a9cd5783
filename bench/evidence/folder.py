"""A results folder: where its files lie, whether it can be written, what killed runs left in it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.base.files import read_json, sweep
from bench.base.types import DamagedError, Document, UserError
from bench.plan.graph import Kind

SCHEMA = 1
"""Version of the layout of a results folder; a newer one is refused."""


MATRIX = "judge.toml"
"""The matrix that ``judge`` made of what was handed to it."""

HANDED = "handed"
"""What was handed over in memory: data, and modules."""

BELOW: Mapping[Kind, str] = {
    "fit": "models",
    "probe": "probes",
    "attack-fit": "learnt",
    "cell": "cells",
}
"""Where the documents of nodes lie, by kind."""

RECHECKS = "rechecks"

BESIDE: Mapping[Kind, Mapping[str, str]] = {
    "fit": {"weights": ".safetensors"},
    "probe": {"records": ".parquet"},
    "attack-fit": {"weights": ".safetensors"},
    "cell": {"records": ".parquet", "inputs": ".safetensors"},
}
"""The files beside a node's document, by kind: their names and suffixes."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run's results.

    Every node that is done has a document, and beside it the ``files`` whose checksums that holds.
    """

    root: Path

    def document(self, kind: Kind, node: str) -> Path:
        """Document of a node."""
        return self.root / BELOW[kind] / f"{node}.json"

    def files(self, kind: Kind, node: str) -> dict[str, Path]:
        """Return what lies beside the document of a node, by its name there."""
        stem = self.document(kind, node)
        return {name: stem.with_suffix(suffix) for name, suffix in BESIDE[kind].items()}

    def model(self, fit: str) -> Path:
        """Document of a fit."""
        return self.document("fit", fit)

    def weights(self, fit: str, kind: Kind = "fit") -> Path:
        """Weights of a fit, of a defense or of an attack."""
        return self.files(kind, fit)["weights"]

    def probe(self, node: str) -> Path:
        """Document of a probe."""
        return self.document("probe", node)

    def cell(self, node: str) -> Path:
        """Document of a cell."""
        return self.document("cell", node)

    def recheck(self, fit: str) -> Path:
        """Document of what a model answered to all its inputs in a process of its own."""
        return self.root / RECHECKS / f"{fit}.json"

    def top(self, name: str) -> Path:
        """Document of the whole run."""
        return self.root / name

    def prepare(self, matrix: str) -> None:
        """Create the folder of a run of the ``matrix`` of that name.

        Raises UserError where it is read-only, of a newer schema, or holds anything but such a run.
        """
        try:
            str(self.root).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"results folder {self.root}: its name must be UTF-8") from error
        self.check_schema()
        self._check_own(matrix)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in self.folders():
                folder.mkdir(exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable.", suffix=".tmp"):
                    pass  # named so that a killed run's is swept
            with self.top("workers.log").open("a"):
                pass  # the workers write to it
        except OSError as error:
            raise UserError(f"results folder {self.root} cannot be written: {error}") from error

    def _check_own(self, matrix: str) -> None:
        try:
            name = read_json(self.top("plan.json"))["matrix"]["name"]
        except (DamagedError, KeyError, TypeError):
            name = None  # torn, or never written
        if name not in (None, matrix):
            raise UserError(
                f"results folder {self.root} holds a run of the matrix {name!r}, and this is one "
                f"of {matrix!r}: choose another --out"
            )
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = {path.name for path in self.root.iterdir()}
            known = {*(path.name for path in self.folders()[1:]), "workers.log", MATRIX, HANDED}
            foreign = {item for item in found - known if not item.startswith(".writable.")}
            # A run that was killed at its very start has left no more than those, and no lock.
            if name is None and foreign and ".lock" not in found:
                raise UserError(
                    f"results folder {self.root} is not empty, and nothing in it is of a run: "
                    "choose another --out"
                )

    def folders(self) -> list[Path]:
        """Return the folder itself and those below that hold evidence."""
        return [self.root, *(self.root / name for name in (*BELOW.values(), RECHECKS))]

    def check_schema(self) -> None:
        """Raise UserError where the folder was written by a newer Retort."""
        plan = self.top("plan.json")
        found = _schema(plan)
        if found > SCHEMA:
            raise UserError(
                f"{plan} is of schema version {found} and this Retort knows {SCHEMA}: "
                "upgrade Retort, or choose another --out"
            )

    def sweep(self) -> None:
        """Remove the temporary files of killed runs; the caller holds the run's lock."""
        for folder in self.folders():
            sweep(folder)


def _schema(plan: Path) -> int:
    try:
        document: Document = read_json(plan)
        return int(document["schema"])
    except (DamagedError, KeyError, TypeError, ValueError):
        return 0  # torn or foreign: it is written anew
