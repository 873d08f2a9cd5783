"""Under L2 the squared length is minimised, with a binary search over c: section VI.A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from attacks.carlini_wagner.search import GROWTH, LARGEST, Search, Seen
from attacks.carlini_wagner.settings import Settings
from attacks.kit.view import View


@dataclass
class L2Search(Search):
    """``lower``, ``upper``: the largest c that failed, the least that succeeded.

    ``enough``: whether this attempt has succeeded.
    """

    lower: Tensor
    upper: Tensor
    enough: Tensor

    @classmethod
    def of(cls, settings: Settings, view: View, rows: Tensor) -> Self:
        """Return the search on ``rows`` of the batch."""
        lower = view.clean.new_zeros(len(rows), dtype=torch.float64)
        upper = torch.full_like(lower, torch.inf)
        enough = torch.zeros_like(rows, dtype=torch.bool)
        return cls.begin(settings, view, rows, lower=lower, upper=upper, enough=enough)

    def length(self, change: Tensor) -> Tensor:
        """Return the length of each change, (rows,)."""
        length: Tensor = torch.linalg.vector_norm(change, dim=1)
        return length

    def penalty(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared length, and its gradient."""
        return change.square().sum(1), 2 * change

    def succeeded(self, seen: Seen) -> Tensor:
        """Return where the clean input is at its goal: an attempt goes on to come nearer."""
        self.enough = self.enough | seen.done
        return seen.done & ~seen.change.any(dim=1)

    def conclude(self, over: Tensor, seen: Seen) -> Tensor:
        """Halve the range of c, or go beyond it; each attempt starts from x."""
        c = self.c.double()
        self.upper = torch.where(over & self.enough, c.minimum(self.upper), self.upper)
        self.lower = torch.where(over & ~self.enough, c.maximum(self.lower), self.lower)
        following = torch.where(self.upper.isinf(), c * GROWTH, (self.lower + self.upper) / 2)
        self.c = torch.where(over, following, c).clamp(max=LARGEST).to(self.c.dtype)
        self.tried = self.tried + over
        self.enough = self.enough & ~over
        self.w = torch.where(over[:, None], self.origin, self.w)
        self.restart(over)
        return (self.tried < self.settings.searches) & ~(seen.done & ~seen.change.any(dim=1))
