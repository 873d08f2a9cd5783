"""Random resizing and padding: Xie, Wang, Zhang, Ren, Yuille 2018, arXiv 1711.01991."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.base.types import UserError
from bench.plugins.contracts import BuildContext
from defenses.broken.base import Broken


@dataclass(frozen=True)
class RandomResizePad(Broken):
    """Every query sees the image at a random size and place, on black.

    ``smallest``: the least side as a share of the image's, in (0, 1). The paper enlarges and pads
    beyond the image (299 to 331 pixels); here it shrinks within, so that the network stays the
    run's. It is trained on such images.
    """

    smallest: float = 0.75

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.smallest < 1:
            raise ValueError(f"smallest must be in (0, 1), got {self.smallest!r}")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the random layer and the network."""
        shape, name = context.info.shape, context.info.name
        if len(shape) != 3:
            raise UserError(f"resizing takes images, and {name!r} has inputs of shape {shape}")
        if all(_side(self.smallest, side) == side for side in shape[1:]):
            raise UserError(
                f"at smallest = {self.smallest:g} no image of {name!r}, {shape[1]} × {shape[2]}, "
                "is ever smaller: take less"
            )
        return nn.Sequential(ResizePad(self.smallest), context.network())


def _side(share: float, side: int) -> int:
    return max(1, round(share * side))


class ResizePad(nn.Module):
    """Images at a random side, from ``smallest`` of their own to all of it, at a random place.

    One size and place a query, for all its rows, from torch's global generator.
    """

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the shape of ``x`` (batch, channels, height, width)."""
        height, width = x.shape[-2:]
        share = self.smallest + (1 - self.smallest) * float(torch.rand(()))
        rows, columns = _side(share, height), _side(share, width)
        small = nn.functional.interpolate(x, (rows, columns), mode="bilinear", antialias=True)
        top = int(torch.randint(height - rows + 1, ()))
        left = int(torch.randint(width - columns + 1, ()))
        return nn.functional.pad(small, (left, width - columns - left, top, height - rows - top))
