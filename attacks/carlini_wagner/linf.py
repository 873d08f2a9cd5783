"""Under L-infinity what exceeds tau is penalised, and tau shrinks: section VI.C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from attacks.carlini_wagner.search import Search, Seen
from attacks.carlini_wagner.settings import Settings
from attacks.kit.view import View

LEAST = 1 / 256
"""The tau at which a row is done: less than one of 255 levels."""


@dataclass
class LinfSearch(Search):
    """``tau``: what an entry of the change may be at no cost, (rows,)."""

    tau: Tensor

    @classmethod
    def of(cls, settings: Settings, view: View, rows: Tensor) -> Self:
        """Return the search on ``rows`` of the batch."""
        dtype = torch.promote_types(view.clean.dtype, torch.float32)
        tau = view.clean.new_ones(len(rows), dtype=dtype)
        return cls.begin(settings, view, rows, tau=tau)

    def length(self, change: Tensor) -> Tensor:
        """Return the largest entry of each change, (rows,)."""
        return change.abs().amax(1)

    def penalty(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of what exceeds tau, and its gradient."""
        beyond = change.abs() - self.tau[:, None]
        return beyond.clamp(min=0).sum(1), change.sign() * (beyond > 0)

    def succeeded(self, seen: Seen) -> Tensor:
        """Return where the goal holds within tau: there tau shrinks."""
        return seen.done & (self.length(seen.change) <= self.tau)

    def rate(self) -> Tensor:
        """Return steps in proportion to tau: of one length they would soon overshoot it."""
        return self.settings.learning_rate * self.tau.to(self.c.dtype)

    def conclude(self, over: Tensor, seen: Seen) -> Tensor:
        """Shrink tau, or raise c; each attempt starts where it is."""
        nearer = self.succeeded(seen)
        failed = over & ~nearer
        self.tau = torch.where(nearer, self.length(seen.change) * self.settings.shrink, self.tau)
        self.raise_c(failed)
        self.tried = torch.where(nearer, 0, self.tried + failed)
        self.restart(over)
        return (self.tried < self.settings.searches) & (self.tau > LEAST)
