"""Rank ranges: which models are told apart on the same sources, and which are not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bench.verdict.paired import holm, mcnemar_two_sided, pairs

ALPHA = 0.05
"""Family-wise error of the comparisons of one table."""

Survivors = Mapping[str, npt.NDArray[np.bool_]]


def rank_ranges(survivors: Survivors) -> dict[str, tuple[int, int]]:
    """Return the best and the worst rank that each model may have, 1 being the most robust.

    ``survivors``: by name, which of the same sources (n,) survive. Every pair is compared by the
    two-sided exact McNemar test, with Holm's correction over the pairs: a model ranks below those
    that are significantly better, and above those that are significantly worse. Overlap of
    intervals is no such test, and not transitive.
    """
    couples = list(itertools.combinations(survivors, 2))
    tables = [pairs(survivors[a], survivors[b]) for a, b in couples]
    values = holm([mcnemar_two_sided(int(t.only_first), int(t.only_second)) for t in tables])
    better = dict.fromkeys(survivors, 0)
    worse = dict.fromkeys(survivors, 0)
    for (a, b), table, value in zip(couples, tables, values, strict=True):
        if value < ALPHA:
            winner, loser = (a, b) if table.delta > 0 else (b, a)
            better[loser] += 1
            worse[winner] += 1
    return {name: (1 + better[name], len(survivors) - worse[name]) for name in survivors}


def widest(ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the range that holds all ``ranges``: over seeds, a rank is what it is at any."""
    return min(low for low, _ in ranges), max(high for _, high in ranges)
