"""The parts of every finding: what it is, and how rows of several seeds become words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from leaderboard.tables.cells import UNDEFINED, Row, labels

MINUS = "−"

TRAINED = ("adversarial_training", "trades", "virtual_adversarial_training")
"""Defenses that train on perturbed inputs: what the findings call robust training."""

WHOLE = (-math.inf, math.inf)

TINY = 1e-3
"""Below, a number is written in powers of ten."""


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows, made of its rows alone.

    ``sentences``: two, in plain text; ``tables``: each with its caption; ``figures``: names of
    files in ``figures/``, shown where they were drawn; ``notes``: how it was measured, and what it
    does not say.
    """

    title: str
    sentences: tuple[str, str]
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    figures: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Group:
    """The rows of one defense, one a training seed, and its label among its namesakes."""

    label: str
    rows: tuple[Row, ...]

    @property
    def defense(self) -> str:
        """The registered name."""
        return str(self.rows[0]["defense"])

    @property
    def params(self) -> Row:
        """The parameters."""
        params: Row = self.rows[0]["defense_params"]
        return params

    def values(self, key: str) -> list[float]:
        """Return what is known of ``key``, one value a seed."""
        return [float(row[key]) for row in self.rows if row.get(key) is not None]

    def by_seed(self, key: str) -> list[float | None]:
        """Return ``key`` of every seed in order, None where it is not known."""
        return [None if row.get(key) is None else float(row[key]) for row in self.rows]

    def mean(self, key: str) -> float | None:
        """Return the mean over seeds, None where nothing is known."""
        values = self.values(key)
        return sum(values) / len(values) if values else None

    def spanned(self, key: str, digits: int = 3) -> str:
        """Return the mean over seeds, with brackets that span the intervals of all seeds."""
        ends = [row[f"{key}_ci"] for row in self.rows if row.get(f"{key}_ci") is not None]
        text = number(self.mean(key), digits)
        if not ends:
            return text
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def groups(rows: Iterable[Row]) -> list[Group]:
    """Return the rows by defense, in their order."""
    rows = list(rows)
    found: dict[str, list[Row]] = {}
    for label, row in zip(labels(rows, "defense"), rows, strict=True):
        found.setdefault(label, []).append(row)
    return [Group(label, tuple(members)) for label, members in found.items()]


def apart(low: Group, high: Group, key: str) -> bool:
    """Return whether every interval of ``key`` in ``low`` ends below every one in ``high``.

    A seed at which nothing is known says nothing; a mean without an interval is never apart.
    """
    sides = [
        # Without an interval it may be anything: no end of it lies below another.
        [row.get(f"{key}_ci") or WHOLE for row in group.rows if row.get(key) is not None]
        for group in (low, high)
    ]
    if not all(sides):
        return False
    return bool(max(high for _, high in sides[0]) < min(low for low, _ in sides[1]))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, or a dash where it is undefined.

    Never fewer digits than before the point; in powers of ten only below a thousandth.
    """
    if value is None:
        return UNDEFINED
    if value and abs(value) < TINY:
        return f"{value:.1e}".replace("-", MINUS)
    # Of the rounded number: 99.96 has three digits before the point. Plus zero: none is negative.
    size = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value + 0.0:.{max(0, digits - 1 - size)}f}".replace("-", MINUS)


def each(values: Sequence[float | None], digits: int = 3) -> str:
    """Return one value a seed, as ``6.51 / – / 6.60``."""
    return " / ".join(number(value, digits) for value in values) or UNDEFINED


def shares(values: Iterable[float | None]) -> str:
    """Return one share a seed in per cent, as ``77.3 / 74.0 / 75.1 %``."""
    known = [UNDEFINED if value is None else f"{100 * value:.1f}" for value in values]
    return " / ".join(known) + " %" if known else UNDEFINED


def points(value: float | None, bounds: Sequence[float] | None) -> str:
    """Return a difference of shares in points with its interval, as ``−8.1 [−11.0, −5.2]``."""
    if value is None or bounds is None:
        return UNDEFINED
    # Rounded before it is signed: no zero is negative.
    shown, low, high = (round(100 * share, 1) + 0.0 for share in (value, *bounds))
    return f"{shown:+.1f} [{low:.1f}, {high:.1f}]".replace("-", MINUS)


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence, as ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
