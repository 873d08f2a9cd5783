"""The saliency maps of JSMA and its variants, and the features that they choose.

A map has two terms for each feature i: alpha_i, how fast the target's score grows, and beta_i,
how fast the other classes' scores grow. A step of sign s looks for features with s * alpha > 0
and s * beta < 0. Sources:

- `papernot`, `single`: Papernot et al. 2016, arXiv 1511.07528, algorithms 2 and 3, equation 8.
- `target_gradient`: the two largest alpha, which is what several libraries call JSMA.
- `weighted`, `taylor`: Combey et al. 2020, arXiv 2007.06032 (WJSMA, TJSMA). beta weighs the
  logits of the other classes with their probabilities; `taylor` also multiplies both terms by
  the room that a feature has left: 1 - x when increasing, x when decreasing.
- `maximal`: Wiyatno and Xu 2018, arXiv 1808.07945 (M-JSMA): of all classes, the one whose best
  pair scores highest; the class to leave takes part with the signs of its terms exchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.jsma.pairs import Picked, best_pair, largest, largest_product, two_largest
from attacks.kit.model import only_finite

OUTPUTS = ("log_odds", "probs", "logits")
SALIENCIES = ("papernot", "single", "target_gradient", "weighted", "taylor", "maximal")

Movable = dict[float, Tensor]
"""For each sign of a step the entries of x that may move that way, (rows, entries) bool."""


@dataclass(frozen=True)
class Picks:
    """`features`: (rows, k) int64; `score`: (rows,), positive if admissible; `sign`: (rows,).

    `flat`: (rows,) bool, every gradient that was looked at is exactly zero everywhere.
    """

    features: Tensor
    score: Tensor
    sign: Tensor
    flat: Tensor

    def at(self, rows: Tensor) -> Picks:
        """Return the picks of some rows."""
        return Picks(self.features[rows], self.score[rows], self.sign[rows], self.flat[rows])


@dataclass(frozen=True)
class Saliency:
    """How features are scored: the output differentiated, the map, and the signs of a step.

    `signs`: (1.0,), (-1.0,) or both. `channels`: how many entries of x make one feature (more
    than one only if whole pixels are changed). `low`, `high`: the box.
    """

    output: str
    kind: str
    signs: tuple[float, ...]
    channels: int
    low: float
    high: float

    @property
    def features_per_step(self) -> int:
        """Features that one step changes."""
        return 1 if self.kind == "single" else 2

    def choose(
        self, x: Tensor, leaf: Tensor, logits: Tensor, target: Tensor, movable: Movable
    ) -> Picks:
        """Choose the features that the next step changes, and its sign, for every row.

        `x`: (rows, entries), the values of `leaf`; `leaf`: what the model was called with;
        `logits`: (rows, classes), with its graph, which is freed here; `target`: (rows,);
        `movable`: for each sign the entries that may still move that way, (rows, entries) bool.
        """
        picks = [
            Picks(
                *self._pick(sign, x, alpha, beta, movable[sign]),
                torch.full_like(x[:, 0], sign),
                ~alpha.any(dim=1),
            )
            for alpha, beta in self._terms(leaf, logits, target)
            for sign in self.signs
        ]
        return functools.reduce(_better, picks)

    def _terms(
        self, leaf: Tensor, logits: Tensor, target: Tensor
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(alpha, beta) of the target; of every class for `maximal`. No beta: it is -alpha."""
        if self.kind != "maximal":
            yield self._terms_of(leaf, logits, target, last=True)
            return
        classes = logits.shape[1]
        for label in range(classes):
            towards = torch.full_like(target, label)
            alpha, beta = self._terms_of(leaf, logits, towards, last=label == classes - 1)
            flip = torch.where(target == label, -1.0, 1.0).to(alpha.dtype)[:, None]
            yield alpha * flip, None if beta is None else beta * flip

    def _terms_of(
        self, leaf: Tensor, logits: Tensor, target: Tensor, *, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        of_target = target_weights(logits, target, self.output)
        one_pass = self.output != "logits" or self.kind == "target_gradient"
        alpha = _gradient(leaf, logits, of_target, keep=not (last and one_pass))
        if one_pass:
            # The probabilities sum to one, so the other classes' gradient is -alpha exactly;
            # summing their rows instead loses its sign once the logits are far apart.
            return alpha, None
        of_others = other_weights(logits, target, weighted=self.kind in ("weighted", "taylor"))
        return alpha, _gradient(leaf, logits, of_others, keep=not last)

    def _pick(
        self, sign: float, x: Tensor, alpha: Tensor, beta: Tensor | None, movable: Tensor
    ) -> Picked:
        a, b = alpha * sign, None if beta is None else beta * -sign
        if self.kind == "taylor":
            room = self.high - x if sign > 0 else x - self.low
            a, b = a * room, None if b is None else b * room
        allowed = movable
        if self.channels > 1:
            a, b = self._per_pixel(a, allowed), None if b is None else self._per_pixel(b, allowed)
            allowed = by_feature(allowed, self.channels).any(dim=1)
        if b is None:
            return largest(a, allowed) if self.kind == "single" else two_largest(a, allowed)
        return largest_product(a, b, allowed) if self.kind == "single" else best_pair(a, b, allowed)

    def _per_pixel(self, values: Tensor, allowed: Tensor) -> Tensor:
        """Sum for each pixel the terms of its channels that can still move."""
        return by_feature(values.masked_fill(~allowed, 0), self.channels).sum(dim=1)


def by_feature(entries: Tensor, channels: int) -> Tensor:
    """(rows, channels * d) as (rows, channels, d): the entries of one feature in a column."""
    rows, width = entries.shape
    return entries.reshape(rows, channels, width // channels)


def target_weights(logits: Tensor, target: Tensor, output: str) -> Tensor:
    """Return the gradient of `output` of the target with respect to the logits, (rows, classes).

    logits: e_t. probs: F_t (e_t - F), which underflows as JSMA on the softmax does. log_odds,
    z_t - log sum_{j != t} exp z_j: e_t less the softmax over the other classes.
    """
    logits = logits.detach()
    own = torch.zeros_like(logits).scatter_(1, target[:, None], 1)
    if output == "logits":
        return own
    if output == "log_odds":
        return own - logits.scatter(1, target[:, None], -torch.inf).softmax(dim=1)
    probs = logits.softmax(dim=1)
    return probs.gather(1, target[:, None]) * (own - probs)


def other_weights(logits: Tensor, target: Tensor, *, weighted: bool) -> Tensor:
    """Return the weight of each class in beta on logits, (rows, classes), 0 for the target.

    1 (arXiv 1511.07528), or the class's probability (arXiv 2007.06032).
    """
    logits = logits.detach()
    weights = logits.softmax(dim=1) if weighted else torch.ones_like(logits)
    return weights.scatter(1, target[:, None], 0)


def _gradient(leaf: Tensor, logits: Tensor, weights: Tensor, *, keep: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(logits, leaf, weights, retain_graph=keep)
    return only_finite(gradient.reshape(len(leaf), -1))


def _better(best: Picks, new: Picks) -> Picks:
    """Row by row the pick with the higher score; the earlier one among equals."""
    wins = new.score > best.score
    return Picks(
        torch.where(wins[:, None], new.features, best.features),
        torch.where(wins, new.score, best.score),
        torch.where(wins, new.sign, best.sign),
        best.flat & new.flat,
    )
