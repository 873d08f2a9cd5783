"""What a cell or a probe left, read back: the one reader of a run's evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from bench.base.files import read_json, read_records, read_tensors
from bench.base.rows import CellRow
from bench.base.types import DamagedError, Document, Outcome
from bench.evidence.finished_run import FinishedRun
from bench.evidence.folder import RunFolder
from bench.plan.panel import Entry

IDLE = {"no-op": "changed nothing", "spent": "was stopped before its end"}
"""Flags on a cell that did not do its work, in words."""


@dataclass(frozen=True)
class Evidence:
    """One cell or probe as it lies on disk: a document, and the files whose checksums it holds.

    Every file is read when it is asked for. Raises DamagedError where one cannot be read, or is
    not what its checksum says.
    """

    folder: RunFolder
    kind: Literal["probe", "cell"]
    id: str

    @cached_property
    def document(self) -> Document:
        """The document; a probe that failed left none, and a cell says how it ended."""
        path = self.folder.document(self.kind, self.id)
        document = read_json(path)
        if not isinstance(document, dict):
            raise DamagedError(f"{path} holds no JSON object")
        return document

    @property
    def exists(self) -> bool:
        """Whether there is a document at all."""
        return self.folder.document(self.kind, self.id).exists()

    @property
    def outcome(self) -> Outcome:
        """How the node ended."""
        return Outcome(**self.document["outcome"])

    def records(self, wanted: Callable[[str], bool] | None = None) -> pd.DataFrame:
        """Return one row an attempt of a cell, or one a clean image of a probe.

        ``wanted``: which columns, by default all.
        """
        path = self.folder.files(self.kind, self.id)["records"]
        return read_records(path, self.document["files"]["records"], wanted)

    def inputs(self) -> Tensor:
        """Return the adversarial inputs of a cell, (attempts, *shape), in the order of records."""
        path = self.folder.files(self.kind, self.id)["inputs"]
        return read_tensors(path, self.document["files"]["inputs"])["x_adv"]


def read_trials(run: FinishedRun) -> dict[str, list[Trial]]:
    """Return every cell of ``run``, by the id of its fit; records are None where it is not done.

    Plugins must be loaded. Raises DamagedError where a file is not what its checksum says.
    """
    rows = {row["id"]: row for row in run.rows}
    found: dict[str, list[Trial]] = {}
    for node in run.plan.of("cell"):
        row, cell = rows[node.id], Evidence(run.folder, "cell", node.id)
        records = cell.records() if row["status"] == "done" else None
        trial = Trial(row, records, node.attack().access)
        found.setdefault(node.needs["model"], []).append(trial)
    return found


NOTHING_LEFT = "too little is left for it to matter"
"""Why a closer is skipped; it is no gap in the panel."""

SETTLED = "the round before it broke nothing"
"""Why a closer is skipped that only goes on with what others began; it is no gap either."""


UNSUSPECTED = "the gradient is that of the answers"
"""Why a follow-up is skipped, which is none either."""


def nothing_left(outcome: Outcome) -> bool:
    """Return whether a closer did not run because there was nothing for it to do."""
    needless = (NOTHING_LEFT, SETTLED, UNSUSPECTED)
    return outcome.status == "skipped" and (outcome.reason or "").startswith(needless)


def waived(row: CellRow) -> bool:
    """Return whether a row is of a closer that did not have to run."""
    return nothing_left(Outcome(row["status"], row["reason"]))


@dataclass(frozen=True)
class Trial:
    """One cell: its row of ``results.json``, its records (None where it is not done).

    ``access``: what its attack sees; ``entry``: what it is in the panel, None outside of it.
    """

    row: CellRow
    records: pd.DataFrame | None
    access: str
    entry: Entry | None = None

    @property
    def id(self) -> str:
        """The cell's id."""
        return str(self.row["id"])

    @property
    def label(self) -> str:
        """The attack in a few words: its name and what it differentiates, runs or comes from."""
        found: list[Any] = [self.row["attack"]]
        for key in ("output", "source", "gradient", "attack"):
            value = self.row["attack_params"].get(key)
            found.append(value["name"] if isinstance(value, dict) else value)
        if self.entry is not None and self.entry.effort > 1:
            found.append(f"× {self.entry.effort}")
        return " ".join(str(word) for word in found if word)

    def trouble(self) -> str | None:
        """Return why the cell did not do its work, or None."""
        if waived(self.row):
            return None
        if self.row["status"] != "done":
            return f"{self.label} {self.row['status']}: {self.row['reason']}"
        raised = {flag["id"] for flag in self.row["flags"]}
        found = [words for flag, words in IDLE.items() if flag in raised]
        return f"{self.label} {found[0]}" if found else None
