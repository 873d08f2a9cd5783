"""The comparison of two runs as a page of the same kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench.audit.diff import CellPair, Changes, RunComparison
from bench.base.rows import CellRow, VerdictRow, defense_of
from bench.base.text import cut
from bench.base.types import ThreatModel
from bench.evidence.finished_run import FinishedRun
from leaderboard.site.document import document
from leaderboard.site.verdicts import Line, headline_lines
from leaderboard.tables.cells import defense_labels, labels
from leaderboard.tables.numbers import UNDEFINED, percent, points
from leaderboard.tables.verdicts import VerdictTable, verdict_tables

LISTED = 500
"""Changed cells that are listed; more of them are counted."""

SHOWN = 200
"""Characters of a value that is shown."""


@dataclass(frozen=True)
class VerdictChange:
    """One defense at one headline budget in two runs; a side is None where it has no such row."""

    name: str
    threat: str
    before: Line | None
    after: Line | None
    moved: str
    moved_value: float | None

    @property
    def changed(self) -> bool:
        """Whether the verdict itself is another one, or there is only one."""
        return (self.before and self.before.verdict) != (self.after and self.after.verdict)


@dataclass(frozen=True)
class CellChange:
    """One cell whose numbers differ: success before and after, and what is recorded to differ."""

    name: str
    threat: str
    before: str
    after: str
    moved: str
    moved_value: float | None
    causes: Sequence[tuple[str, str, str]]
    numbers: int
    failure: bool


def diff_page(first: FinishedRun, second: FinishedRun, compared: RunComparison) -> str:
    """Return the page of two runs, as ``compare_runs`` held them against each other."""
    changed = [pair for pair in compared.pairs if pair.numbers]
    every = [pair.first for pair in compared.pairs]
    names = dict(
        zip(map(id, every), zip(defense_labels(every), labels(every, "attack"), strict=True),
            strict=True)
    )  # fmt: skip
    return document(
        "diff.html.j2",
        title=f"{first.folder.root.name} against {second.folder.root.name}",
        runs=(first.folder.root.name, second.folder.root.name),
        verdicts=_verdicts(first.results.verdicts, second.results.verdicts),
        pairs=len(compared.pairs),
        cells=[_cell(pair, *names[id(pair.first)]) for pair in changed[:LISTED]],
        more=max(0, len(changed) - LISTED),
        changed=len(changed),
        failures=sum(pair.failure for pair in changed),
        silent=sum(bool(pair.keys) for pair in compared.pairs if not pair.numbers),
        only=[(where, _named(rows)) for where, rows in (
            (first.folder.root.name, compared.only_first),
            (second.folder.root.name, compared.only_second))],
    )  # fmt: skip


def _named(rows: Sequence[CellRow]) -> list[str]:
    pairs = zip(defense_labels(rows), labels(rows, "attack"), strict=True)
    return list(dict.fromkeys(f"{defense} under {attack}" for defense, attack in pairs))


def _verdicts(first: Sequence[VerdictRow], second: Sequence[VerdictRow]) -> list[VerdictChange]:
    """Return every defense at every budget that both or one of the runs judged, changes first."""
    sides = [_lines(first), _lines(second)]
    found = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        before, after = sides[0].get(key), sides[1].get(key)
        name, threat, _ = before or after or ("", "", None)
        lines = [side[2] if side else None for side in (before, after)]
        worst = [line.values["worst"] if line else None for line in lines]
        moved = None if None in worst else (worst[1] or 0.0) - (worst[0] or 0.0)
        found.append(VerdictChange(name, threat, lines[0], lines[1], points(moved, None, 0), moved))
    return sorted(found, key=lambda one: not one.changed)


def _lines(rows: Sequence[VerdictRow]) -> dict[str, tuple[str, str, Line]]:
    found = {}
    for table in verdict_tables(rows):
        for budget in dict.fromkeys(row["at"] for row in table.rows):
            here = tuple(row for row in table.rows if row["at"] == budget)
            for row, name, line in headline_lines(VerdictTable(table.dataset, table.norm, here)):
                key = repr((row["dataset"], defense_of(row), table.norm, budget))
                found[key] = (name, f"{table.norm_name}, {table.at(row)}", line)
    return found


def _cell(pair: CellPair, defense: str, attack: str) -> CellChange:
    rates = [row["success_rate"] for row in (pair.first, pair.second)]
    moved = None if None in rates else (rates[1] or 0.0) - (rates[0] or 0.0)
    return CellChange(
        name=f"{defense} under {attack}",
        threat=str(ThreatModel(**pair.first["threat"])),
        before=_success(pair.first),
        after=_success(pair.second),
        moved=points(moved),
        moved_value=moved,
        causes=[*_told(pair.keys), *_told(pair.environment)],
        numbers=len(pair.numbers),
        failure=pair.failure,
    )


def _success(row: CellRow) -> str:
    return percent(row["success_rate"]) if row["status"] == "done" else row["status"]


def _told(changes: Changes) -> list[tuple[str, str, str]]:
    return [(path, _short(before), _short(after)) for path, (before, after) in changes.items()]


def _short(value: object) -> str:
    if value is None:
        return UNDEFINED
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return cut(text, SHOWN)
