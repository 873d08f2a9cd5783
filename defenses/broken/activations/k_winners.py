"""k-winners-take-all: Xiao, Zhong, Zheng 2020, arXiv 1905.10510."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.plugins.contracts import BuildContext
from defenses.broken.base import Broken, FiniteDifferences, swapped


@dataclass(frozen=True)
class KWinnersTakeAll(Broken):
    """Of each layer only the largest activations pass: ``share`` of them, in (0, 1).

    They take the place of every ReLU; the network is trained so. ``build`` raises ValueError where
    there is none.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), got {self.share!r}")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the network with other activations."""
        return swapped(context.network(), nn.ReLU, lambda _: KWinners(self.share))

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return the network with a gradient from differences."""
        return FiniteDifferences(model)


class KWinners(nn.Module):
    """Zero but for the largest ``share`` of a row's activations, at least one; ties all pass."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, ...) of the shape of ``x``."""
        flat = x.flatten(1)
        count = max(1, round(self.share * flat.shape[1]))
        least = flat.topk(count, dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(x)
