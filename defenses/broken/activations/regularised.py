"""Input gradient regularisation: Ross, Doshi-Velez 2018, arXiv 1711.09404."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.contracts import FitContext
from bench.plugins.data import Split
from defenses.broken.base import Broken
from defenses.crafting import check_positive, full_precision


@dataclass(frozen=True)
class GradientRegularisation(Broken):
    """Cross-entropy plus ``weight`` (positive) times the squared length of its input gradient."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(weight=self.weight)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train by double backpropagation."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with full_precision(x):
                x = x.detach().requires_grad_()
                loss = F.cross_entropy(model(x), y)
                # The loss is a mean over rows, the penalty a mean of each row's own gradient.
                (slope,) = torch.autograd.grad(loss * len(x), x, create_graph=True)
                return loss + self.weight * slope.flatten(1).square().sum(dim=1).mean()

        context.train(model, train.x, train.y, objective=objective)
