"""A finished run, read back from its folder alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.base.files import read_json
from bench.base.places import start_at
from bench.base.rows import CellRow, Results
from bench.base.types import DamagedError, Document, UserError
from bench.evidence.folder import RunFolder
from bench.plan.graph import Node, Plan, read_plan


@dataclass(frozen=True)
class FinishedRun:
    """What a run left: its plan, what its records came to, what it ran on."""

    folder: RunFolder
    plan: Plan
    results: Results
    environment: Document

    @property
    def rows(self) -> list[CellRow]:
        """The rows of ``results.json``, one a cell."""
        return self.results.cells

    def cell(self, prefix: str) -> Node:
        """Return the cell whose id is or begins with ``prefix``; raises UserError otherwise."""
        cells = self.plan.of("cell")
        found = [node for node in cells if node.id.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        shown = ", ".join(node.id for node in found or cells)
        problem = "is ambiguous" if found else "is the id of no cell"
        raise UserError(f"{prefix!r} {problem} of {self.folder.root}: valid: {shown}")

    def row(self, node: Node) -> CellRow | None:
        """Return the row of ``results.json`` that belongs to a cell, None where it has none."""
        return next((row for row in self.rows if row["id"] == node.id), None)

    def fits(self) -> dict[str, Node]:
        """Return the fits of the plan by id."""
        return {node.id: node for node in self.plan.of("fit")}


def read_run(root: Path) -> FinishedRun:
    """Read a results folder; relative paths of its plugins start where they did in the run.

    Raises UserError where it is no finished run, is damaged at its top or of a newer schema.
    """
    folder = RunFolder(root.absolute())
    folder.check_schema()
    try:
        stored = _read(folder, "plan.json", dict)
        plan = read_plan(stored)
        results = _results(root, lambda name: _read(folder, name, list))
        environment = _read(folder, "environment.json", dict)
    except (DamagedError, UserError) as error:
        raise UserError(f"{root} is no finished run: {error}") from error
    base = folder.root / str(stored.get("base", ""))
    start_at(base.resolve() if "base" in stored and base.is_dir() else None)
    for name, rows in results.documents().items():
        if broken := [row for row in rows if not isinstance(row, dict) or "id" not in row]:
            raise UserError(
                f"{root} is no finished run: {name} holds a row without id: {broken[0]}"
            )
    return FinishedRun(folder, plan, results, environment)


def read_results(root: Path) -> Results:
    """Read what a run, or what is published of one, came to; raises DamagedError."""
    return _results(root, lambda name: read_json(root / name))


def _results(root: Path, read: Callable[[str], list[Any]]) -> Results:
    further = [read(name) if (root / name).exists() else [] for name in Results.FURTHER]
    return Results(*(read(name) for name in Results.FILES), *further)


def _read(folder: RunFolder, name: str, kind: type) -> Any:
    document = read_json(folder.top(name))
    if not isinstance(document, kind):
        raise DamagedError(f"{folder.top(name)} holds no JSON {kind.__name__}")
    return document
