"""Fast minimum-norm attack: descent of a margin in a ball that grows and shrinks, in batches.

Pintor, Roli, Brendel, Biggio 2021, *Fast Minimum-norm Adversarial Attacks through Adaptive Norm
Constraints*, arXiv 2102.12827, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from attacks.kit.ball import (
    BallNorm,
    check_ball,
    check_counts,
    check_inputs,
    default_chunk,
    steepest,
)
from attacks.kit.model import Model
from attacks.kit.view import View
from bench.base.types import Targets, ThreatModel
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import Attack, AttackContext, Perturbation

DUAL = {"linf": 1.0, "l2": 2.0}
TINY = 1e-12


@dataclass(frozen=True)
class FMNResult:
    """One entry for each row of x, all on the device of x.

    `x_adv`: the shape and dtype of x, the nearest adversarial found, or x. `success`: bool, the
    goal holds with a strict margin, within eps where it is given. `distance`: the norm of the
    change, infinite where no adversarial was found. `iterations`, `zero_gradients`: int64.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    iterations: Tensor
    zero_gradients: Tensor


def fmn(  # noqa: PLR0913 - the public signature: every parameter of the attack by name
    model: Model,
    x: Tensor,
    y: Tensor,
    target: Tensor | None = None,
    *,
    eps: float | None = None,
    norm: BallNorm = "l2",
    steps: int = 100,
    step_size: float = 1.0,
    gamma: float = 0.05,
    chunk: int | None = None,
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
        eps: a budget instead of the minimum norm: a row stops at an adversarial within it, and
            returns x without one. In input units, in (0, 1] for "linf", positive for "l2".
        norm: what is minimised, "linf" or "l2".
        steps: gradient steps of a row.
        step_size: the first step, positive; the paper's alpha.
        gamma: by what share the radius changes at first, in (0, 1).
        chunk: rows at once, by default 256 on a CPU and 2048 elsewhere. Results depend on it only
            by floating-point rounding.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    check_ball(norm, 1.0 if eps is None else eps)
    _check_descent(steps, step_size, gamma, chunk)
    check_inputs(x, y, target, None)
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        view = View(model, x, y, target)
        best, distance = view.clean.clone(), view.clean.new_full((len(x),), torch.inf)
        taken = torch.zeros_like(view.y)
        zero = torch.zeros_like(view.y)
        standing = torch.arange(len(x), device=x.device)
        for rows in torch.split(standing, chunk or default_chunk(x)) if len(x) else ():
            clean, delta = view.clean[rows], torch.zeros_like(view.clean[rows])
            radius = clean.new_zeros((len(rows), 1))
            for step in range(steps + 1):
                point = (clean + delta).clamp(0, 1)
                delta = point - clean
                _, margin, gradient = view.climb(point, partial(view.margin, rows=rows))
                length = _length(delta, norm)
                nearer = (margin > 0) & (length[:, 0] < distance[rows])
                best[rows] = torch.where(nearer[:, None], point, best[rows])
                distance[rows] = torch.where(nearer, length[:, 0], distance[rows])
                enough = 0.0 if eps is None else eps
                going = (distance[rows] > enough).nonzero().squeeze(1)
                if step == steps or not len(going):
                    break
                rows, clean, delta = rows[going], clean[going], delta[going]  # noqa: PLW2901
                margin, gradient, radius = margin[going], gradient[going], radius[going]
                taken[rows] += 1
                zero[rows] += ~gradient.any(dim=1)
                wave = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
                best_length, change = distance[rows, None], gamma * wave
                slope = torch.linalg.vector_norm(gradient, DUAL[norm], 1, keepdim=True)
                linear = _length(delta, norm) - margin[:, None] / slope.clamp(min=TINY)
                shrunk = torch.minimum(radius, best_length) * (1 - change)
                wider = torch.where(best_length.isinf(), torch.maximum(radius, linear), radius)
                radius = torch.where(margin[:, None] > 0, shrunk, wider * (1 + change))
                moved = delta + step_size * wave * steepest(gradient, "l2")
                delta = _within(moved, radius, norm)
    success = distance <= (torch.finfo(distance.dtype).max if eps is None else eps)
    x_adv = torch.where(success[:, None], best, view.clean).view_as(x)
    return FMNResult(x_adv, success, distance, taken, zero)


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


def _check_descent(steps: int, step_size: float, gamma: float, chunk: int | None) -> None:
    check_counts(steps=steps, chunk=chunk)
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size!r}")
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must be in (0, 1), got {gamma!r}")


@dataclass(frozen=True)
class FMN(Attack):
    """FMN, the nearest adversarial by gradients: Pintor et al. 2021, arXiv 2102.12827.

    The parameters are those of ``attacks.fmn.fmn``, which says more of each. ``eps``: a budget in
    input units; without it the attack looks for the minimum norm. ``norm``: ``linf`` or ``l2``.
    ``steps``: how long it descends. ``step_size``: the first step. ``gamma``: how fast the radius
    changes. ``targets``: which attempts the runner makes. ``adaptive``: whether a defense's
    surrogate is differentiated, where it has one. ``chunk``: rows at a time.
    """

    eps: float | None = None
    norm: BallNorm = "l2"
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    targets: Targets = "untargeted"
    adaptive: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_ball(self.norm, 1.0 if self.eps is None else self.eps)
        _check_descent(self.steps, self.step_size, self.gamma, self.chunk)
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets must be one of {get_args(Targets)}, got {self.targets!r}")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of radius ``eps``, or the minimum norm without it."""
        return ThreatModel(self.norm, self.eps)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows."""
        result = fmn(
            model,
            x,
            y,
            target,
            eps=self.eps,
            norm=self.norm,
            steps=self.steps,
            step_size=self.step_size,
            gamma=self.gamma,
            chunk=self.chunk,
        )
        reasons = ["reached" if done else "steps" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.iterations, reasons, result.zero_gradients)
