"""The fast gradient method, through ART.

Source: Goodfellow, Shlens, Szegedy 2015, *Explaining and Harnessing Adversarial Examples*,
arXiv 1412.6572.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.art_call import Call, generate
from bench.plugin import Attack, AttackContext, Perturbation
from bench.types import Targets, ThreatModel


class LogOddsLoss(nn.Module):
    """Minus the log-odds of a class: log sum over j != y of exp z_j, minus z_y, summed over rows.

    Its gradient with respect to the logits is -1 for y and a softmax over the others. Where
    cross-entropy multiplies it by 1 - F_y, which is 0 in float32 once F_y rounds to 1, nothing
    cancels here. FGSM ascends it untargeted and descends it towards a target.
    """

    def forward(self, logits: Tensor, onehot: Tensor) -> Tensor:
        """Return the loss of ``logits`` (batch, classes) and ``onehot`` labels of that shape."""
        chosen = onehot > 0
        others = logits.masked_fill(chosen, -torch.inf).logsumexp(1)
        return (others - logits[chosen]).sum()


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of the gradient: x + eps times its sign (linf) or its direction (l2), clipped.

    ``norm``: ``linf`` or ``l2``. ``eps``: the budget in input units, in (0, 1] for linf and
    positive for l2. ``targets``: which attempts the runner makes; a targeted step goes down the
    target's loss. ``output``: what is differentiated, the cross-entropy of the ``deployed``
    logits, or their ``log_odds``.

    Inputs are (batch, *shape) float32 in [0, 1]. Raises ``ValueError`` for a field out of range.
    """

    eps: float = 0.1
    norm: Literal["linf", "l2"] = "linf"
    targets: Targets = "untargeted"
    output: Literal["deployed", "log_odds"] = "deployed"

    def __post_init__(self) -> None:
        for name, valid in {
            "norm": ("linf", "l2"),
            "targets": ("untargeted", "all", "random", "runner-up"),
            "output": ("deployed", "log_odds"),
        }.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {valid}, got {getattr(self, name)!r}")
        if self.norm == "linf" and not 0 < self.eps <= 1:
            raise ValueError(f"eps must be in (0, 1], got {self.eps!r}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps must be positive and finite, got {self.eps!r}")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of radius ``eps``, whatever the ``shape``."""
        return ThreatModel(self.norm, self.eps)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Take one step from ``x`` (batch, *shape), away from ``y`` or towards ``target``."""
        params = {"eps": self.eps, "norm": "inf" if self.norm == "linf" else 2, "batch_size": 128}
        loss = LogOddsLoss() if self.output == "log_odds" else None
        call = Call("FastGradientMethod", params, loss)
        x_adv = generate(call, model, x, y, target, context)
        return Perturbation(x_adv, torch.ones_like(y))
