"""The plugin face of ``attacks.carlini_wagner``: parameters, threat model, targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from attacks.carlini_wagner.attack import attack
from attacks.carlini_wagner.settings import Settings
from bench.base.types import Targets, ThreatModel
from bench.measure.recast import Precision, check_temperature, view
from bench.plugins.contracts import Attack, AttackContext, Perturbation


@dataclass(frozen=True)
class CarliniWagner(Settings, Attack):
    """Carlini and Wagner's attacks, the nearest adversarial: arXiv 1608.04644.

    ``norm``: what is minimised, ``l2``, ``l0`` or ``linf``. ``loss``: ``f1`` to ``f7``, of which
    the authors take ``f6``, the gap between logits. ``kappa``: by how much the goal has to win, in
    logits as the attack sees them. ``steps``: of Adam, for one value of c. ``searches``: how many
    values of c. ``learning_rate``: of Adam. ``initial_const``: the first c. ``shrink``: of tau,
    under ``linf``. ``pixels``: whether ``l0`` counts pixels. ``chunk``: rows at once.
    ``targets``: ``untargeted``, ``all``, ``random``, ``runner-up``. ``precision`` and
    ``temperature`` attack the same weights otherwise (``bench.measure.recast.View``): computed in
    float64, the logits divided by the temperature, as the authors did with distilled networks.
    ``adaptive = False`` differentiates the model as it is, never a defense's surrogate.
    """

    targets: Targets = "untargeted"
    precision: Precision = "float32"
    temperature: float = 1.0
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets must be one of {get_args(Targets)}, got {self.targets!r}")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision must be one of {get_args(Precision)}, got {self.precision!r}"
            )
        check_temperature(self.temperature)

    @property
    def rowwise(self) -> bool:
        """Each row has its own c and its own optimiser."""
        return True

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the least norm, whatever the ``shape``; L0 in features or pixels."""
        if self.norm == "l0":
            return ThreatModel("l0", None, "pixels" if self.pixels else "features")
        return ThreatModel(self.norm)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows."""
        seen, inputs = view(model, x, self.precision, self.temperature)
        result = attack(self, seen, inputs, y, target)
        reasons = ["reached" if done else "steps" for done in result.success.tolist()]
        x_adv = result.x_adv.to(x.dtype)
        return Perturbation(x_adv, result.iterations, reasons, result.zero_gradients)
