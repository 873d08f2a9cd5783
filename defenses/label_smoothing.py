"""Soft labels without a teacher: label smoothing, and the control of the distillation paper.

Szegedy et al. 2016, arXiv 1512.00567 (section 7); Papernot et al. 2016, arXiv 1511.04508.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.contracts import Defense, FitContext
from bench.plugins.data import Split


def smooth(labels: Tensor, classes: int, amount: float) -> Tensor:
    """Return (1 - amount) on the label plus amount / classes everywhere, (n, classes) float32."""
    return (1 - amount) * F.one_hot(labels, classes).float() + amount / classes


def soft_label(labels: Tensor, classes: int) -> Tensor:
    """Return 0.9 for the label and 1 / (10 classes) for each other class, (n, classes) float32.

    With ten classes that sums to 0.99, so the rows are normalised.
    """
    soft = torch.full((len(labels), classes), 1 / (10 * classes), device=labels.device)
    soft.scatter_(1, labels[:, None], 0.9)
    return soft / soft.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class LabelSmoothing(Defense):
    """Cross-entropy against smoothed labels; ``amount`` in (0, 1) is spread over all classes."""

    amount: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.amount < 1:
            raise ValueError(f"amount must be in (0, 1), got {self.amount!r}")

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on smoothed labels."""
        context.train(model, train.x, smooth(train.y, context.info.classes, self.amount))


@dataclass(frozen=True)
class SoftLabel(Defense):
    """The distillation paper's control: 0.9 for the label, 1 / (10 N) for each other class."""

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the soft labels, normalised to sum to one."""
        context.train(model, train.x, soft_label(train.y, context.info.classes))
