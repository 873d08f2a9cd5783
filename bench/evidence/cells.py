"""The cells of a finished run with their records, by the model that they attack."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.base.files import read_json, read_records
from bench.base.types import Document, Spec
from bench.evidence.finished_run import FinishedRun
from bench.plan.graph import Node
from bench.plan.panel import Entry
from bench.plugins import registry


def read_trials(run: FinishedRun) -> dict[str, list[Trial]]:
    """Return every cell of ``run``, by the id of its fit; records are None where it is not done.

    Plugins must be loaded. Raises DamagedError where a file is not what its checksum says.
    """
    rows = {row["id"]: row for row in run.rows}
    found: dict[str, list[Trial]] = {}
    for node in run.plan.of("cell"):
        found.setdefault(node.needs["model"], []).append(_trial(run, node, rows[node.id]))
    return found


def _trial(run: FinishedRun, node: Node, row: dict[str, object]) -> Trial:
    path = run.folder.cell(node.id)
    spec = node.document["attack"]
    access = registry.ATTACKS.make(Spec(spec["name"], spec["params"])).access
    if row["status"] != "done":
        return Trial(row, None, access)
    checksum = read_json(path)["files"]["records"]
    return Trial(row, read_records(path.with_suffix(".parquet"), checksum), access)


@dataclass(frozen=True)
class Trial:
    """One cell: its row of ``results.json``, its records (None where it is not done).

    ``access``: what its attack sees; ``entry``: what it is in the panel, None outside of it.
    """

    row: Document
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
        found = [self.row["attack"]]
        for key in ("output", "source", "attack"):
            value = self.row["attack_params"].get(key)
            found.append(value["name"] if isinstance(value, dict) else value)
        if self.entry is not None and self.entry.effort > 1:
            found.append(f"× {self.entry.effort}")
        return " ".join(str(word) for word in found if word)

    def trouble(self) -> str | None:
        """Return why the cell did not do its work, or None."""
        if self.row["status"] != "done":
            return f"{self.label} {self.row['status']}: {self.row['reason']}"
        no_op = any(flag["id"] == "no-op" for flag in self.row["flags"])
        return f"{self.label} changed nothing" if no_op else None
