"""sigma-zero: gradient descent on a smooth stand-in for the L0 norm.

Cinà, Villani, Pintor, Schönherr, Biggio, Pelillo 2025, "sigma-zero: Gradient-based Optimization
of l0-norm Adversarial Examples", ICLR, arXiv 2402.01879, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.kit.ball import check_counts, check_inputs, default_chunk
from attacks.kit.l0_budget import L0Budget
from attacks.kit.losses import unanswered
from attacks.kit.model import Layout, Model, chunks, finite_gradient, probe, widened
from bench.base.types import Targets, ThreatModel
from bench.measure.at_rest import at_rest
from bench.measure.query import lead
from bench.plugins.contracts import Attack, AttackContext, Perturbation

BETAS = (0.9, 0.999)
"""Decay of Adam's two moments: Kingma and Ba 2015, arXiv 1412.6980."""

TINY = 1e-12


@dataclass(frozen=True)
class SigmaZeroResult:
    """One entry for each row of x, all on the device of x.

    `x_adv`: the shape and dtype of x; the clean row where nothing succeeded
    and every answer was finite. `success`: bool,
    the goal holds with a strict margin (and within `max_features`). `features_changed`: int64.
    `iterations`: int64, forward passes of the row. `zero_gradients`: int64, how many gradients
    of its margin, taken where the goal was not reached, were zero (or NaN) everywhere.
    """

    x_adv: Tensor
    success: Tensor
    features_changed: Tensor
    iterations: Tensor
    zero_gradients: Tensor


