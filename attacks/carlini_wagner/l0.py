"""Under L0 the L2 attack runs on fewer and fewer features, until it fails: section VI.B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from attacks.carlini_wagner.search import Search, Seen
from attacks.carlini_wagner.settings import Settings
from attacks.kit.view import View
from bench.base.types import count_features

SHARE = 0.3
"""Of n changed features, 0.3 times the root of n are fixed at once, as the authors' code does."""


@dataclass
class L0Search(Search):
    """``free``: which features may still change, (rows, features), as bool.

    ``groups``: how many features or pixels there are; features c, c + groups, ... are one pixel.
    """

    free: Tensor
    groups: int

    @classmethod
    def of(cls, settings: Settings, view: View, rows: Tensor) -> Self:
        """Return the search on ``rows`` of the batch."""
        groups = count_features(view.shape[1:] if settings.pixels else view.shape)
        free = torch.ones_like(view.clean[rows], dtype=torch.bool)
        return cls.begin(settings, view, rows, free=free, groups=groups)

    def length(self, change: Tensor) -> Tensor:
        """Return how many features, or pixels, are changed, (rows,)."""
        return self._grouped(change != 0).any(1).sum(1).to(change.dtype)

    def penalty(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared length, and its gradient where a feature may change."""
        return change.square().sum(1), 2 * change

    def succeeded(self, seen: Seen) -> Tensor:
        """Return where the goal holds: there features are fixed."""
        return seen.done

    def step(self, gradient: Tensor, moving: Tensor) -> None:
        """Take a step in the features that are free."""
        super().step(gradient * self.free, moving)

    def conclude(self, over: Tensor, seen: Seen) -> Tensor:
        """Fix the features that matter least, or raise c; each attempt starts where it is."""
        count = self.length(seen.change)
        failed = over & ~seen.done
        self.raise_c(failed)
        self.tried = torch.where(seen.done, 0, self.tried + failed)
        if bool(seen.done.any()):
            self._fix(seen, count)
        self.restart(over)
        return (self.tried < self.settings.searches) & ~(seen.done & (count <= 1))

    def _fix(self, seen: Seen, count: Tensor) -> None:
        """Take from the free features of rows at their goal those with the least |g_i d_i|.

        g is the gradient of the loss before its max, which would be 0 there, and d the change: to
        first order their product is what the feature has done for the goal.
        """
        rows = seen.done.nonzero().squeeze(1)
        free = self._grouped(self.free[rows]).any(1)
        effect = self._grouped((seen.slope[rows] * seen.change[rows]).abs()).sum(1)
        order = effect.masked_fill(~free, torch.inf).argsort(dim=1, stable=True)
        most = (SHARE * count[rows].sqrt()).ceil().clamp(min=1)
        fixed = torch.arange(self.groups, device=rows.device) < most[:, None]
        free = free & ~torch.zeros_like(free).scatter(1, order, fixed)
        self.free = self.free.index_copy(
            0, rows, free.repeat(1, self.clean.shape[1] // self.groups)
        )
        self.w = torch.where(self.free, self.w, self.origin)

    def _grouped(self, values: Tensor) -> Tensor:
        """Return ``values`` (rows, features) as (rows, channels, groups)."""
        return values.view(len(values), -1, self.groups)
