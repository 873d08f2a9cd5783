"""Comparisons of two models or attacks on the same sources: paired, so that images cancel out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.types import Document

Flags = npt.NDArray[np.bool_]

Z90, Z95 = 1.6448536269514722, 1.959963984540054
"""Normal quantiles of two-sided 90 and 95 % intervals; an end of the first is one-sided 95 %."""


@dataclass(frozen=True)
class Pairs:
    """A two-by-two table of matched yes-no answers: how often only one of the two said yes."""

    total: float
    only_first: float
    only_second: float

    @property
    def delta(self) -> float:
        """The share of yes of the first minus that of the second."""
        return (self.only_first - self.only_second) / self.total


def pairs(first: Flags, second: Flags) -> Pairs:
    """Count two answers, (n,) bool each, to the same n questions."""
    return Pairs(len(first), int((first & ~second).sum()), int((second & ~first).sum()))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the one-sided exact p of McNemar 1947: that the first says yes no more often.

    P(X >= only_first) for X binomial over the discordant pairs with probability 1/2; 1 without any.
    """
    trials = only_first + only_second
    ways = sum(math.comb(trials, k) for k in range(only_first, trials + 1))
    return float(ways / 2**trials)


def mcnemar_two_sided(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p: twice the smaller tail, at most 1."""
    larger, smaller = max(only_first, only_second), min(only_first, only_second)
    return min(1.0, 2 * mcnemar(larger, smaller))


def holm(values: Sequence[float]) -> list[float]:
    """Return the p ``values`` of one family adjusted by Holm 1979, in their order."""
    # statsmodels' own collects garbage at every call, which costs more than the rest of a table.
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    stepped = np.maximum.accumulate(np.asarray(values, dtype=float)[order] * factors)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(stepped, 1)
    return [float(value) for value in adjusted]


def agresti_min(table: Pairs, z: float = Z90) -> tuple[float, float]:
    """Return the interval of ``table.delta`` of Agresti and Min 2005, within [-1, 1].

    The Wald interval after half an observation was added to each of the four counts.
    """
    total = table.total + 2
    first, second = table.only_first + 0.5, table.only_second + 0.5
    delta = (first - second) / total
    half = z * math.sqrt(max(first + second - (first - second) ** 2 / total, 0)) / total
    return max(-1.0, delta - half), min(1.0, delta + half)


def needed(table: Pairs, threshold: float, z: float = Z90) -> int | None:
    """Return how many sources would keep the interval of ``table.delta`` off ``threshold``.

    If the shares stay as they are; never fewer than there are. None where the difference is the
    threshold itself, which no number settles.
    """
    if math.isclose(table.delta, threshold, abs_tol=1e-12):
        return None
    first, second = table.only_first / table.total, table.only_second / table.total

    def settled(total: int) -> bool:
        low, high = agresti_min(Pairs(total, first * total, second * total), z)
        return low >= threshold or high <= threshold

    high = max(1, math.ceil(table.total))
    while not settled(high):
        high *= 2
    low = max(1, math.ceil(table.total))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle + 1, high)
    return high


def paired_rates(a: pd.DataFrame, b: pd.DataFrame) -> Document | None:
    """Compare the success rates of two record sets on their common attempts.

    ``a``, ``b``: records as ``bench.measure.cell`` makes them; an attempt is a source and a target.
    Returns ``delta`` (the rate of ``a`` minus that of ``b``), ``ci`` (95 %, paired and clustered
    by source) and ``attempts``, or None where no attempt is common.
    """
    first, second = (_won(frame) for frame in (a, b))
    both = [attempt for attempt in first if attempt in second]
    if not both:
        return None
    source, _ = pd.factorize(np.array([sample for sample, _ in both]))
    won, lost = (np.array([of[attempt] for attempt in both]) for of in (first, second))
    delta, ci = clustered_difference(won, lost, source)
    return {"delta": delta, "ci": ci, "attempts": len(both)}


def _won(records: pd.DataFrame) -> dict[tuple[int, int], bool]:
    """Return by source and target whether an attempt succeeded, in the order of ``records``."""
    rows = (records["status"] == "attacked").to_numpy(bool)
    columns = (records[n].to_numpy()[rows].tolist() for n in ("sample_id", "target", "success"))
    return {(sample, target): success for sample, target, success in zip(*columns, strict=True)}


def clustered_difference(
    first: Flags, second: Flags, cluster: npt.NDArray[np.int64], z: float = Z95
) -> tuple[float, tuple[float, float]]:
    """Return the share of yes of ``first`` minus that of ``second``, (n,) bool, and its interval.

    ``cluster``: (n,), which answers belong together, numbered from 0. The interval is Agresti and
    Min's on the effective number of answers: their number over the design effect, and never less
    than the number of clusters.
    """
    table = pairs(first, second)
    share = _effective(first.astype(float) - second.astype(float), cluster) / len(first)
    scaled = Pairs(len(first) * share, table.only_first * share, table.only_second * share)
    return table.delta, agresti_min(scaled, z)


def _effective(values: npt.NDArray[np.float64], cluster: npt.NDArray[np.int64]) -> float:
    """Return how many independent ``values`` would tell their mean as well as the clusters do."""
    clusters, total = int(cluster.max()) + 1, len(values)
    residual = values - values.mean()
    simple = float((residual**2).mean()) / total
    if not simple or clusters == 1:
        return clusters  # nothing varies: the data cannot show the effect
    sums = np.bincount(cluster, weights=residual)
    variance = clusters / (clusters - 1) * float((sums**2).sum()) / total**2
    return min(max(total * simple / variance if variance else total, clusters), total)
