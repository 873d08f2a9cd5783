"""Stochastic activation pruning: Dhillon et al. 2018, arXiv 1803.01442."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from bench.suspicion.average import Average
from defenses.broken.base import Broken, swapped
from defenses.crafting import check_positive
from defenses.undefended import Undefended


@dataclass(frozen=True)
class ActivationPruning(Broken):
    """A trained network whose activations are drawn at random, larger ones more often.

    ``samples``: draws a layer, with replacement, as a share of its units, positive. A unit that is
    never drawn is zero, the others are scaled so that each keeps its mean. Nothing is trained: the
    network is the undefended one, as in the paper. ``build`` raises ValueError where the network
    has no ReLU.
    """

    samples: float = 1.0

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(samples=self.samples)

    def requires(self) -> Mapping[str, Defense]:
        """Name the undefended network."""
        return {"undefended": Undefended()}

    def build(self, context: BuildContext) -> nn.Module:
        """Return the undefended network with pruned activations."""
        network = deepcopy(context.fitted["undefended"])
        return swapped(network, nn.ReLU, lambda _: nn.Sequential(nn.ReLU(), Prune(self.samples)))

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Learn nothing."""
        return

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the average of draws that the harness would take too, made side by side."""
        return Average(model, by_row=True)


class Prune(nn.Module):
    """Keep what is drawn: r draws with replacement, each unit with p = |h| / sum |h|.

    A kept unit is divided by 1 - (1 - p)^r, the probability to be kept. Dhillon et al., section 3.
    """

    def __init__(self, samples: float) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, ...) of the shape of ``x``; a row of zeros stays."""
        flat = x.flatten(1)
        draws = max(1, round(self.samples * flat.shape[1]))
        weights = flat.detach().abs()
        chance = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        kept = -torch.expm1(draws * torch.log1p(-chance.clamp(max=1 - 1e-6)))
        # Whether a unit is among the draws: independent of the others, which is close for many.
        drawn = torch.rand_like(kept) < kept
        return torch.where(drawn, flat / kept.clamp(min=1e-12), 0).view_as(x)
