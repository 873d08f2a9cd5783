"""Feature squeezing: Xu, Evans, Qi 2018, arXiv 1704.01155."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.base.types import UserError
from bench.plugins.contracts import BuildContext
from defenses.broken.base import Broken, StraightThrough
from defenses.broken.inputs.transformation import Lossy, check_bits, reduce_depth
from defenses.votes import mean_answer


@dataclass(frozen=True)
class FeatureSqueezing(Broken):
    """The mean probability of a network on the input, on few bits of it, and on local medians.

    ``bits``: of the depth, 1 to 7. The paper rejects inputs on which these differ; a classifier
    has no such answer, so here they vote, which asks an attack for the same: to fool them all. The
    network itself is undefended, as in the paper.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        check_bits(self.bits)

    def build(self, context: BuildContext) -> nn.Module:
        """Return the vote of one network on three copies of its input."""
        if len(context.info.shape) != 3:
            raise UserError(
                f"feature squeezing takes images, and {context.info.name!r} has inputs of shape "
                f"{context.info.shape}"
            )
        depth = Lossy(Depth(self.bits))
        return Vote(context.network(), nn.ModuleList([depth, Median()]))

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return the vote with squeezers that have the gradient of the identity."""
        assert isinstance(model, Vote)
        squeezers = nn.ModuleList([StraightThrough(squeezer) for squeezer in model.squeezers])
        return Vote(model.network, squeezers).eval()


class Depth(nn.Module):
    """Its input on few bits."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Round."""
        return reduce_depth(x, self.bits)


class Median(nn.Module):
    """The median of each 2 × 2 neighbourhood of images, reflected at the edge, as in the paper."""

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the same shape."""
        padded = nn.functional.pad(x, (1, 0, 1, 0), mode="reflect")
        patches = padded.unfold(2, 2, 1).unfold(3, 2, 1).flatten(-2)
        return patches.median(dim=-1).values


class Vote(nn.Module):
    """The logarithm of the mean probability of ``network`` on x and on its squeezed copies."""

    def __init__(self, network: nn.Module, squeezers: nn.ModuleList) -> None:
        super().__init__()
        self.network = network
        self.squeezers = squeezers

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (batch, classes); in training the network's own logits."""
        if self.training:
            logits: Tensor = self.network(x)
            return logits
        copies = [x, *(squeezer(x) for squeezer in self.squeezers)]
        return mean_answer(torch.stack([self.network(copy) for copy in copies]))
