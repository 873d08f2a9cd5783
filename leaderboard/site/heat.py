"""The matrix as a heat map: defenses down, attacks across, the success of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.base.fingerprint import digest
from bench.base.rows import CellRow, Results
from bench.base.types import ThreatModel
from leaderboard.figures.svg import Series, axes
from leaderboard.site.evidence import Evidence, evidence, seeded
from leaderboard.tables.cells import defense_labels, labels, ordered, threat_tables
from leaderboard.tables.numbers import UNDEFINED, counted, interval, percent
from leaderboard.tables.sweeps import temperature_of
from leaderboard.tables.verdicts import VerdictTable

STEPS = 10
"""Shades of the map."""

MOST = 20_000
"""Cells of one map that a page can show."""


@dataclass(frozen=True)
class HeatCell:
    """One pair: ``shade`` is None where no success is known."""

    text: str
    shade: int | None
    title: str
    value: float | None


@dataclass(frozen=True)
class HeatLine:
    """One model: its cells, what all attacks leave, and its evidence where no verdict has it."""

    name: str
    family: str
    cells: Sequence[HeatCell]
    worst: str
    worst_value: float | None
    evidence: Evidence | None


@dataclass(frozen=True)
class HeatMap:
    """All pairs of one threat model."""

    id: str
    title: str
    attacks: Sequence[str]
    lines: Sequence[HeatLine]
    sourceless: bool
    left_out: int
    open: bool


def heat_maps(results: Results) -> list[HeatMap]:
    """Return one map a data set and threat model, in order of first appearance."""
    told = {row["threat"]["norm"] for row in results.verdicts}
    headlines = [ThreatModel(**row["threat"]) for row in results.verdicts if row["headline"]]
    found = []
    for table in threat_tables(results.cells):
        rows = ordered(table.rows)
        norm = table.threat.norm
        behind = norm not in told and norm != "none"
        shown = table.threat in headlines or not headlines
        found.append(_map(results, table.title, table.threat, rows, behind, shown))
        told.add(norm)
    return found


def _map(
    results: Results, title: str, threat: ThreatModel, rows: Sequence[CellRow], behind: bool,
    shown_open: bool,
) -> HeatMap:  # fmt: skip
    names = defense_labels(rows)
    attacks = list(dict.fromkeys(labels(rows, "attack")))
    lines: dict[str, dict[str, CellRow]] = {}
    for name, attack, row in zip(names, labels(rows, "attack"), rows, strict=True):
        lines.setdefault(name, {})[attack] = row
    shown = dict(list(lines.items())[: max(1, MOST // max(1, len(attacks)))])
    made = []
    for name, cells in shown.items():
        row = next(iter(cells.values()))
        made.append(
            HeatLine(
                name,
                row["defense"],
                [_cell(name, attack, cells.get(attack)) for attack in attacks],
                UNDEFINED if threat.budget is None
                else interval(row["worst_case"], row["worst_case_ci"]),
                row["worst_case"],
                evidence(results, row, threat.norm, ()) if behind else None,
            )
        )  # fmt: skip
    return HeatMap(
        id=f"h{digest([title, str(threat)])[:8]}",
        title=title,
        attacks=attacks,
        lines=made,
        sourceless=threat.norm == "none",
        left_out=len(lines) - len(shown),
        open=shown_open,
    )


def _cell(name: str, attack: str, row: CellRow | None) -> HeatCell:
    if row is None:
        return HeatCell(UNDEFINED, None, f"{name} under {attack}: not asked", None)
    if row["status"] != "done":
        return HeatCell(row["status"], None, f"{row['status']}: {row['reason']}", None)
    rate = row["success_rate"]
    if rate is None:
        return HeatCell(UNDEFINED, None, f"{name} under {attack}: nothing to attack", None)
    counts = counted(row["successes"], row["attempts"])
    text = percent(rate, 0).removesuffix(" %")
    return HeatCell(text, min(STEPS, round(STEPS * rate)), f"{counts}, cell {row['id']}", rate)


def sweeps(tables: Sequence[VerdictTable]) -> list[tuple[str, str, Markup]]:
    """Return a figure a norm and defense that is swept over a temperature.

    Its title, the defense, and what naive attack and all attacks leave against the temperature, at
    the headline budget.
    """
    found = []
    for table in tables:
        kinds = dict.fromkeys(row["defense"] for row in table.shown)
        for kind in kinds:
            mine = [row for row in table.shown if row["defense"] == kind]
            rows = [(t, row) for row in mine if (t := temperature_of(row)) is not None and t > 0]
            if len({temperature for temperature, _ in rows}) < 3:
                continue
            series = []
            for key, field, words in (("naive", "naive", "naive attack"),
                                      ("worst", "worst_case", "all attacks")):  # fmt: skip
                seeds: dict[int, list[tuple[float, float]]] = {}
                for temperature, row in rows:
                    for seed in row["seeds"]:
                        value = seed[field]  # type: ignore[literal-required]
                        if value is not None:
                            seeds.setdefault(seed["seed"], []).append((temperature, value))
                series += [
                    Series(key, seeded(words, seed, seeds), sorted(line))
                    for seed, line in seeds.items()
                ]
            title = f"{kind}, {table.title}"
            told = "; ".join(
                f"{line.name}: " + ", ".join(f"{percent(v)} at T = {x:g}" for x, v in line.points)
                for line in series
            )
            drawn = axes(f"{title}: accuracy left against the temperature", told, series,
                         "temperature T (logarithmic)", logarithmic=True)  # fmt: skip
            found.append((title, kind, drawn))
    return found
