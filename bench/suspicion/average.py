"""A stochastic model as an attack should see it: the average of several draws.

Athalye, Engstrom, Ilyas, Kwok 2018, arXiv 1707.07397: expectation over transformation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEAST_DRAWS = 20
"""Draws of an average that is to be attacked."""

ROWS = 1024
"""Copies of rows that are asked at once: more of them leave a CPU's caches."""


class Average(nn.Module):
    """The logarithm of the mean probability of ``draws`` answers of ``model``, (batch, classes).

    A draw that is not finite gives no class any probability; NaN where none is.
    ``by_row``: the model draws anew for every row, so that copies of a row in one query are as good
    as several queries, and cheaper.
    """

    def __init__(self, model: nn.Module, draws: int = LEAST_DRAWS, *, by_row: bool = False) -> None:
        super().__init__()
        self.model = model
        self.draws = draws
        self.by_row = by_row

    def forward(self, x: Tensor) -> Tensor:
        """Return what the average answers to ``x`` (batch, *shape), as logits."""
        copies = max(1, ROWS // max(1, len(x))) if self.by_row else 1
        found = []
        for first in range(0, self.draws, copies):
            count = min(copies, self.draws - first)
            logits = self.model(torch.cat([x] * count) if count > 1 else x)
            finite = logits.isfinite().all(dim=1, keepdim=True)
            told = torch.where(finite, logits, 0).log_softmax(dim=1)
            found.append(torch.where(finite, told, -torch.inf).view(count, len(x), -1))
        every = torch.cat(found)
        none = every.isinf().all(dim=2).all(dim=0)[:, None]
        return every.masked_fill(none, math.nan).logsumexp(dim=0) - math.log(self.draws)
