"""Universal perturbations: one change that, added to almost any input, changes the prediction.

Moosavi-Dezfooli, Fawzi, Fawzi, Frossard 2017, *Universal adversarial perturbations*, arXiv
1610.08401. Found not by DeepFool image after image, as there, but by stochastic gradient ascent on
a clipped loss of whole batches: Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein 2018, *Universal
Adversarial Training*, arXiv 1811.11304, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.kit.ball import BallNorm, check_ball, check_counts, check_inputs, project, steepest
from attacks.kit.learning import batches, check_loss, check_positive
from attacks.kit.losses import LOSSES, Output
from attacks.kit.model import Model, finite_gradient, widened
from bench.base.types import DataInfo, ThreatModel
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import AttackContext, FitContext, LearningAttack, Perturbation
from bench.plugins.data import Split

LOOKS = 20
"""How often, while it learns, the fooling rate is measured."""

SEEN = 2000
"""Training inputs on which it is."""

FIRST = 0.1
"""Length of the first step as a share of ``eps``; it falls linearly to none."""


@dataclass(frozen=True)
class Universal(LearningAttack):
    """One perturbation for all inputs: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401.

    ``eps``: the budget in input units, in (0, 1] for linf and positive for l2. ``norm``: ``linf``
    or ``l2``. ``steps``: gradient steps, each on ``batch_size`` training inputs (Shafahi et al.
    2018, arXiv 1811.11304). ``fooling_rate``: in (0, 1]; it stops where so large a share of
    training predictions has changed. ``clip``: the loss of an input counts no further once it is
    that large, so that those already fooled do not decide. ``output``: what is climbed, a key of
    ``attacks.kit.losses.LOSSES``. ``fitted_eps``: learn once in this ball, and scale to ``eps``:
    all budgets then share one fit; by default each budget has its own.
    """

    eps: float = 0.1
    norm: BallNorm = "linf"
    steps: int = 400
    batch_size: int = 128
    fooling_rate: float = 1.0
    clip: float = 2.0
    output: Output = "margin"
    fitted_eps: float | None = None

    def __post_init__(self) -> None:
        check_ball(self.norm, self.eps)
        if self.fitted_eps is not None:
            check_ball(self.norm, self.fitted_eps)
        check_counts(steps=self.steps, batch_size=self.batch_size)
        check_positive(clip=self.clip)
        if not 0 < self.fooling_rate <= 1:
            raise ValueError(f"fooling_rate must be in (0, 1], got {self.fooling_rate!r}")
        if self.output not in LOSSES:
            raise ValueError(f"output must be one of {tuple(LOSSES)}, got {self.output!r}")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of radius ``eps``, whatever the ``shape``."""
        return ThreatModel(self.norm, self.eps)

    def fitted_as(self) -> Universal:
        """Return the attack at ``fitted_eps``, where it is given."""
        if self.fitted_eps is None:
            return self
        return replace(self, eps=self.fitted_eps)

    def build(self, info: DataInfo) -> OnePerturbation:
        """Return a perturbation of zeros."""
        return OnePerturbation(info.shape)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> OnePerturbation:
        """Learn the perturbation, on the training inputs without their labels."""
        found = self.build(context.info).to(train.y.device)
        delta = _learn(self, model, train, context.generator)
        found.delta.data.copy_(delta)
        return found

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Add the same perturbation to every row, inside the box: the model is not asked."""
        delta = self.learnt(context).get_parameter("delta").detach()
        if self.fitted_eps is not None:
            delta = delta * (self.eps / self.fitted_eps)  # a copy: what was learnt stays
        return Perturbation(add(x, delta, self.eps, self.norm))


class OnePerturbation(nn.Module):
    """``delta``: (*shape), what is added to every input."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape))


def add(x: Tensor, delta: Tensor, eps: float, norm: BallNorm) -> Tensor:
    """Return x + delta inside the box and the ball: (batch, *shape) of x and (*shape) of delta.

    Raises ValueError where the shapes are not the same: one perturbation is of one shape.
    """
    if x.shape[1:] != delta.shape:
        raise ValueError(
            f"the perturbation was learnt for inputs of shape {tuple(delta.shape)}, and these are "
            f"of {tuple(x.shape[1:])}: one perturbation serves one shape"
        )
    flat = x.flatten(1)
    return project(flat + delta.flatten(), flat, eps, norm).view_as(x)


def universal(
    model: Model,
    x: Tensor,
    *,
    eps: float,
    norm: BallNorm = "linf",
    seed: int = 0,
    **parameters: Any,
) -> Tensor:
    """Return one perturbation, (*shape), that changes the predictions of most of ``x``.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored.
        x: (batch, *shape), floating-point, in [0, 1]: what it is learnt on, all of one shape.
        eps: radius of the ball of ``norm``, in input units.
        norm: "linf" or "l2".
        seed: of the order in which ``x`` is gone through.
        parameters: the other fields of `Universal`: steps, batch_size, fooling_rate, clip, output.

    Raises:
        ValueError, TypeError: an argument is invalid, or the inputs are of several shapes.
        DivergedError: the loss is not finite.

    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x must be one tensor (batch, *shape), got {type(x).__name__}: one perturbation "
            "serves inputs of one shape"
        )
    check_inputs(x, None, None, None)
    settings = Universal(eps, norm, **parameters)
    train = Split(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    generator = torch.Generator(x.device).manual_seed(seed)
    return _learn(settings, model, train, generator)


def _learn(settings: Universal, model: Model, train: Split, generator: torch.Generator) -> Tensor:
    eps, norm = settings.eps, settings.norm
    loss_of = LOSSES[settings.output]
    every = max(1, settings.steps // LOOKS)
    sample = train.take(slice(0, SEEN)).x
    delta = torch.zeros_like(sample[:1])
    best, most = delta.clone(), -1.0
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        steps = batches(train, settings.batch_size, settings.steps, generator)
        for step, (x, _) in enumerate(steps):
            if step % every == 0 and (rate := _fooled(model, sample, delta)) >= most:
                best, most = delta.clone(), rate
                if rate >= settings.fooling_rate:
                    break
            with torch.no_grad():
                believed = model(x).argmax(1)
            leaf = delta.clone().requires_grad_()
            loss = loss_of(widened(model((x + leaf).clamp(0, 1))), believed, None)
            check_loss(loss.sum(), step)
            gradient = finite_gradient(loss.clamp(max=settings.clip), leaf)
            length = FIRST * eps * (1 - step / settings.steps)
            moved = delta.flatten(1) + length * steepest(gradient, norm)
            delta = _within(moved, eps, norm).view_as(delta)
        if _fooled(model, sample, delta) >= most:
            best = delta
    return best[0]


def _within(delta: Tensor, eps: float, norm: BallNorm) -> Tensor:
    """Return ``delta`` (1, features) in the ball of radius ``eps`` around 0, whatever the box."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    length: Tensor = torch.linalg.vector_norm(delta)
    return delta * (eps / length).clamp(max=1)


def _fooled(model: Model, x: Tensor, delta: Tensor) -> float:
    """Return the share of ``x`` whose prediction ``delta`` changes."""
    with torch.no_grad():
        changed = [
            model(part).argmax(1) != model((part + delta).clamp(0, 1)).argmax(1)
            for part in torch.split(x, 256)
        ]
    return float(torch.cat(changed).double().mean())
