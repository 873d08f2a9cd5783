"""A run in a few lines: one a defense, or one a sweep of them that fared alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.verdict.rule import MASKING
from leaderboard.tables.cells import Row, ThreatTable, labels, ordered
from leaderboard.tables.numbers import UNDEFINED, fixed
from leaderboard.tables.verdicts import VerdictTable

MANY = 10
"""From so many defenses on, those of a sweep that fared alike share a line."""


@dataclass(frozen=True)
class Warned:
    """A flag that warns, and what raised it."""

    flag: str
    severity: str
    advice: str
    raised_by: tuple[str, ...]

    @property
    def order(self) -> tuple[bool, bool, int]:
        """What sorts the one that matters most first: an error, then an attack that is masked."""
        return self.severity != "error", self.flag not in MASKING, -len(self.raised_by)


def summary_table(table: VerdictTable) -> pd.DataFrame:
    """Return verdict, naive attack, worst case and what broke most, in the matrix's order."""
    rows = _by_sweep(table)
    names = labels(rows, "defense")
    lines = []
    for name, places in _alike(names, rows, [str(row["verdict"]) for row in rows]):
        seeds = [seed for place in places for seed in rows[place]["seeds"]]
        lines.append(
            {
                "defense": name,
                "verdict": rows[places[0]]["verdict"],
                "naive": _left(seed["naive"] for seed in seeds),
                "worst": _left(seed["worst_case"] for seed in seeds),
                "broken by": _breaker(seeds),
            }
        )
    return pd.DataFrame(lines)


def _by_sweep(table: VerdictTable) -> list[Row]:
    return ordered([{**row, "seed": 0} for row in table.shown])


def _left(shares: Iterable[float | None]) -> str:
    """Return the range of some shares in whole per cent, as ``21..88``."""
    known = sorted(share for share in shares if share is not None)
    ends = dict.fromkeys(fixed(100 * share, 0) for share in known[:1] + known[-1:])
    return "..".join(ends) or UNDEFINED


def _breaker(seeds: Sequence[Row]) -> str:
    broke: Counter[str] = Counter()
    for item in (item for seed in seeds for item in seed["broken_by"]):
        broke[item["attack"]] += item["breaks"]
    return broke.most_common(1)[0][0] if broke else UNDEFINED


def undefended(table: VerdictTable) -> str:
    """Return what the panel leaves of the undefended network, in per cent, or a dash."""
    return _left(seed["undefended"] for row in table.shown for seed in row["seeds"])


def reasoned(table: VerdictTable, verdict: str) -> list[tuple[str, list[str]]]:
    """Return each reason why a verdict that begins so was given, with its defenses."""
    rows = _by_sweep(table)
    reasons: dict[str, list[str]] = {}
    for name, row in zip(labels(rows, "defense"), rows, strict=True):
        if row["rule"] is not None and str(row["verdict"]).startswith(verdict):
            reasons.setdefault(str(row["why"]), []).append(name)
    return list(reasons.items())


def attack_summary(tables: Iterable[ThreatTable]) -> pd.DataFrame:
    """Return one line a model and threat model: the strongest attack, and what all leave."""
    return pd.DataFrame([line for table in tables for line in _attack_lines(table)])


def _attack_lines(table: ThreatTable) -> Iterator[dict[str, str]]:
    rows = ordered(table.rows)
    attacks = dict(zip((row["id"] for row in rows), labels(rows, "attack"), strict=True))
    models: dict[str, list[Row]] = {}
    for name, row in zip(labels(rows, "defense"), rows, strict=True):
        models.setdefault(name, []).append(row)
    best = {name: _strongest(group) for name, group in models.items()}
    outcomes = [UNDEFINED if row is None else attacks[row["id"]] for row in best.values()]
    names = list(models)
    for name, places in _alike(names, [models[each][0] for each in names], outcomes):
        inside = [names[place] for place in places]
        every = [row for each in inside for row in models[each]]
        strongest = [found for each in inside if (found := best[each]) is not None]
        budget = table.threat.budget
        yield {
            "threat": str(table.threat),
            "defense": name,
            "accuracy": _left(row["accuracy"] for row in every),
            "strongest attack": outcomes[places[0]],
            "success": _left(row["success_rate"] for row in strongest),
            "worst case": _left(() if budget is None else (row["worst_case"] for row in every)),
        }


def _strongest(rows: Iterable[Row]) -> Row | None:
    known = [row for row in rows if row["success_rate"] is not None]
    return max(known, key=lambda row: float(row["success_rate"]), default=None)


def _alike(
    names: Sequence[str], rows: Sequence[Row], outcomes: Sequence[str]
) -> list[tuple[str, list[int]]]:
    """Return names and places in ``rows``: a sweep that came out alike is one, if there are MANY.

    A temperature is written T.
    """
    groups: dict[object, list[int]] = {}
    for place, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
        key = (row["defense"], outcome) if len(rows) >= MANY else place
        groups.setdefault(key, []).append(place)
    return [
        (_swept([names[place] for place in places], names).replace("temperature=", "T="), places)
        for places in groups.values()
    ]


def _swept(names: Sequence[str], every: Sequence[str]) -> str:
    """Return one name for several: what they share, and how far their parameter goes."""
    if len(names) == 1:
        return names[0]
    words = [name.split(" ") for name in names]
    if len({len(line) for line in words}) > 1:
        return f"{words[0][0]} ({len(names)} of them)"
    differ = [place for place, column in enumerate(zip(*words, strict=True)) if len({*column}) > 1]
    if len(differ) != 1:
        return f"{words[0][0]} ({len(names)} of them)"
    (place,) = differ
    key = words[0][place].partition("=")[0]
    values = [line[place].partition("=")[2] for line in words]
    first = every.index(names[0])
    in_a_row = list(every[first : first + len(names)]) == list(names)
    told = f"{values[0]}..{values[-1]}" if in_a_row and len(values) > 2 else ",".join(values)
    return " ".join([*words[0][:place], f"{key}={told}", *words[0][place + 1 :]])


def warned(cells: Sequence[Row], verdicts: Sequence[Row]) -> list[Warned]:
    """Return every flag that warns, the one that matters most first."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    of_panels = [[flag for seed in row["seeds"] for flag in seed["flags"]] for row in verdicts]
    for rows, raised in ((verdicts, of_panels), (cells, [row["flags"] for row in cells])):
        for name, flags in zip(labels(rows, "defense"), raised, strict=True):
            for flag in flags:
                if flag["severity"] != "info":
                    key = (flag["id"], flag["severity"], flag["advice"])
                    found.setdefault(key, {})[name] = None
    return sorted((Warned(*key, tuple(names)) for key, names in found.items()),
                  key=lambda one: one.order)  # fmt: skip
