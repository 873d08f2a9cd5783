"""The seven losses f of Carlini and Wagner 2017, arXiv 1608.04644, section IV.A: small at the goal.

With logits Z, probabilities F = softmax(Z) and the goal's class t:

| | f(x') |
|---|---|
| ``f1`` | cross-entropy of F with t, minus 1 |
| ``f2`` | max(max over i != t of F_i - F_t, 0) |
| ``f3`` | softplus(max over i != t of F_i - F_t) - log 2 |
| ``f4`` | max(0.5 - F_t, 0) |
| ``f5`` | -log(2 F_t) |
| ``f6`` | max(max over i != t of Z_i - Z_t, -kappa) |
| ``f7`` | softplus(max over i != t of Z_i - Z_t) - log 2 |

The paper prints f1 with the other sign, which leads away from t, and f5 as -log(2 F_t - 2), which
is the logarithm of a negative number. Without a target, t is the class other than the label that
is nearest to winning, and a gap is that between it and the label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from attacks.kit.losses import behind

LossName = Literal["f1", "f2", "f3", "f4", "f5", "f6", "f7"]

CLIPPED = ("f2", "f4", "f6")
"""The losses that stop falling where the goal is reached."""


def gap(values: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Return by how much the goal is missed in ``values`` (rows, classes), (rows,)."""
    return -behind(values, y) if target is None else behind(values, target)


def unclipped(name: LossName, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Return the loss ``name`` of ``logits`` (rows, classes) before its max, (rows,)."""
    return _UNCLIPPED[name](logits, y, target)


def floor(name: LossName, kappa: float) -> float:
    """Return the value below which the loss ``name`` is constant, or minus infinity."""
    if name not in CLIPPED:
        return -math.inf
    return -kappa if name == "f6" else 0.0


def _log_goal(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Return log F_t, which has a gradient where F_t has rounded to 0."""
    every = logits.log_softmax(1)
    if target is None:
        return every.scatter(1, y[:, None], -torch.inf).amax(1)
    return every.gather(1, target[:, None]).squeeze(1)


def _soft(values: Tensor) -> Tensor:
    return F.softplus(values) - math.log(2)


_UNCLIPPED: Mapping[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "f1": lambda z, y, t: -_log_goal(z, y, t) - 1,
    "f2": lambda z, y, t: gap(z.softmax(1), y, t),
    "f3": lambda z, y, t: _soft(gap(z.softmax(1), y, t)),
    "f4": lambda z, y, t: 0.5 - _log_goal(z, y, t).exp(),
    "f5": lambda z, y, t: -_log_goal(z, y, t) - math.log(2),
    "f6": gap,
    "f7": lambda z, y, t: _soft(gap(z, y, t)),
}
