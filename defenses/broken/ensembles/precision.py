"""Ensembles of mixed precision (EMPIR): Sen, Ravindran, Raghunathan 2020, arXiv 2004.10162."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)
from torch.nn.utils import parametrize

from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from defenses.broken.base import Broken, alike, swapped
from defenses.broken.ensembles.diversity import Ensemble

MOST_BITS = 8


@dataclass(frozen=True)
class MixedPrecisionEnsemble(Broken):
    """One network in full precision and two with few bits, whose mean probability answers.

    ``weight_bits`` and ``activation_bits``: of the two, 1 to 8. They learn by straight-through
    gradients; deployed, their activations have none.
    """

    weight_bits: int = 2
    activation_bits: int = 2

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            if not 1 <= getattr(self, name) <= MOST_BITS:
                raise ValueError(
                    f"{name} must be in [1, {MOST_BITS}], got {getattr(self, name)!r}: more are no "
                    "low precision"
                )

    def build(self, context: BuildContext) -> nn.Module:
        """Return the ensemble; raises ValueError where the network has no ReLU."""
        return Ensemble([context.network(), self._coarse(context), self._coarse(context)])

    def _coarse(self, context: BuildContext) -> nn.Module:
        network = swapped(context.network(), nn.ReLU, lambda _: Steps(self.activation_bits))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                parametrize.register_parametrization(
                    layer, "weight", FewBits(self.weight_bits), unsafe=True
                )
        return network

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train every member on the labels."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            assert isinstance(model, Ensemble)
            losses = [F.cross_entropy(member(x).float(), y) for member in model.members]
            return torch.stack(losses).sum()

        context.train(model, train.x, train.y, objective=objective)

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return a copy whose activations pass gradients."""
        return alike(model, Steps, lambda _: Steps(self.activation_bits, deployed=False))


class Steps(nn.Module):
    """Its input between 0 and 1, rounded to ``bits``; gradients pass only while it learns.

    Zhou et al. 2016, arXiv 1606.06160 (DoReFa). ``deployed`` False: they always pass.
    """

    def __init__(self, bits: int, *, deployed: bool = True) -> None:
        super().__init__()
        self.highest = 2**bits - 1
        self.deployed = deployed

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded activations."""
        bounded = x.clamp(0, 1)
        rounded = (bounded * self.highest).round() / self.highest
        if self.deployed and not self.training:
            coarse: Tensor = rounded
            return coarse
        through: Tensor = bounded + (rounded - bounded).detach()
        return through


class FewBits(nn.Module):
    """Weights on a symmetric grid of 2^``bits`` values, with the gradient of the identity."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.highest = 2**bits - 1

    def forward(self, weights: Tensor) -> Tensor:
        """Return the rounded weights, of the shape of ``weights``."""
        scale = weights.detach().abs().mean() * 2
        share = (weights / scale.clamp(min=1e-12)).clamp(-1, 1) / 2 + 0.5
        rounded = ((share * self.highest).round() / self.highest - 0.5) * 2 * scale
        through: Tensor = weights + (rounded - weights).detach()
        return through
