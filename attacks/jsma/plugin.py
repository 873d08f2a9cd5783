"""The plugin face of ``attacks.jsma.jsma``: parameters, threat model, targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from attacks.jsma.attack import StopReason, jsma
from attacks.kit.ball import check_counts
from attacks.kit.l0_budget import L0Budget
from bench.base.types import Targets, ThreatModel
from bench.measure.recast import Precision, check_temperature, view
from bench.plugins.contracts import Attack, AttackContext, Perturbation

PASSED = ("theta", "gamma", "max_features", "output", "saliency", "both", "pixels", "chunk")
"""The parameters of ``jsma`` that are the plugin's own."""


@dataclass(frozen=True)
class Jsma(Attack):
    """The Jacobian-based saliency map attack: Papernot et al. 2016, arXiv 1511.07528.

    The parameters are those of ``attacks.jsma.jsma``, which says more of each. ``theta``: the
    change per feature. ``gamma`` or ``max_features``: the budget, a fraction of the features or
    their number; without either, ``gamma`` is 0.145, the paper's. ``output``: what is
    differentiated. ``saliency``: which map chooses. ``both``: whether a feature may move either
    way. ``pixels``: whether pixels are counted and changed whole. ``chunk``: rows at a time.
    ``targets``: ``all``, ``random``, ``runner-up``; ``saliency = "maximal"`` is untargeted and
    takes ``untargeted`` alone. ``precision`` and ``temperature`` attack the same weights otherwise
    (``bench.measure.recast.View``): computed in float64, the logits divided by the temperature, as
    Carlini and Wagner 2016 did (arXiv 1607.04311). ``adaptive = False`` differentiates the model as
    it is, never a defense's surrogate.
    """

    theta: float = 1.0
    gamma: float | None = None
    max_features: int | None = None
    output: Literal["log_odds", "probs", "logits"] = "log_odds"
    saliency: Literal["papernot", "single", "target_gradient", "weighted", "taylor", "maximal"] = (
        "papernot"
    )
    both: bool = False
    pixels: bool = False
    targets: Targets = "all"
    chunk: int | None = None
    precision: Precision = "float32"
    temperature: float = 1.0
    adaptive: bool = True

    def __post_init__(self) -> None:
        L0Budget.of(self)
        check_counts(chunk=self.chunk)
        if not 0 < abs(self.theta) <= 1:
            raise ValueError(f"theta must be non-zero and in [-1, 1], got {self.theta!r}")
        check_temperature(self.temperature)
        if (self.saliency == "maximal") != (self.targets == "untargeted"):
            raise ValueError(
                'saliency = "maximal" goes with targets = "untargeted" and no other saliency does, '
                f"got {self.saliency!r} with {self.targets!r}"
            )

    @property
    def rowwise(self) -> bool:
        """Each row has its own steps, and nothing is drawn."""
        return True

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """L0, in features or pixels; ``max_features`` as a fraction of them."""
        return L0Budget.of(self).threat(shape)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows."""
        seen, inputs = view(model, x, self.precision, self.temperature)
        parameters = {name: getattr(self, name) for name in PASSED}
        result = jsma(seen, inputs, y if target is None else target, **parameters)
        names = {int(reason): reason.name for reason in StopReason}
        reasons = [names[code] for code in result.stop_reason.tolist()]
        x_adv = result.x_adv.to(x.dtype)
        return Perturbation(x_adv, result.iterations, reasons, result.zero_gradients)
