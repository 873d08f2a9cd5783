"""The fast gradient method, through ART.

Source: Goodfellow, Shlens, Szegedy 2015, *Explaining and Harnessing Adversarial Examples*,
arXiv 1412.6572.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.kit.ball import BallNorm, check_ball, project, steepest
from attacks.kit.losses import LOSSES, log_odds_against
from attacks.kit.model import chunks, finite_gradient
from attacks.peers.art_call import Call, generate
from bench.base.types import Targets, ThreatModel
from bench.measure.at_rest import at_rest
from bench.measure.recast import Precision, check_temperature, view
from bench.plugins.contracts import Attack, AttackContext, Perturbation

ROWS = 128
"""Rows a query."""


class LogOddsLoss(nn.Module):
    """``attacks.kit.losses.log_odds_against`` as ART calls a loss: on one-hot labels, summed.

    FGSM ascends it untargeted and descends it towards a target.
    """

    def forward(self, logits: Tensor, onehot: Tensor) -> Tensor:
        """Return the loss of ``logits`` (batch, classes) and ``onehot`` labels of that shape."""
        return log_odds_against(logits, onehot.argmax(1)).sum()


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of the gradient: x + eps times its sign (linf) or its direction (l2), clipped.

    ``norm``: ``linf`` or ``l2``. ``eps``: the budget in input units, in (0, 1] for linf and
    positive for l2. ``targets``: which attempts the runner makes; a targeted step goes down the
    target's loss. ``output``: what is differentiated, the cross-entropy of the ``deployed``
    logits, or their ``log_odds``. ``precision`` and ``temperature`` attack the same weights
    otherwise (``bench.measure.recast.View``): computed in float64, the logits divided by it.
    ART computes in float32, so a float64 gradient is taken here.

    Inputs are (batch, *shape) float32 in [0, 1]. Raises ``ValueError`` for a field out of range.
    """

    eps: float = 0.1
    norm: BallNorm = "linf"
    targets: Targets = "untargeted"
    output: Literal["deployed", "log_odds"] = "deployed"
    precision: Precision = "float32"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, valid in {
            "targets": ("untargeted", "all", "random", "runner-up"),
            "output": ("deployed", "log_odds"),
        }.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {valid}, got {getattr(self, name)!r}")
        check_ball(self.norm, self.eps)
        check_temperature(self.temperature)

    @property
    def rowwise(self) -> bool:
        """Each row has its own steps, and nothing is drawn."""
        return True

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of radius ``eps``, whatever the ``shape``."""
        return ThreatModel(self.norm, self.eps)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Take one step from ``x`` (batch, *shape), away from ``y`` or towards ``target``."""
        seen, inputs = view(model, x, self.precision, self.temperature)
        if self.precision == "float64":
            x_adv = self._step(seen, inputs, y, target).to(x.dtype)
        else:
            params = {"eps": self.eps, "norm": "inf" if self.norm == "linf" else 2}
            loss = LogOddsLoss() if self.output == "log_odds" else None
            call = Call("FastGradientMethod", {**params, "batch_size": ROWS}, loss)
            x_adv = generate(call, seen, x, y, target, context)
        # Any gradient but zero moves a row: its sign, or its direction at length eps.
        unmoved = (x_adv == x).flatten(1).all(dim=1).long()
        return Perturbation(x_adv, torch.ones_like(y), zero_gradients=unmoved)

    def _step(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """Return ``x`` one step up the loss, in its own precision."""
        moved = [x[:0].flatten(1)]
        with torch.enable_grad(), at_rest(model):
            for rows in chunks(torch.arange(len(x), device=x.device), ROWS):
                leaf = x[rows].clone().requires_grad_()
                goal = None if target is None else target[rows]
                loss = LOSSES[self.output](model(leaf), y[rows], goal)
                gradient = finite_gradient(loss, leaf)
                flat = leaf.detach().flatten(1)
                step = self.eps * steepest(gradient, self.norm)
                moved.append(project(flat + step, flat, self.eps, self.norm))
        return torch.cat(moved).view_as(x)
