"""Defenses that are held against a reference of another kind.

Truth: that of the same architecture without anything, which they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

import bench
from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from bench.training.networks import Mlp, SoftmaxRegression


@bench.defense("cheat_other_network")
@dataclass(frozen=True)
class OtherNetwork(Defense):
    """Another network than the reference's, trained by cross-entropy on hard labels: no defense.

    ``network``: ``linear``, ``mlp``, or ``linear_box``, the linear one behind an identity, so that
    no name tells what it is. Looks good: a linear network needs more features than a CNN.
    """

    network: Literal["linear", "linear_box", "mlp"] = "linear"

    def build(self, context: BuildContext) -> nn.Module:
        """Return the other network."""
        if self.network == "mlp":
            return Mlp(width=16).build(context.info)
        linear = SoftmaxRegression().build(context.info)
        return nn.Sequential(nn.Identity(), linear) if self.network == "linear_box" else linear

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels."""
        context.train(model, train.x, train.y)
