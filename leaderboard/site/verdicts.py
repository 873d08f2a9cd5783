"""The verdicts of a page: a table a norm, a line a defense and budget, what stands behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.base.fingerprint import digest
from bench.base.rows import Results, SeedRow, VerdictRow, defense_of, warns
from bench.verdict.rule import MASKING
from leaderboard.figures.svg import intervals
from leaderboard.site.evidence import Evidence, evidence
from leaderboard.tables.cells import labels
from leaderboard.tables.numbers import interval, percent, points, shares
from leaderboard.tables.verdicts import VerdictTable, verdict_table, verdict_tables

BEST = ("reference", "holds", "inconclusive", "no", "not", "masked", "broken")
"""In this order lines stand at first: what others are compared with, then what holds."""

MARKS = {"holds": "▲", "broken": "✕", "masked": "◐", "reference": "○"}
"""A shape beside each verdict's word: colour alone tells nobody."""


@dataclass(frozen=True)
class Line:
    """One defense at one budget: what the cells of its row say, and what sorts them."""

    budget: int
    verdict: str
    kind: str
    mark: str
    worst: str
    drawn: Markup
    naive: str
    delta: str
    breaker: str
    rank: str
    flags: Sequence[str]
    why: str
    values: dict[str, float | None]
    rest: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Subject:
    """One defense under one norm, at every budget."""

    id: str
    name: str
    family: str
    lines: Sequence[Line]
    evidence: Evidence


@dataclass(frozen=True)
class NormTable:
    """All defenses under one norm; ``chosen`` is the place of the headline budget."""

    id: str
    dataset: str
    norm: str
    budgets: Sequence[str]
    chosen: int
    powerless: bool
    sentence: str
    subjects: Sequence[Subject]


def norm_tables(results: Results) -> list[NormTable]:
    """Return one table a data set and norm of the run's panels."""
    return [_norm(results, table) for table in verdict_tables(results.verdicts)]


def headline_lines(table: VerdictTable) -> list[tuple[VerdictRow, str, Line]]:
    """Return the judged defenses of a table at its headline budget, what holds first."""
    frame = verdict_table(table).to_dict("records")
    found = []
    for row, told in zip(table.shown, frame, strict=True):
        if row["rule"] is not None:
            cells = {str(name): str(value) for name, value in told.items()}
            found.append((row, cells["defense"], _line(0, row, cells)))
    return sorted(found, key=lambda one: one[2].values["verdict"] or 0.0)


def _norm(results: Results, table: VerdictTable) -> NormTable:
    at = list(dict.fromkeys(row["at"] for row in table.rows))
    words = [table.at(next(row for row in table.rows if row["at"] == budget)) for budget in at]
    lines: dict[str, list[Line]] = {}
    rows: dict[str, list[VerdictRow]] = {}
    names: dict[str, str] = {}
    for number, budget in enumerate(at):
        here = tuple(row for row in table.rows if row["at"] == budget)
        frame = verdict_table(VerdictTable(table.dataset, table.norm, here))
        for row, told in zip(here, frame.to_dict("records"), strict=True):
            key = digest([table.norm, row["network"], row["recipe"], defense_of(row)])[:12]
            names.setdefault(key, str(told["defense"]))
            rows.setdefault(key, []).append(row)
            cells = {str(name): str(value) for name, value in told.items()}
            lines.setdefault(key, []).append(_line(number, row, cells))
    chosen = at.index(table.shown[0]["at"])
    subjects = [
        Subject(
            f"d{key}",
            names[key],
            rows[key][0]["defense"],
            found,
            evidence(results, rows[key][0], table.norm, words, rows[key]),
        )
        for key, found in lines.items()
    ]
    return NormTable(
        id=f"n{digest([table.dataset, table.norm])[:8]}",
        dataset=table.dataset,
        norm=table.norm_name,
        budgets=words,
        chosen=chosen,
        powerless=table.powerless and table.compared,
        sentence=sentence(table),
        subjects=sorted(subjects, key=lambda one: _place(one, chosen)),  # stable: sweeps ascend
    )


def _place(subject: Subject, chosen: int) -> int:
    line = next((line for line in subject.lines if line.budget == chosen), subject.lines[0])
    return BEST.index(line.kind) if line.kind in BEST else len(BEST)


