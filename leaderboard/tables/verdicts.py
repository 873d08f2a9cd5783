"""Rows of ``verdicts.json`` as tables: one a norm at the budget where the panel has power."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.base.rows import SeedRow, VerdictRow, warns
from bench.verdict.rule import MARGIN
from leaderboard.tables.cells import labels
from leaderboard.tables.numbers import UNDEFINED, counted, fixed, given, percent, points
from leaderboard.tables.sweeps import PLAIN

MEANING = (
    f"A defense **holds** where the worst of all attacks leaves at least {100 * MARGIN:g} points "
    "more of the "
    "sources than on the undefended network, surely (the lower end of the paired 90 % interval of "
    "Δ), with no warning and at three training seeds; it is **broken** where it surely leaves less "
    "than that. It is **masked** where one attack of the panel beats another that should be as "
    "strong, or the gradients are gone: its success under the naive attack is no evidence, and "
    "*masked, broken* says that nothing lies beneath. Everything else is **inconclusive**: a cell "
    "failed, the panel has no power at this budget, or too few sources were attacked; the reason "
    "stands below."
)
"""What the verdicts mean, in three sentences."""


@dataclass(frozen=True)
class VerdictTable:
    """All defenses under one norm on one data set; ``rows`` at every budget of the panel.

    ``shown``: the rows at the headline budget, the smallest at which the panel has power, or at
    the largest where it has none.
    """

    dataset: str
    norm: str
    rows: tuple[VerdictRow, ...]

    @property
    def shown(self) -> list[VerdictRow]:
        """The rows that the table is about."""
        found = [row for row in self.rows if row["headline"]]
        return found or [row for row in self.rows if row["at"] == self.rows[-1]["at"]]

    @property
    def title(self) -> str:
        """Data set, norm and budget in words."""
        return f"{self.dataset}: {self.norm_name}, {self.at(self.shown[0])}"

    @property
    def norm_name(self) -> str:
        """The norm as people write it."""
        return {"l0": "L0", "l2": "L2", "linf": "L∞"}[self.norm]

    @property
    def powerless(self) -> bool:
        """Whether the panel leaves too much of the undefended network at every budget."""
        return self.compared and not any(row["headline"] for row in self.rows)

    @property
    def compared(self) -> bool:
        """Whether there is a network that the defenses are compared with."""
        # Rows that were published before it was said are all compared with the undefended one.
        return any(row.get("reference", row) is not None for row in self.rows)

    @property
    def reference(self) -> str:
        """What to call that network."""
        named = {(row.get("reference") or {"defense": PLAIN})["defense"] for row in self.rows}
        return PLAIN if named <= {PLAIN} else "reference"

    def at(self, row: VerdictRow) -> str:
        """Return the budget of a row in words."""
        return f"{row['at']} features" if self.norm == "l0" else f"budget {given(row['at'])}"


def verdict_tables(rows: Iterable[VerdictRow]) -> list[VerdictTable]:
    """Group ``rows`` of ``verdicts.json`` by data set and norm, in order of first appearance."""
    groups: dict[tuple[str, str], list[VerdictRow]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["threat"]["norm"]), []).append(row)
    return [VerdictTable(name, norm, tuple(group)) for (name, norm), group in groups.items()]


def verdict_table(table: VerdictTable, brief: bool = False) -> pd.DataFrame:
    """Return one line a defense; with several training seeds, their values one after another.

    ``brief`` leaves out, for a terminal, what the page shows beside it.
    """
    rows = table.shown
    moved = any(seed["moved"] is not None for row in rows for seed in row["seeds"])
    lines = []
    for name, row in zip(labels(rows, "defense"), rows, strict=True):
        seeds = row["seeds"]
        line = {
            "defense": name,
            "verdict": row["verdict"],
            "worst case": _values(seeds, lambda s: _worst(s, brief)),
            "drop": _values(seeds, lambda s: _points(s["drop"])),
            "Δ": _values(seeds, lambda s: points(s["delta"], None if brief else s["delta_ci"], 0)),
            "broken by": _breaker(seeds),
            "cosine": _values(seeds, lambda s: fixed(s["gradient_cosine"], 2)),
            "zero gradients": _values(seeds, lambda s: percent(s["zero_share"])),
            "rank": _rank(row["rank"]),
        }
        if moved:
            line["moved"] = _values(seeds, lambda s: _points(s["moved"]))
        if not brief:
            line["naive"] = _values(seeds, lambda s: percent(s["naive"]))
            line["queries"] = _values(seeds, _queries)
        lines.append(line)
    return pd.DataFrame(lines)


def budget_table(table: VerdictTable) -> pd.DataFrame:
    """Return verdict and worst case of each defense at every budget."""
    lines: dict[str, dict[str, str]] = {}
    for name, row in zip(labels(table.rows, "defense"), table.rows, strict=True):
        worst = _values(row["seeds"], lambda s: percent(s["worst_case"]))
        line = lines.setdefault(name, {"defense": name})
        line[table.at(row)] = worst if row["rule"] is None else f"{row['verdict']}: {worst}"
    return pd.DataFrame(list(lines.values())).fillna(UNDEFINED)


def reasons(table: VerdictTable) -> list[tuple[str, VerdictRow]]:
    """Return the judged rows of ``table``, each with the name of its defense."""
    named = zip(labels(table.shown, "defense"), table.shown, strict=True)
    return [(name, row) for name, row in named if row["rule"] is not None]


def raised(rows: Iterable[VerdictRow]) -> dict[tuple[str, str], list[str]]:
    """Return the warnings on models and panels: which defenses, by flag and advice."""
    found: dict[tuple[str, str], list[str]] = {}
    rows = list(rows)
    for name, row in zip(labels(rows, "defense"), rows, strict=True):
        for flag in (flag for seed in row["seeds"] for flag in seed["flags"]):
            names = found.setdefault((flag["id"], flag["advice"]), [])
            if warns(flag) and name not in names:
                names.append(name)
    return {key: names for key, names in found.items() if names}


def _values(seeds: Sequence[SeedRow], show: Callable[[SeedRow], str]) -> str:
    shown = [show(seed) for seed in seeds]
    return shown[0] if len(set(shown)) == 1 else " / ".join(shown)


def _worst(seed: SeedRow, brief: bool) -> str:
    share, total = seed["worst_case"], seed["sources"]
    if share is None or brief:
        return percent(share)
    return f"{percent(share)} ({counted(round(share * total), total)})"


def _points(value: float | None) -> str:
    return fixed(None if value is None else 100 * value, 0)


def _breaker(seeds: Sequence[SeedRow]) -> str:
    """Return the attack that broke most sources over all seeds, and how many only it broke."""
    breaks: dict[str, list[int]] = {}
    for item in (item for seed in seeds for item in seed["broken_by"]):
        counts = breaks.setdefault(item["attack"], [0, 0])
        counts[0] += item["breaks"]
        counts[1] += item["only"]
    if not breaks:
        return UNDEFINED
    name = max(breaks, key=lambda attack: breaks[attack])
    total, only = breaks[name]
    return f"{name}: {total}, {only} alone"


def _rank(bounds: Sequence[int] | None) -> str:
    if bounds is None:
        return UNDEFINED
    low, high = bounds
    return str(low) if low == high else f"{low}–{high}"


def _queries(seed: SeedRow) -> str:
    counts = [seed["forwards"], seed["backwards"]]
    return " + ".join(UNDEFINED if count is None else f"{count:,}" for count in counts)
