"""Training on noisy inputs: Holmström and Koistinen 1992."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import bench


@dataclass(frozen=True)
class GaussianNoise(bench.Defense):
    """Train on inputs with Gaussian noise of standard deviation ``sigma``, in input units."""

    sigma: float = 0.1

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise ValueError(f"sigma must not be negative, got {self.sigma!r}")

    def fit(self, model: nn.Module, train: bench.Split, context: bench.FitContext) -> None:
        """Train on one noisy copy of the inputs."""
        noise = torch.randn(train.x.shape, generator=context.generator, device=train.x.device)
        context.train(model, (train.x + self.sigma * noise).clamp(0, 1), train.y)
