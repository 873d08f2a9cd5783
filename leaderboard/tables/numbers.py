"""Numbers as text: one format for every table, page and terminal.

The minus sign is the typographic one, a zero is never negative, and what is not known is a dash.
Shares are fractions in [0, 1] and are written in per cent; differences of shares, in points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

UNDEFINED = "–"

MINUS = "−"

TINY = 1e-3
"""Below, a number is written in powers of ten."""

Bounds = Sequence[float]
"""The ends of an interval."""


def fixed(value: float | None, digits: int = 1, sign: str = "-") -> str:
    """Return a number to so many decimals; ``sign="+"`` shows that of positive ones too."""
    if value is None:
        return UNDEFINED
    # Rounded before it is signed: no zero is negative.
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", MINUS)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, never fewer than before the point."""
    if value is None:
        return UNDEFINED
    if not math.isfinite(value) or (value and abs(value) < TINY):
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    # Of the rounded number: 99.96 has three digits before the point.
    size = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return fixed(value, max(0, digits - 1 - size))


def given(value: float | None) -> str:
    """Return a number as somebody chose it, a budget or a temperature: without further zeros.

    A length in levels of a byte is ``8/255``, unless the decimals are exact.
    """
    if value is None:
        return UNDEFINED
    levels = round(255 * value)
    if float(f"{value:g}") != value and levels and levels / 255 == value:
        return f"{levels}/255".replace("-", MINUS)
    return f"{value:g}".replace("-", MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as ``87.6 %``."""
    return UNDEFINED if value is None else f"{fixed(100 * value, digits)} %"


def interval(value: float | None, bounds: Bounds | None, digits: int = 1) -> str:
    """Return a share as ``87.6 % [84.2, 90.4]``, bare where it has no interval."""
    return percent(value, digits) + _brackets(value, bounds, 100, digits)


def points(
    value: float | None, bounds: Bounds | None = None, digits: int = 1, unit: str = ""
) -> str:
    """Return a difference of shares as ``−8.1 [−11.0, −5.2]``, ``unit`` after the first number."""
    if value is None:
        return UNDEFINED
    return fixed(100 * value, digits, "+") + unit + _brackets(value, bounds, 100, digits)


def spanned(value: float | None, bounds: Bounds | None, digits: int = 3) -> str:
    """Return a number as ``6.51 [6.32, 6.70]``, each to so many significant digits."""
    if value is None or bounds is None:
        return number(value, digits)
    return f"{number(value, digits)} [{', '.join(number(end, digits) for end in bounds)}]"


def _brackets(value: float | None, bounds: Bounds | None, factor: float, digits: int) -> str:
    if value is None or bounds is None:
        return ""
    return f" [{', '.join(fixed(factor * end, digits) for end in bounds)}]"


def each(values: Iterable[float | None], digits: int = 3) -> str:
    """Return one value a seed, as ``6.51 / – / 6.60``."""
    return " / ".join(number(value, digits) for value in values) or UNDEFINED


def shares(values: Iterable[float | None], digits: int = 1) -> str:
    """Return one share a seed, as ``77.3 / – / 75.1 %``."""
    known = [None if value is None else 100 * value for value in values]
    return " / ".join(fixed(value, digits) for value in known) + " %" if known else UNDEFINED


def ratio(value: float | None, base: float | None) -> str:
    """Return how many times ``base`` a value is, as ``1.25``."""
    return UNDEFINED if value is None or not base else fixed(value / base, 2)


def counted(count: int | None, total: int | None) -> str:
    """Return a count beside its total, as ``12/891``."""
    return UNDEFINED if count is None else f"{count}/{total}"


def ranged(values: Iterable[float | None], digits: int = 1) -> str:
    """Return the range of shares, as ``0.4 % to 5.7 %``; one of them where both read alike."""
    known = sorted(value for value in values if value is not None)
    ends = dict.fromkeys(percent(value, digits) for value in known[:1] + known[-1:])
    return " to ".join(ends) or UNDEFINED
