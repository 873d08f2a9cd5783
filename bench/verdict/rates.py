"""Rates and their intervals: Wilson, clustered Wilson, the mean of a sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Interval = tuple[float, float] | None

Counts = npt.NDArray[Any]


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return the two-sided Wilson score interval of a rate, or None without trials.

    Wilson 1927. ``trials`` may be an effective number, so neither need be whole.
    """
    if trials <= 0:
        return None
    from statsmodels.stats.proportion import proportion_confint

    alpha = round(1 - confidence, 12)  # 0.05, not 0.050000000000000044
    low, high = proportion_confint(successes, trials, alpha=alpha, method="wilson")
    # Exact at the ends: rounding must not let nothing in 100 speak against "never".
    return float(low) if successes > 0 else 0.0, float(high) if successes < trials else 1.0


def clustered_wilson(successes: Counts, attempts: Counts) -> Interval:
    """Return the 95 % Wilson interval of a rate whose attempts come in clusters.

    ``successes`` and ``attempts``: one value a source. The design effect (Kish 1965) is the
    ratio of the variance of the rate between sources to the binomial one; the effective number of
    trials lies between the number of sources and that of attempts, and is the number of sources
    where nothing or everything succeeded, for then the data cannot show the effect.
    """
    sources, trials = len(attempts), float(attempts.sum())
    if not trials:
        return None
    rate = float(successes.sum()) / trials
    effective = (
        effective_trials(successes, attempts, rate) if 0 < rate < 1 and sources > 1 else sources
    )
    return wilson(rate * effective, effective)


def effective_trials(successes: Counts, attempts: Counts, rate: float) -> float:
    """Return how many independent trials would tell ``rate`` as well as the clustered ones do.

    One value a source, as in ``clustered_wilson``; ``rate`` strictly between 0 and 1.
    """
    sources, trials = len(attempts), float(attempts.sum())
    residuals = successes - rate * attempts
    variance = sources / (sources - 1) * float((residuals**2).sum()) / trials**2
    binomial = rate * (1 - rate) / trials
    return min(max(trials * binomial / variance if variance else trials, sources), trials)


def mean_interval(values: pd.Series) -> Interval:
    """Return the 95 % interval of a mean over independent images (normal approximation)."""
    kept = values[np.isfinite(values)]
    if len(kept) < 2:
        return None
    mean, half = float(kept.mean()), 1.96 * float(kept.std(ddof=1)) / math.sqrt(len(kept))
    return mean - half, mean + half


def difference_spans_zero(
    first: float,
    first_bounds: tuple[float, float],
    second: float,
    second_bounds: tuple[float, float],
) -> bool:
    """Return whether 0 lies in the interval of ``first`` minus ``second``.

    Newcombe 1998, *Interval estimation for the difference between independent proportions*,
    Statistics in Medicine 17, method 10: of the two rates' own intervals.
    """
    delta = first - second
    low = delta - math.hypot(first - first_bounds[0], second_bounds[1] - second)
    high = delta + math.hypot(first_bounds[1] - first, second - second_bounds[0])
    return low <= 0 <= high