@dataclass(frozen=True)
class SigmaZero(Attack):
    """sigma-zero, the sparsest adversarial by gradients: Cinà et al. 2025, arXiv 2402.01879.

    ``max_features``: a budget instead of the minimum norm: a row stops at an adversarial that
    changes no more features, and returns its clean input if it finds none.
    ``steps``: forward passes of a row; the paper's default.
    ``step_size``: the first step of Adam, eta_0, positive; cosine annealing takes it to a tenth.
    ``sigma``: of the stand-in for L0, positive; the smaller, the closer to L0.
    ``tau``: the first threshold, in [0, 1], below which changes are dropped.
    ``tau_step``: its change in units of the step size, in [0, 1].
    ``targets``: ``untargeted``, ``all``, ``random``, ``runner-up``.
    ``adaptive``: whether a defense's surrogate is differentiated, where it has one, or the model
    as it is.
    ``chunk``: rows at once, by default 256 on a CPU and 2048 elsewhere; results depend on it only
    by floating-point rounding.
    """

    max_features: int | None = None
    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 1e-3
    tau: float = 0.3
    tau_step: float = 0.01
    targets: Targets = "untargeted"
    adaptive: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, chunk=self.chunk)
        for name in ("step_size", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("tau", "tau_step"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        _ = self.budget

    @property
    def budget(self) -> L0Budget:
        """The features that may change: all of them where the minimum norm is looked for."""
        if self.max_features is None:
            return L0Budget(gamma=1.0)
        return L0Budget(max_features=self.max_features)

    @property
    def rowwise(self) -> bool:
        """Each row has its own steps, and nothing is drawn."""
        return True

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """L0 in features: minimum norm, or ``max_features`` as a fraction of them."""
        if self.max_features is None:
            return ThreatModel("l0", None, "features")
        return self.budget.threat(shape)

    def rate(self, step: int) -> float:
        """Return Adam's step size at `step`: cosine annealing to a tenth of the first."""
        least = self.step_size / 10
        wave = (1 + math.cos(math.pi * step / self.steps)) / 2
        return least + (self.step_size - least) * wave

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows."""
        result = _attack(self, model, x, y, target)
        reasons = ["reached" if done else "steps" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.iterations, reasons, result.zero_gradients)


def sigma_zero(
    model: Model, x: Tensor, y: Tensor, target: Tensor | None = None, **parameters: Any
) -> SigmaZeroResult:
    """Find an adversarial of each row of x that differs in as few features as possible.

    Each step descends max(margin, 0) + mean of d^2 / (d^2 + sigma) over the features of the
    perturbation d, by Adam on the gradient divided by its largest entry; clips to the box; and
    sets to zero the entries of d below tau, which grows while the row is adversarial and falls
    while it is not. The margin is that of the logits, z_y - max z_j or max z_j - z_t, so that
    no softmax underflows. The sparsest adversarial that was visited is kept.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored, and no `.grad` is touched.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the class to leave; not looked at where there is a target.
        target: (batch,) integers, the class to reach, or None.
        parameters: the fields of `SigmaZero`: max_features, steps, step_size, sigma, tau,
            tau_step, chunk.

    A row stops early where no sparser adversarial is possible, at one feature or at none. A
    model without a gradient (its logits are detached) counts as a zero gradient.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    return _attack(SigmaZero(**parameters), model, x, y, target)


def _attack(
    settings: SigmaZero, model: Model, x: Tensor, y: Tensor, target: Tensor | None
) -> SigmaZeroResult:
    goal = y if target is None else target
    check_inputs(x, y if target is None else None, target, None)
    allowed = settings.budget.steps(x.shape[1:])
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        clean = x.detach().clone().reshape(len(x), math.prod(x.shape[1:]))
        goal = goal.detach().to(device=x.device, dtype=torch.int64, copy=True)
        found = _Found(clean, settings.max_features)
        layout = probe(model, clean.view_as(x), goal)
        size = settings.chunk or default_chunk(x)
        for rows in chunks(torch.arange(len(x), device=x.device), size):
            task = _Task(model, layout, x.shape[1:], targeted=target is not None)
            _minimise(task, settings, clean, goal, rows, found)
    within = found.features <= min(allowed, clean.shape[1])
    success = within & found.reached
    x_adv = torch.where(within[:, None], found.x_adv, clean)
    changed = torch.where(within, found.features, 0)
    return SigmaZeroResult(x_adv.view_as(x), success, changed, found.steps, found.zero_gradients)


@dataclass(frozen=True)
class _Task:
    """The model and its goal."""

    model: Model
    layout: Layout
    shape: torch.Size
    targeted: bool

    def query(self, x: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which rows reach the goal, which are done, and the margin's gradient (rows, d).

        Done, untargeted, is also a row without an answer. The gradient of a row that is done is
        zero, and so is an entry that is NaN, or one that does not exist.
        """
        leaf = self.layout(x.reshape(len(x), *self.shape)).requires_grad_()
        logits = widened(self.model(leaf))
        margin = lead(logits, goal)
        margin = -margin if self.targeted else margin
        reached = margin.detach() < 0
        done = reached | unanswered(logits.detach(), goal, goal if self.targeted else None)
        return reached, done, finite_gradient(margin.masked_fill(done, 0), leaf)


class _Found:
    """What is known of each row of the batch: its sparsest adversarial, and what it cost."""

    def __init__(self, clean: Tensor, max_features: int | None) -> None:
        self.x_adv = clean.clone()
        self.enough = max_features or 1
        self.steps = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        self.zero_gradients = torch.zeros_like(self.steps)
        self.reached = torch.zeros_like(self.steps, dtype=torch.bool)
        self.features = torch.full_like(self.steps, clean.shape[1] + 1)  # none found

    def update(
        self, rows: Tensor, x: Tensor, changed: Tensor, reached: Tensor, done: Tensor
    ) -> Tensor:
        """Take the sparser adversarials of `rows`; return which rows go on."""
        sparser = done & (changed < self.features[rows])
        better = rows[sparser]
        self.x_adv[better], self.features[better] = x[sparser], changed[sparser]
        self.reached[better] = reached[sparser]
        self.steps[rows] += 1
        return self.features[rows] > self.enough


def _minimise(
    task: _Task, settings: SigmaZero, clean: Tensor, goal: Tensor, rows: Tensor, found: _Found
) -> None:
    """Run the descent on some rows of the batch: `clean` (batch, d), `goal` (batch,)."""
    start, goal = clean[rows], goal[rows]
    delta, first, second = (torch.zeros_like(start) for _ in range(3))
    tau = start.new_full((len(rows), 1), settings.tau)
    for step in range(settings.steps):
        x = (start + delta).clamp_(0, 1)
        reached, done, gradient = task.query(x, goal)
        blind = ~done & ~gradient.any(dim=1)
        found.zero_gradients[rows] += blind
        going = found.update(rows, x, (x != start).sum(dim=1), reached, done)
        if not bool(going.all()):
            rows, goal, done = rows[going], goal[going], done[going]
            kept = (start, delta, first, second, tau, gradient)
            start, delta, first, second, tau, gradient = (tensor[going] for tensor in kept)
            if not len(rows):
                return
        gradient = _normalised(gradient + _slope(delta, settings.sigma))
        rate = settings.rate(step)
        first.lerp_(gradient, 1 - BETAS[0])
        second.lerp_(gradient.square(), 1 - BETAS[1])
        scale = (second / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(1e-8)
        delta = delta - (first / scale).mul_(rate / (1 - BETAS[0] ** (step + 1)))
        delta = (start + delta).clamp_(0, 1).sub_(start)
        change = settings.tau_step * rate
        tau = (tau + torch.where(done, change, -change)[:, None]).clamp_(0, 1)
        delta.masked_fill_(delta.abs() < tau, 0)


def _slope(delta: Tensor, sigma: float) -> Tensor:
    """Return the gradient of the mean over features of delta^2 / (delta^2 + sigma)."""
    return (2 * sigma / delta.shape[1]) * delta / (delta.square() + sigma).square()


def _normalised(gradient: Tensor) -> Tensor:
    return gradient / gradient.abs().amax(dim=1, keepdim=True).clamp_min(TINY)
