"""Defenses that only change the scale or the shape of the logits: no decision, no robustness.

Truth: the undefended network's, whose every decision they keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import bench
from defenses.canaries import Canary, Scale


@bench.defense("cheat_scale")
@dataclass(frozen=True)
class ScaleLogits(Canary):
    """Logits times ``factor``.

    Looks good: at 1000 the softmax is saturated in any precision, at 0.02 it is flat, and a
    cross-entropy loses the runner-up among nine others.
    """

    factor: float = 0.02

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Scale what the network answers."""
        return nn.Sequential(network, Scale(self.factor))


@bench.defense("cheat_temperature_by_input")
@dataclass(frozen=True)
class TemperatureByInput(Canary):
    """A temperature of its own for each input, between exp(-spread) and exp(spread).

    ``detach``: whether its gradient is hidden. Looks good: its own gradient, far larger than the
    logits', is all that an attack sees.
    """

    spread: float = 5.0
    detach: bool = False

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Scale by a function of the input."""
        return _ByInput(network, self.spread, detach=self.detach)


@bench.defense("cheat_shaped_logits")
@dataclass(frozen=True)
class ShapedLogits(Canary):
    """Another function of the logits in the same order (or, rounded, nearly).

    ``softmax``: softmax(softmax) as logits; ``log_softmax_softmax``: the logarithm of it;
    ``round``: two decimals of a softmax at T = 4, equal ones to the lower class;
    ``round_through``: the same with a gradient passed by; ``one_hot``: ten for the best class and
    1e-6 of the logits; ``tanh``: 5 tanh(z - the mean of the two best), flat away from the decision;
    ``rank``: the rank of each logit, with 1e-5 of the logits; ``shift``: a million added to all.
    """

    shape: Literal[
        "softmax", "log_softmax_softmax", "round", "round_through", "one_hot", "tanh", "rank",
        "shift",
    ] = "softmax"  # fmt: skip

    def wrap(self, network: nn.Module, classes: int) -> nn.Module:
        """Shape what the network answers."""
        return nn.Sequential(network, _Shape(self.shape))


class _ByInput(nn.Module):
    def __init__(self, network: nn.Module, spread: float, *, detach: bool) -> None:
        super().__init__()
        self.network, self.spread, self.detach = network, spread, detach

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        rows = x.detach() if self.detach else x
        angle = 200 * (rows.flatten(1) * torch.linspace(1, 2, rows[0].numel()).to(rows)).sum(dim=1)
        return logits * (self.spread * angle.sin()).exp()[:, None]


class _Shape(nn.Module):
    def __init__(self, shape: str) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, logits: Tensor) -> Tensor:
        shaped: Tensor = getattr(self, f"_{self.shape}")(logits)
        return shaped

    def _softmax(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1).softmax(dim=1)

    def _log_softmax_softmax(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1).log_softmax(dim=1)

    def _round(self, logits: Tensor) -> Tensor:
        return ((logits / 4).softmax(dim=1) * 100).round() / 100

    def _round_through(self, logits: Tensor) -> Tensor:
        probs = (logits / 4).softmax(dim=1)
        return probs + ((probs * 100).round() / 100 - probs).detach()

    def _one_hot(self, logits: Tensor) -> Tensor:
        best = nn.functional.one_hot(logits.detach().argmax(dim=1), logits.shape[1])
        return 10.0 * best.to(logits) + 1e-6 * logits

    def _tanh(self, logits: Tensor) -> Tensor:
        middle = logits.detach().topk(2, dim=1).values.mean(dim=1, keepdim=True)
        return 5 * (logits - middle).tanh()

    def _rank(self, logits: Tensor) -> Tensor:
        rank = logits.detach().argsort(dim=1).argsort(dim=1)
        return rank.to(logits) + 1e-5 * logits

    def _shift(self, logits: Tensor) -> Tensor:
        return logits + 1e6
