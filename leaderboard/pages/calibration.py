"""The tables of ``docs/verdict.md``: what the thresholds are on networks of known truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from bench.base.rows import Results, VerdictRow
from bench.claims.calibration import QUANTITIES, Figure
from leaderboard.pages.markdown import table
from leaderboard.tables.cells import labels
from leaderboard.tables.numbers import UNDEFINED, given, number

BEGIN, END = "<!-- calibration -->", "<!-- /calibration -->"


def calibration_tables(figures: Sequence[Figure], results: Results) -> str:
    """Return the tables as markdown."""
    parts = [
        "On honest networks:",
        table(honest_table(figures)),
        "On the others, how often each threshold is crossed, and the range of the figure:",
        table(masked_table(figures)),
        "Verdicts, counted over training seeds:",
        table(verdict_counts(results.verdicts)),
    ]
    return "\n\n".join(parts)


def honest_table(figures: Sequence[Figure]) -> pd.DataFrame:
    """Return one line a threshold: where it lies, the worst honest figure, whether it holds."""
    lines = []
    for flag, quantity in QUANTITIES.items():
        found = [figure for figure in figures if figure.flag == flag and figure.honest]
        values = [figure.value for figure in found]
        crossed = sum(figure.crossed for figure in found)
        lines.append(
            {
                "flag": flag,
                "warns where": quantity,
                "honest figures": len(found),
                "worst": number(_worst(flag, values), 4),
                "crossed": crossed,
                "holds": UNDEFINED if not found else "no" if crossed else "yes",
            }
        )
    return pd.DataFrame(lines)


def masked_table(figures: Sequence[Figure]) -> pd.DataFrame:
    """Return one line a defense that is not honest, one column a threshold."""
    rows = [figure for figure in figures if not figure.honest]
    names = labels([_identity(figure) for figure in rows], "defense")
    flags = [flag for flag in QUANTITIES if any(figure.flag == flag for figure in rows)]
    lines = []
    for name in dict.fromkeys(names):
        mine = [figure for own, figure in zip(names, rows, strict=True) if own == name]
        lines.append({"defense": name, **{flag: _share(mine, flag) for flag in flags}})
    return pd.DataFrame(lines)


def verdict_counts(rows: Sequence[VerdictRow]) -> pd.DataFrame:
    """Return how often each verdict was given: defenses down, norms and budgets across."""
    lines: dict[str, dict[str, str]] = {}
    for name, row in zip(labels(rows, "defense"), rows, strict=True):
        if row["verdict"] != "reference":
            counts = Counter(seed["verdict"] for seed in row["seeds"])
            words = ", ".join(f"{word} {count}" for word, count in counts.most_common())
            line = lines.setdefault(name, {"defense": name})
            line[f"{row['threat']['norm']} {given(row['at'])}"] = words
    return pd.DataFrame(list(lines.values())).fillna(UNDEFINED)


def _identity(figure: Figure) -> dict[str, Any]:
    return {"defense": figure.defense, "defense_params": figure.params}


def _worst(flag: str, values: Iterable[float]) -> float | None:
    # The one quantity that warns where it is small.
    worst = min if flag == "gradient-direction" else max
    return worst(values, default=None)


def _share(figures: Sequence[Figure], flag: str) -> str:
    found = [figure for figure in figures if figure.flag == flag]
    if not found:
        return UNDEFINED
    values = [figure.value for figure in found]
    crossed = sum(figure.crossed for figure in found)
    return f"{crossed}/{len(found)} ({number(min(values), 4)} to {number(max(values), 4)})"


def insert(page: str, tables: str) -> str:
    """Return ``page`` with ``tables`` between its marks; raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"
