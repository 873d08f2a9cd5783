"""A baseline that every attack should beat: uniform noise within the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bench


@dataclass(frozen=True)
class UniformNoise(bench.Attack):
    """Add noise drawn uniformly from [-``eps``, ``eps``] to every feature, once."""

    eps: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps must be in (0, 1], got {self.eps!r}")

    @property
    def access(self) -> str:
        """Nothing of the model is seen."""
        return "transfer"

    def threat(self, shape: tuple[int, ...]) -> bench.ThreatModel:
        """Return the ball of radius ``eps``."""
        return bench.ThreatModel("linf", self.eps)

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        target: Tensor | None,
        context: bench.AttackContext,
    ) -> bench.Perturbation:
        """Add the noise and clip."""
        draw = torch.rand(x.shape, generator=context.generator(x.device), device=x.device)
        return bench.Perturbation((x + self.eps * (2 * draw - 1)).clamp(0, 1))
