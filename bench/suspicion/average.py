"""A stochastic model as an attack should see it: the average of several draws.

Athalye, Engstrom, Ilyas, Kwok 2018, arXiv 1707.07397: expectation over transformation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEAST_DRAWS = 20
"""Draws of an average that is to be attacked."""


class Average(nn.Module):
    """The logarithm of the mean probability of ``draws`` answers of ``model``, (batch, classes)."""

    def __init__(self, model: nn.Module, draws: int = LEAST_DRAWS) -> None:
        super().__init__()
        self.model = model
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Return what the average answers to ``x`` (batch, *shape), as logits."""
        found = [self.model(x).log_softmax(dim=1) for _ in range(self.draws)]
        return torch.stack(found).logsumexp(dim=0) - math.log(self.draws)
