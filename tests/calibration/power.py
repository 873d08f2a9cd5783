"""What the rule can do: how often a true gain is called ``holds``, by the rule itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import binom

from bench.verdict.paired import Pairs, agresti_min
from bench.verdict.rule import MARGIN, SEEDS
from leaderboard.pages.markdown import table

UNDEFENDED = 0.02
"""W of the undefended network, as on digits at 0.2; both survive independently of one another."""

GAINS = (0.1, 0.15, 0.2, 0.25, 0.3)
SOURCES = (100, 200, 300, 500, 1000)


def chances(gain: float, sources: int) -> tuple[float, float]:
    """Return how often one seed is above the margin, and how often below, at a true ``gain``.

    Exact: over all counts of pairs in which only one of the two networks survives.
    """
    defended = UNDEFENDED + gain
    first, second = defended * (1 - UNDEFENDED), UNDEFENDED * (1 - defended)
    above, below = 0.0, 0.0
    for only_second in range(sources + 1):
        weight = binom.pmf(only_second, sources, second)
        if weight < 1e-9:
            continue
        rest = np.arange(sources - only_second + 1)
        found = binom.pmf(rest, sources - only_second, first / (1 - second))
        for only_first, share in zip(rest[found > 1e-9], found[found > 1e-9], strict=True):
            low, high = agresti_min(Pairs(sources, int(only_first), only_second))
            above += weight * share * (low >= MARGIN)
            below += weight * share * (high <= MARGIN)
    return float(above), float(below)


def power_table() -> str:
    """Return by gain and number of sources how often ``holds`` and ``broken`` come out."""
    found = {(gain, count): chances(gain, count) for gain in GAINS for count in SOURCES}
    lines = [
        {
            "true gain, points": f"{100 * gain:.0f}",
            **{f"{count} sources": _both(*found[gain, count]) for count in SOURCES},
        }
        for gain in GAINS
    ]
    return table(pd.DataFrame(lines))


def _both(above: float, below: float) -> str:
    holds, broken = above**SEEDS, 1 - (1 - below) ** SEEDS
    return f"{100 * holds:.0f} / {100 * broken:.0f} %"
