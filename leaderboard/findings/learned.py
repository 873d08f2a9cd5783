"""Attacks that learn once for all inputs, beside attacks on each input of the same threat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bench.base.rows import CellRow, Results
from leaderboard.findings.finding import Finding, Group, groups, told
from leaderboard.tables.cells import ThreatTable, labels, threat_tables
from leaderboard.tables.numbers import UNDEFINED, fixed, shares

PLAIN = "undefended"
WORDS = {
    "universal": "one perturbation for all inputs",
    "advgan": "one pass of a generator",
    "patch": "one patch for all inputs",
}
"""What the attacks that learn are called in sentences, in their order; others by their names."""

RATE = "success_rate"


@dataclass(frozen=True)
class Beside:
    """One attack that learns, and one on each input, at the largest budget that both have.

    ``pairs``: for each defense the groups of the two, the learner's first.
    """

    words: str
    threat: str
    other: str
    pairs: Sequence[tuple[Group, Group]]

    @property
    def reached(self) -> list[str]:
        """How much falls to it on each defense, and how much to the other."""
        return [
            f"{mine.label} {shares(mine.by_seed(RATE))} ({shares(theirs.by_seed(RATE))})"
            for mine, theirs in self.pairs
        ]

    @property
    def harder(self) -> list[str]:
        """The defenses on which it surely reaches less than on the undefended network."""
        plain = next((mine for mine, _ in self.pairs if mine.defense == PLAIN), None)
        if plain is None:
            return []
        least, _ = _span(plain) or (0.0, 0.0)
        return [mine.label for mine, _ in self.pairs if (_span(mine) or (0, 1))[1] < least]


def learned(results: Results) -> Finding | None:
    """Tell what attacks that learn reach on each defense, beside attacks on each input."""
    tables = [
        table
        for table in threat_tables(results.cells)
        if {_learns(row) for row in table.rows} == {True, False}
    ]
    if not tables:
        return None
    found = [at for name in _learners(tables) if (at := _beside(name, tables)) is not None]
    return told(
        "learned",
        [(f"{table.title}: success, one value a seed.", _frame(table)) for table in tables]
        + [("What was learnt, one fit for each model.", _costs(tables))],
        found=found,
        plain=PLAIN,
    )


def _learns(row: CellRow) -> bool:
    return row.get("learnt") is not None


def _learners(tables: Sequence[ThreatTable]) -> list[str]:
    """Return the names of the attacks that learn, those with words first."""
    names = dict.fromkeys(row["attack"] for table in tables for row in table.rows if _learns(row))
    return sorted(names, key=lambda name: list(WORDS).index(name) if name in WORDS else len(WORDS))


def _beside(name: str, tables: Sequence[ThreatTable]) -> Beside | None:
    """Hold a learner against the first other attack, under L∞ where there is a choice."""
    mine = [table for table in tables if any(row["attack"] == name for row in table.rows)]
    of_norm = [table for table in mine if table.threat.norm == "linf"] or mine
    table = max(of_norm, key=lambda table: table.threat.budget or 0.0)
    other = next(row["attack"] for row in table.rows if not _learns(row))
    one, two = (
        {group.label: group for group in groups(r for r in table.rows if r["attack"] == attack)}
        for attack in (name, other)
    )
    pairs = [(group, two[label]) for label, group in one.items() if label in two]
    words = WORDS.get(name, name)
    return Beside(words, str(table.threat), other, pairs) if pairs else None


def _frame(table: ThreatTable) -> pd.DataFrame:
    """Return success by defense and attack: a value a seed, and what their intervals span."""
    found: dict[str, dict[str, str]] = {}
    attacks = labels(table.rows, "attack")
    for attack in dict.fromkeys(attacks):
        rows = [row for row, label in zip(table.rows, attacks, strict=True) if label == attack]
        for group in groups(rows):
            found.setdefault(group.label, {"defense": group.label})[attack] = _rates(group)
    return pd.DataFrame(list(found.values())).fillna(UNDEFINED)


def _span(group: Group) -> tuple[float, float] | None:
    """Return what the intervals of all seeds span, None where there is none."""
    ends = [ci for row in group.rows if (ci := row["success_ci"]) is not None]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _rates(group: Group) -> str:
    if (span := _span(group)) is None:
        return UNDEFINED
    low, high = (fixed(100 * end) for end in span)
    return f"{shares(group.by_seed(RATE))} [{low}, {high}]"


def _costs(tables: Sequence[ThreatTable]) -> pd.DataFrame:
    """Return the passes of the model that each attack's fit takes, and those of an attempt."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for table in tables:
        for row, label in zip(table.rows, labels(table.rows, "attack"), strict=True):
            if (learnt := row.get("learnt")) is None or learnt["forwards"] is None:
                continue
            found.setdefault(
                (label, table.title),
                {
                    "attack": label,
                    "threat": str(table.threat),
                    "forward passes of a fit": f"{learnt['forwards']:,}",
                    "backward": f"{learnt['backwards'] or 0:,}",
                    "passes to attack": str((row["forwards"] or 0) + (row["backwards"] or 0)),
                },
            )
    return pd.DataFrame(list(found.values()))
