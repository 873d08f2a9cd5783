"""No defense: the reference network, trained on hard labels. Every comparison starts here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bench.plugins.contracts import Defense, FitContext
from bench.plugins.data import Split


@dataclass(frozen=True)
class Undefended(Defense):
    """The reference network, trained by cross-entropy on hard labels at T = 1."""

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels."""
        context.train(model, train.x, train.y)


@dataclass(frozen=True)
class Twin(Undefended):
    """An undefended network with another seed: its weights and batches are its name's own.

    A source of transferred inputs, and the control that says how far two networks differ by
    chance. A run seeds each fit by its seed and the defense's name.
    """
