"""The plugin face of ``attacks.sigma_zero.sigma_zero``: parameters, threat model, targets."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from attacks.sigma_zero import Descent, sigma_zero
from bench.plugin import Attack, AttackContext, Perturbation
from bench.types import Targets, ThreatModel, count_features


@dataclass(frozen=True)
class SigmaZero(Attack):
    """sigma-zero, the sparsest adversarial by gradients: Cinà et al. 2025, arXiv 2402.01879.

    The parameters are those of ``attacks.sigma_zero.sigma_zero``, which says more of each.
    ``max_features``: a budget; without it the attack looks for the minimum norm. ``steps``:
    passes a row. ``step_size``: the first step of Adam. ``sigma``: smoothness of the stand-in
    for L0. ``tau``, ``tau_step``: the threshold below which changes are dropped, and how it
    moves. ``targets``: ``untargeted``, ``all``, ``random``, ``runner-up``. ``adaptive``: whether
    a defense's surrogate is differentiated, where it has one, or the model as it is. ``chunk``:
    rows at a time.
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
        for name in ("max_features", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        Descent(self.steps, self.step_size, self.sigma, self.tau, self.tau_step)

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """L0 in features: minimum norm, or ``max_features`` as a fraction of them."""
        if self.max_features is None:
            return ThreatModel("l0", None, "features")
        return ThreatModel("l0", min(1.0, self.max_features / count_features(shape)), "features")

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows."""
        result = sigma_zero(
            model,
            x,
            y,
            target,
            max_features=self.max_features,
            steps=self.steps,
            step_size=self.step_size,
            sigma=self.sigma,
            tau=self.tau,
            tau_step=self.tau_step,
            chunk=self.chunk,
        )
        reasons = ["reached" if done else "steps" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.iterations, reasons, result.zero_gradients)
