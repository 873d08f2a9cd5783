"""Saturating networks: Nayebi, Ganguli 2017, arXiv 1703.09202."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from defenses.broken.base import Broken, StraightThrough, alike, swapped
from defenses.crafting import check_positive


@dataclass(frozen=True)
class SaturatingNetwork(Broken):
    """Units bounded by 0 and 1 that are paid for staying at the bounds.

    ``weight``: of the penalty, the mean distance of a unit's input to the nearer flat part,
    positive. ``build`` raises ValueError where the network has no ReLU to replace.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(weight=self.weight)

    def build(self, context: BuildContext) -> nn.Module:
        """Return the network with bounded units."""
        return swapped(context.network(), nn.ReLU, lambda _: Bounded())

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels and the penalty."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            distances: list[Tensor] = []

            def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
                distances.append(torch.minimum(inputs[0], 1 - inputs[0]).clamp(min=0).mean())

            units = [module for module in model.modules() if isinstance(module, Bounded)]
            hooks = [unit.register_forward_pre_hook(note) for unit in units]
            try:
                loss = F.cross_entropy(model(x).float(), y)
            finally:
                for hook in hooks:
                    hook.remove()
            return loss + self.weight * torch.stack(distances).mean()

        context.train(model, train.x, train.y, objective=objective)

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return a copy whose units have the slope of a sigmoid as wide as they are."""
        return alike(
            model, Bounded, lambda unit: StraightThrough(unit, lambda h: torch.sigmoid(4 * h - 2))
        )


class Bounded(nn.Module):
    """Its input between 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` clamped."""
        return x.clamp(0, 1)
