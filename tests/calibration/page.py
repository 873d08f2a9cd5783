"""The tables of ``docs/verdict.md``: how often each flag is wrong on networks of known truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from bench.verdict.flags import (
    ALIKE,
    COSINE,
    NO_ANSWER_SHARE,
    PROBABILITIES,
    ROUTED,
    ZERO_SHARE,
)
from bench.verdict.panel_flags import BLACK_BOX_NET, NET, P_VALUE, UNBOUNDED_LEFT
from bench.verdict.rates import wilson
from bench.verdict.rule import MARGIN
from leaderboard.pages.markdown import table
from leaderboard.tables.numbers import UNDEFINED, number
from tests.calibration.population import Kind

TWINS = "twins"
"""No flag, but what the margin of a verdict rests on: how far two equal networks differ."""

Row = dict[str, Any]

QUANTITIES: dict[tuple[str, str | None], str] = {
    ("zero-gradient", None): f"share of sources with a zero gradient, at least {ZERO_SHARE:g}",
    ("gradient-direction", None): f"median cosine, below {COSINE:g}",
    ("gradient-mismatch", None): "see below",
    ("stochastic", None): "any row answered otherwise, undeclared",
    ("stateful", None): "any row",
    ("batch-dependent", None): "any row",
    ("no-answer", None): f"share of rows, at least {NO_ANSWER_SHARE:g}",
    ("surrogate", None): f"share of rows answered alike, below {ALIKE:g}",
    ("routed", None): f"share of rows, at least {ROUTED:g}",
    ("probabilities", None): f"share of rows, at least {PROBABILITIES:g}",
    ("chance", None): "accuracy of guessing",
    ("naive-beaten", "linf"): f"net gain, at least {NET:g}, and p < {P_VALUE:g}",
    ("black-box-beats-gradient", "linf"): f"net gain of the black box, at least {NET:g}",
    ("unbounded-budget", "linf"): f"accuracy left at ε = 1, above {UNBOUNDED_LEFT:g}",
    ("log-odds-beats-probs", "l0"): f"net gain, at least {NET:g}, and p < {P_VALUE:g}",
    ("black-box-beats-gradient", "l0"): f"net gain of the black box, at least {BLACK_BOX_NET:g}",
}
"""By flag and norm: what is measured, and from where on it warns."""

SMALL = ("gradient-direction", "gradient-mismatch", "surrogate")
"""Flags that warn where their figure is small."""

NAMES = {None: "", "linf": " (L∞)", "l0": " (L0)"}


def tables(rows: Sequence[Row], kinds: Sequence[Kind], twins: Sequence[float] = ()) -> str:
    """Return the tables as markdown; ``twins``: lower ends of Δ that other runs found."""
    known = {kind.label: kind for kind in kinds}
    rows = [row for row in rows if row["kind"] in known]
    honest = [row for row in rows if known[row["kind"]].honest]
    dishonest = [row for row in rows if not known[row["kind"]].honest]
    own = [row for row in dishonest if row["flag"] in known[row["kind"]].own]
    parts = [
        _population(honest, "honest"),
        _population(dishonest, "dishonest"),
        table(pd.DataFrame([_line(key, honest, own) for key in QUANTITIES])),
        _named("False alarms", [row for row in honest if row["raised"]]),
        _named("Missed", [row for row in own if row["raised"] is False]),
        _twins([*twins, *(row["value"] for row in rows if row["flag"] == TWINS)]),
    ]
    return "\n\n".join(part for part in parts if part)


def _population(rows: Sequence[Row], word: str) -> str:
    models = {(row["kind"], row["seed"]) for row in rows}
    seeds = sorted({seed for _, seed in models})
    kinds = len({kind for kind, _ in models})
    shown = ", ".join(map(str, seeds))
    return f"{kinds} {word} kinds, {len(models)} fitted models, training seeds {shown}."


def _line(key: tuple[str, str | None], honest: Sequence[Row], own: Sequence[Row]) -> Row:
    flag, norm = key
    alarms, misses = (
        [row for row in rows if (row["flag"], row["norm"]) == key] for rows in (honest, own)
    )
    worst = min if flag in SMALL else max
    values = [row["value"] for row in alarms if row["value"] is not None]
    return {
        "flag": flag + NAMES[norm],
        "warns where": QUANTITIES[key],
        "false alarms": _rate([row["raised"] for row in alarms], True),
        "worst honest figure": number(worst(values, default=None), 4),
        "missed": _rate([row["raised"] for row in misses], False),
        "kinds": len({row["kind"] for row in misses}) or UNDEFINED,
    }


def _rate(raised: Iterable[bool | None], bad: bool) -> str:
    """Return how many are ``bad``, of how many, with the 95 % interval in per cent."""
    told = [value for value in raised if value is not None]
    if not told:
        return UNDEFINED
    count = sum(value is bad for value in told)
    low, high = wilson(count, len(told)) or (0.0, 1.0)
    return f"{count} of {len(told)} [{100 * low:.1f}, {100 * high:.1f}]"


def _named(title: str, rows: Sequence[Row]) -> str:
    counts = Counter((row["flag"] + NAMES[row["norm"]], row["kind"]) for row in rows)
    told = [f"{flag} on `{kind}` ({count})" for (flag, kind), count in sorted(counts.items())]
    return f"{title}: {'; '.join(told) if told else 'none'}."


def _twins(lows: Sequence[float]) -> str:
    if not lows:
        return ""
    return (
        f"Twins: the lower end of Δ between two networks that differ in their seed alone is at "
        f"most {100 * max(lows):.0f} points ({len(lows)} pairs); a gain needs {100 * MARGIN:.0f}."
    )


def insert(page: str, name: str, tables: str) -> str:
    """Return ``page`` with ``tables`` between the marks of ``name``; raises ValueError without."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the page has no {first} … {last}")
    return f"{before}{first}\n\n{tables}\n\n{last}{after}"
