"""Which features to change next: the exact best pair, the two largest, the largest.

Every function takes rows of feature values and a mask of the features that may be chosen, and
returns `Picked`. None of them builds a d x d tensor.

The pair search is that of JSMA (Papernot et al. 2016, arXiv 1511.07528, algorithm 3): over all
pairs p < q maximise (a_p + a_q)(b_p + b_q) subject to both sums being positive. If two features
are at least as good as p in both coordinates, one of them can replace p in any pair, so only
features with fewer than two such features need to be paired: the first two Pareto layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_PAIRS_CPU = 1 << 19
"""Pairs scored at once (4 MiB of float64 a term, what a processor's cache holds): the memory of the
search never exceeds this or one row of candidates, however many candidates remain."""

_PAIRS_ACCELERATOR = 1 << 24
"""The same where launching an operator costs more than its work."""


class Picked(NamedTuple):
    """The features chosen in each row.

    `features`: (rows, k) int64; meaningless where the score is not positive.
    `score`: (rows,), positive where an admissible choice exists, 0 elsewhere. Scores of one
    function are comparable with each other, scores of different functions are not.
    """

    features: Tensor
    score: Tensor


def largest(a: Tensor, allowed: Tensor) -> Picked:
    """Choose the allowed feature with the largest positive `a` (the lowest index among equals).

    `a`: (rows, d) floating; `allowed`: (rows, d) bool. `k` is 1, the score is `a` itself.
    """
    score, feature = a.masked_fill(~allowed, -math.inf).max(dim=1)
    return Picked(feature[:, None], score.clamp(min=0))


def two_largest(a: Tensor, allowed: Tensor) -> Picked:
    """Choose the two allowed features with the largest `a`, if their sum is positive.

    `a`: (rows, d) floating; `allowed`: (rows, d) bool. The lowest indices win among equals
    (`torch.topk` leaves that open, hence two maxima). `k` is 2, the score is the sum.
    """
    a = a.masked_fill(~allowed, -math.inf)
    first_value, first = a.max(dim=1)
    second_value, second = a.scatter_(1, first[:, None], -math.inf).max(dim=1)
    # A second maximum of -inf means that fewer than two features are allowed.
    return Picked(torch.stack((first, second), 1), (first_value + second_value).clamp(min=0))


def largest_product(a: Tensor, b: Tensor, allowed: Tensor) -> Picked:
    """Choose the allowed feature with the largest a * b among those with a > 0 and b > 0.

    The one-feature saliency map of arXiv 1511.07528, equation 8. Shapes as in `best_pair`.
    """
    wide_a, wide_b = a.double().clamp(min=0), b.double().clamp(min=0)
    return largest(wide_a * wide_b, allowed)


def best_pair(a: Tensor, b: Tensor, allowed: Tensor) -> Picked:
    """Choose the allowed pair that maximises (a_p + a_q)(b_p + b_q) with both sums positive.

    `a`, `b`: (rows, d) float32 or float64, finite where allowed; `allowed`: (rows, d) bool.
    Exact: products are taken in float64. Among equal scores the pair that comes first wins, in
    the order of decreasing a, then increasing index, compared by its earlier feature first.
    O(d log d) time a row while few candidates remain (quadratic in the candidates, of which an
    adversary can leave up to d), O(d) memory a row.
    """
    a = a.masked_fill(~allowed, -math.inf)
    b = b.masked_fill(~allowed, -math.inf)
    # Lowest index first among equal a: the order in which ties are resolved.
    a, order = a.sort(dim=1, descending=True, stable=True)
    b = b.gather(1, order)
    kept, a, b = _gather(_first_two_layers(b), a, b)
    slots, score = _search(a.double(), b.double())
    return Picked(order.gather(1, kept.gather(1, slots)), score)


def _first_two_layers(b: Tensor) -> Tensor:
    """Mask of the columns of `b`, sorted by decreasing a, with fewer than two as good before."""
    best = b.cummax(dim=1).values
    before = torch.full_like(b[:, :1], -math.inf)
    # The running second maximum: at each column the smaller of the column and the maximum so far.
    second = torch.minimum(b, torch.cat((before, best[:, :-1]), 1)).cummax(dim=1).values
    return b > torch.cat((before, second[:, :-1]), 1)


def _gather(keep: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the kept columns of every row to its front: indices, a and b, all (rows, m).

    m is the most that any row keeps, at least 2; rows with fewer are padded with -inf.
    """
    rows, columns = keep.nonzero(as_tuple=True)
    counts = keep.sum(dim=1)
    start = counts.cumsum(0) - counts
    slots = torch.arange(len(rows), device=keep.device) - start[rows]
    width = max(2, int(counts.max()) if len(counts) else 0)
    index = torch.zeros(len(keep), width, dtype=torch.int64, device=keep.device)
    index[rows, slots] = columns
    padded = [v.new_full((len(keep), width), -math.inf) for v in (a, b)]
    for target, source in zip(padded, (a, b), strict=True):
        target[rows, slots] = source[rows, columns]
    return index, padded[0], padded[1]


def _search(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Try every pair of columns, a block of columns at a time."""
    rows, width = a.shape
    at_once = _PAIRS_CPU if a.device.type == "cpu" else _PAIRS_ACCELERATOR
    block = max(1, at_once // max(1, rows * width))
    pair = torch.zeros(rows, 2, dtype=torch.int64, device=a.device)
    score = a.new_zeros(rows)
    for i in range(0, width - 1, block):
        scores = _score(
            a[:, i : i + block, None], a[:, None, i:], b[:, i : i + block, None], b[:, None, i:]
        )
        value, flat = scores.triu_(diagonal=1).flatten(1).max(dim=1)
        found = torch.stack((flat // (width - i) + i, flat % (width - i) + i), 1)
        better = value > score
        pair = torch.where(better[:, None], found, pair)
        score = torch.where(better, value, score)
    return pair, score


def _score(a: Tensor, other_a: Tensor, b: Tensor, other_b: Tensor) -> Tensor:
    """Return (a + other_a)(b + other_b) where both sums are positive, else 0."""
    return (a + other_a).clamp_(min=0).mul_((b + other_b).clamp_(min=0))
