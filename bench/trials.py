"""The cells of a finished run with their records, by the model that they attack."""

from __future__ import annotations

from bench import registry
from bench.finished import FinishedRun
from bench.plan import Node
from bench.store import read_json, read_records
from bench.subject import Trial
from bench.types import Spec


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