def _line(number: int, row: VerdictRow, cells: dict[str, str]) -> Line:
    seeds = row["seeds"]
    kind = row["verdict"].replace(",", " ").split(" ")[0]
    raised = dict.fromkeys(flag["id"] for seed in seeds for flag in seed["flags"] if warns(flag))
    flags = sorted(raised, key=lambda name: name not in MASKING)  # what decides comes first
    whys = dict.fromkeys(str(seed["why"]) for seed in seeds if seed["why"])
    shown = ("defense", "verdict", "worst case", "naive", "Δ", "broken by", "rank")
    return Line(
        budget=number,
        verdict=row["verdict"],
        kind=kind,
        mark=MARKS.get(kind, "?"),
        worst=_worst(seeds),
        drawn=intervals([(s["worst_case"], s["worst_case_ci"], s["naive"]) for s in seeds]),
        naive=_rates(seed["naive"] for seed in seeds),
        delta=_deltas(seeds),
        breaker=cells["broken by"],
        rank=cells["rank"],
        flags=flags,
        why=_why(row, list(whys)),
        values={
            "worst": _mean([seed["worst_case"] for seed in seeds]),
            "naive": _mean([seed["naive"] for seed in seeds]),
            "delta": _mean([seed["delta"] for seed in seeds]),
            "rank": None if row["rank"] is None else sum(row["rank"]) / 2,
            "verdict": float(BEST.index(kind) if kind in BEST else len(BEST)),
            "flags": float(len(flags)),
        },
        rest=[(name, told) for name, told in cells.items() if name not in shown],
    )


def _worst(seeds: Sequence[SeedRow]) -> str:
    if len(seeds) == 1:
        return interval(seeds[0]["worst_case"], seeds[0]["worst_case_ci"])
    return _rates(seed["worst_case"] for seed in seeds)


def _rates(values: Iterable[float | None]) -> str:
    known = list(values)
    return percent(known[0]) if len(set(known)) == 1 else shares(known)


def _deltas(seeds: Sequence[SeedRow]) -> str:
    if len(seeds) == 1:
        return points(seeds[0]["delta"], seeds[0]["delta_ci"], 0)
    told = [points(seed["delta"], None, 0) for seed in seeds]
    return told[0] if len(set(told)) == 1 else " / ".join(told)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _why(row: VerdictRow, whys: Sequence[str]) -> str:
    if row["rule"] is None:
        return "The network without a defense: what the others are compared with."
    told = row["why"] or "; ".join(whys)
    more = row["sources_needed"]
    needed = f"; about {more} sources would settle it" if more else ""
    return f"Rule {row['rule']}: {told}{needed}."


def sentence(table: VerdictTable) -> str:
    """Return what a table says, from its numbers: who holds, how many do not, the widest gap."""
    judged = [row for row in table.shown if row["rule"] is not None]
    if not judged:
        return "No defense was judged."
    names = dict(
        zip((row["id"] for row in table.shown), labels(table.shown, "defense"), strict=True)
    )
    held = [row for row in judged if row["verdict"].startswith("holds")]
    left = [f"{names[row['id']]} ({_worst(row['seeds'])} left)" for row in held]
    told = f"{len(held) or 'none'} of {len(judged)} defenses {'hold' if len(held) > 1 else 'holds'}"
    if held:
        told += f": {', '.join(left[:3])}" + (f" and {len(left) - 3} more" if left[3:] else "")
    counts = Counter(row["verdict"] for row in judged if row not in held)
    rest = ", ".join(f"{number} × {verdict}" for verdict, number in counts.most_common())
    gap = max(judged, key=lambda row: _mean([s["drop"] for s in row["seeds"]]) or 0.0)
    drop = _mean([seed["drop"] for seed in gap["seeds"]]) or 0.0
    told = f"{told}; {rest}." if rest else f"{told}."
    if drop >= 0.1:
        naive, worst = (
            _rates(values)
            for values in zip(*((s["naive"], s["worst_case"]) for s in gap["seeds"]), strict=True)
        )
        told += (
            f" On {names[gap['id']]} the naive attack leaves {naive}, all attacks together {worst}."
        )
    return told
