"""MagNet's reformer: Meng, Chen 2017, arXiv 1705.09064."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from defenses.broken.base import Broken
from defenses.crafting import check_positive


@dataclass(frozen=True)
class Magnet(Broken):
    """An autoencoder, trained on noisy inputs, redraws the input for an undefended network.

    ``hidden``: units of its hidden layer, at least 1; ``sigma``: of the noise, positive. The
    paper's detectors, which reject, are left out: a classifier has no such answer.
    """

    hidden: int = 32
    sigma: float = 0.1

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden!r}")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the autoencoder and the network."""
        return nn.Sequential(Autoencoder(context.info.shape, self.hidden), context.network())

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train the network on clean images and the autoencoder on noisy ones, side by side."""
        assert isinstance(model, nn.Sequential)
        reformer, network = model

        def objective(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=context.generator, device=x.device)
            redrawn = reformer((x + self.sigma * noise).clamp(0, 1))
            return F.cross_entropy(network(x).float(), y) + 10 * F.mse_loss(redrawn.float(), x)

        context.train(model, train.x, train.y, objective=objective)


class Autoencoder(nn.Module):
    """features → 2 · hidden → hidden → 2 · hidden → features, in [0, 1], for inputs of ``shape``.

    ``encode`` and ``decode`` are its halves: (batch, *shape) to (batch, hidden) and back.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.shape = shape
        features = math.prod(shape)
        self.encode = nn.Sequential(
            nn.Flatten(), nn.Linear(features, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden)
        )
        self.decode = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, features),
            nn.Sigmoid(), nn.Unflatten(1, shape),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return what is left of ``x`` after the bottleneck."""
        drawn: Tensor = self.decode(self.encode(x))
        return drawn
