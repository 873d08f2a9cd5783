"""Input transformations: Guo, Rana, Cisse, van der Maaten 2018, arXiv 1711.00117."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bench.base.types import UserError
from bench.plugins.contracts import BuildContext
from defenses.broken.base import Broken, StraightThrough
from defenses.crafting import check_positive, check_steps

Transformation = Literal["bit_depth", "jpeg", "total_variation"]


@dataclass(frozen=True)
class InputTransformation(Broken):
    """A lossy copy of the input goes to a network that was trained on such copies.

    ``transformation``: ``bit_depth`` rounds to 2^``bits`` values (1 to 7 bits); ``jpeg`` rounds the
    cosine transform of blocks of 4 × 4 pixels, the coarser the higher the frequency (what of the
    format loses anything); ``total_variation`` denoises by ``steps`` of descent on squared distance
    plus ``weight`` times total variation. The paper's quilting, from a database of patches, is left
    out. Raises UserError at ``build`` for inputs that are no images, but for ``bit_depth``.
    """

    transformation: Transformation = "bit_depth"
    bits: int = 3
    weight: float = 0.1
    steps: int = 20

    def __post_init__(self) -> None:
        if self.transformation not in get_args(Transformation):
            kinds = get_args(Transformation)
            raise ValueError(f"transformation must be one of {kinds}, got {self.transformation!r}")
        check_bits(self.bits)
        check_steps(self.steps)
        check_positive(weight=self.weight)

    def build(self, context: BuildContext) -> nn.Module:
        """Return the transformation, without a gradient, and the network."""
        if self.transformation != "bit_depth" and len(context.info.shape) != 3:
            raise UserError(
                f"{self.transformation} takes images, and {context.info.name!r} has inputs of "
                f"shape {context.info.shape}: use bit_depth"
            )
        kinds: Mapping[Transformation, Callable[[Tensor], Tensor]] = {
            "bit_depth": partial(reduce_depth, bits=self.bits),
            "jpeg": compress,
            "total_variation": partial(denoise, weight=self.weight, steps=self.steps),
        }
        return nn.Sequential(Lossy(kinds[self.transformation]), context.network())

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return the network behind a transformation with the gradient of the identity."""
        assert isinstance(model, nn.Sequential)
        lossy, network = model
        return nn.Sequential(StraightThrough(lossy), network)


MOST_BITS = 7
"""Of a reduced depth: an image has 8 already."""


def check_bits(bits: int) -> None:
    """Raise ValueError where ``bits`` are none, or as many as an image has."""
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"bits must be in [1, {MOST_BITS}], fewer than an image has, got {bits!r}")


class Lossy(nn.Module):
    """``change`` applied without a gradient; its answers still depend on the input's graph."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed input, of the shape of ``x``."""
        kept: Tensor = self.change(x.detach()) + 0 * x
        return kept


def reduce_depth(x: Tensor, bits: int) -> Tensor:
    """Return ``x`` rounded to 2^``bits`` evenly spaced values in [0, 1]."""
    highest = (1 << bits) - 1
    return (x * highest).round() / highest


SIDE = 4
"""Of a block: half of the format's, for images of 8 × 8 pixels."""


def compress(x: Tensor) -> Tensor:
    """Return images (batch, channels, height, width) after rounding their blocks' cosines.

    What does not fill a block is padded with its edge. Steps grow from 1/16 at the mean by 1/16 a
    frequency.
    """
    height, width = x.shape[-2:]
    padded = nn.functional.pad(x, (0, -width % SIDE, 0, -height % SIDE), mode="replicate")
    rows = torch.arange(SIDE, device=x.device, dtype=x.dtype)
    cosines = torch.cos(math.pi / SIDE * (rows + 0.5) * rows[:, None]) * math.sqrt(2 / SIDE)
    cosines[0] /= math.sqrt(2)
    blocks = padded.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)
    steps = (1 + rows + rows[:, None]) / 16
    coefficients = cosines @ blocks @ cosines.T
    blocks = cosines.T @ ((coefficients / steps).round() * steps) @ cosines
    whole = blocks.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)
    return whole[..., :height, :width].clamp(0, 1)


def denoise(x: Tensor, weight: float, steps: int) -> Tensor:
    """Return images with less total variation: Rudin, Osher, Fatemi 1992, by gradient descent.

    Minimises half the squared distance plus ``weight`` times the sum over pixels of
    sqrt(dx² + dy² + 10⁻⁴).
    """
    image = x
    for _ in range(steps):
        right = nn.functional.pad(image.diff(dim=-1), (0, 1))
        down = nn.functional.pad(image.diff(dim=-2), (0, 0, 0, 1))
        length = (right.square() + down.square() + 1e-4).sqrt()
        right, down = right / length, down / length
        # The negative divergence of the unit gradients is the derivative of total variation.
        slope = -right - down
        slope[..., :, 1:] += right[..., :, :-1]
        slope[..., 1:, :] += down[..., :-1, :]
        image = image - 0.1 * ((image - x) + weight * slope)
    return image.clamp(0, 1)
