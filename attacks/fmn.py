"""Fast minimum-norm attack: descent of a margin in a ball that grows and shrinks, in batches.

Pintor, Roli, Brendel, Biggio 2021, *Fast Minimum-norm Adversarial Attacks through Adaptive Norm
Constraints*, arXiv 2102.12827, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.kit.ball import (
    BallNorm,
    check_counts,
    check_inputs,
    default_chunk,
    steepest,
)
from attacks.kit.ball_attack import BallAttack, ClimbResult
from attacks.kit.losses import unanswered
from attacks.kit.model import Model
from attacks.kit.view import View
from bench.measure.at_rest import at_rest

DUAL = {"linf": 1.0, "l2": 2.0}
TINY = 1e-12


@dataclass(frozen=True)
class FMNResult(ClimbResult):
    """As ``ClimbResult``, `x_adv` being the nearest adversarial found, or x.

    `success`: the goal holds, or untargeted there is no answer, within eps where it is given.
    `distance`: the norm of the change, infinite where no adversarial was found.
    """

    distance: Tensor


@dataclass(frozen=True)
class FMN(BallAttack):
    """FMN, the nearest adversarial by gradients: Pintor et al. 2021, arXiv 2102.12827.

    ``eps``: a budget instead of the minimum norm: a row stops at an adversarial within it, and
    returns x without one. ``norm``: what is minimised. ``targets``, ``chunk``: see
    ``attacks.kit.ball_attack.BallAttack``. ``steps``: gradient steps of a row. ``step_size``: the
    first step, positive; the paper's alpha. ``gamma``: by what share the radius changes at first,
    in (0, 1). ``adaptive``: whether a defense's surrogate is differentiated, where it has one.
    """

    eps: float | None = None
    norm: BallNorm = "l2"
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    adaptive: bool = True

    unfinished: ClassVar[str] = "steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps)
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, got {self.step_size!r}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be in (0, 1), got {self.gamma!r}")

    def run(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor | None, seed: int = 0,
        streams: Tensor | None = None,
    ) -> FMNResult:  # fmt: skip
        """Run the attack, as ``fmn`` does; nothing is drawn."""
        check_inputs(x, y, target, None)
        with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
            view = View(model, x, y, target)
            best, distance = view.clean.clone(), view.clean.new_full((len(x),), torch.inf)
            taken = torch.zeros_like(view.y)
            zero = torch.zeros_like(view.y)
            standing = torch.arange(len(x), device=x.device)
            for rows in torch.split(standing, self.chunk or default_chunk(x)) if len(x) else ():
                clean, delta = view.clean[rows], torch.zeros_like(view.clean[rows])
                radius = clean.new_zeros((len(rows), 1))
                for step in range(self.steps + 1):
                    point = (clean + delta).clamp(0, 1)
                    delta = point - clean
                    logits, margin, gradient = view.climb(point, partial(view.margin, rows=rows))
                    # Without an answer nothing more is to be won; a target is not reached by it.
                    margin = margin.masked_fill(unanswered(logits, view.y[rows], target), 1.0)
                    length = _length(delta, self.norm)
                    nearer = (margin > 0) & (length[:, 0] < distance[rows])
                    best[rows] = torch.where(nearer[:, None], point, best[rows])
                    distance[rows] = torch.where(nearer, length[:, 0], distance[rows])
                    enough = 0.0 if self.eps is None else self.eps
                    going = (distance[rows] > enough).nonzero().squeeze(1)
                    if step == self.steps or not len(going):
                        break
                    rows, clean, delta = rows[going], clean[going], delta[going]  # noqa: PLW2901
                    margin, gradient, radius = margin[going], gradient[going], radius[going]
                    taken[rows] += 1
                    zero[rows] += ~gradient.any(dim=1)
                    wave = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
                    best_length, change = distance[rows, None], self.gamma * wave
                    slope = torch.linalg.vector_norm(gradient, DUAL[self.norm], 1, keepdim=True)
                    linear = _length(delta, self.norm) - margin[:, None] / slope.clamp(min=TINY)
                    linear = linear.where(linear.isfinite(), radius)
                    shrunk = torch.minimum(radius, best_length) * (1 - change)
                    wider = torch.where(best_length.isinf(), torch.maximum(radius, linear), radius)
                    radius = torch.where(margin[:, None] > 0, shrunk, wider * (1 + change))
                    moved = delta + self.step_size * wave * steepest(gradient, "l2")
                    delta = _within(moved, radius, self.norm)
        success = distance <= (torch.finfo(distance.dtype).max if self.eps is None else self.eps)
        x_adv = torch.where(success[:, None], best, view.clean).view_as(x)
        return FMNResult(x_adv, success, taken, zero, distance)


def fmn(
    model: Model, x: Tensor, y: Tensor, target: Tensor | None = None, **parameters: Any
) -> FMNResult:
    """Find an adversarial of each row of x as near as possible.

    Each step moves along the gradient of the margin of the logits, in units of l2, and into a ball
    around x. Its radius is first a share gamma beyond the distance at which the margin, were it
    linear, would be lost (at the distance itself rounding decides); then it shrinks by gamma
    where the row is adversarial, and grows elsewhere. Step and gamma fall to a hundredth by cosine
    annealing. Nothing is drawn: the start is x.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored, and no `.grad` is touched.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the labels to leave.
        target: (batch,) integers, the classes to reach instead.
        parameters: the fields of `FMN`: eps, norm, steps, step_size, gamma, chunk.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    settings = FMN(targets="untargeted" if target is None else "all", **parameters)
    return settings.run(model, x, y, target)


def _length(delta: Tensor, norm: BallNorm) -> Tensor:
    """Return the norm of each row, (rows, 1)."""
    order = math.inf if norm == "linf" else 2
    length: Tensor = torch.linalg.vector_norm(delta, order, 1, keepdim=True)
    return length


def _within(delta: Tensor, radius: Tensor, norm: BallNorm) -> Tensor:
    """Return the nearest changes of a norm of at most ``radius`` (rows, 1)."""
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -radius), radius)
    return delta * (radius / _length(delta, norm).clamp(min=TINY)).clamp(max=1)
