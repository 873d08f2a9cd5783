"""Thermometer encoding: Buckman, Roy, Raffel, Goodfellow 2018, openreview S18Su--CW."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.plugins.contracts import BuildContext
from defenses.broken.base import Broken, StraightThrough


@dataclass(frozen=True)
class ThermometerEncoding(Broken):
    """Each input value becomes ``levels`` (2 to 256) zeros and ones: whether it exceeds l/levels.

    The first layer of the network is as many times wider; it is trained on the codes.
    """

    levels: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must be in [2, 256], got {self.levels!r}")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the encoder and the network behind it."""
        return nn.Sequential(Thermometer(self.levels), widened(context.network(), self.levels))

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return the network behind an encoder whose steps have slopes."""
        assert isinstance(model, nn.Sequential)
        encoder, network = model
        assert isinstance(encoder, Thermometer)
        return nn.Sequential(StraightThrough(encoder, encoder.soft), network)


class Thermometer(nn.Module):
    """(batch, channels, ...) in [0, 1] to (batch, channels · levels, ...) of zeros and ones."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Return 1 where a value exceeds a level."""
        return (self._above(x) > 0).to(x.dtype)

    def soft(self, x: Tensor) -> Tensor:
        """Return the same with slopes as wide as two levels."""
        return torch.sigmoid(2 * self.levels * self._above(x))

    def _above(self, x: Tensor) -> Tensor:
        steps = torch.arange(self.levels, device=x.device, dtype=x.dtype) / self.levels
        above = x.unsqueeze(2) - steps.view(1, 1, -1, *[1] * (x.dim() - 2))
        return above.flatten(1, 2)


def widened(network: nn.Module, times: int) -> nn.Module:
    """Return ``network`` with a first layer that takes ``times`` as many channels, untrained.

    Raises ValueError where its first layer with weights is neither a convolution nor dense.
    """
    for parent in network.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d):
                wide: nn.Module = nn.Conv2d(
                    layer.in_channels * times, layer.out_channels, layer.kernel_size,  # type: ignore[arg-type]
                    layer.stride, layer.padding, bias=layer.bias is not None,  # type: ignore[arg-type]
                )  # fmt: skip
            elif isinstance(layer, nn.Linear):
                wide = nn.Linear(layer.in_features * times, layer.out_features)
            elif next(layer.parameters(), None) is None or next(layer.children(), None) is not None:
                continue
            else:
                break
            setattr(parent, name, wide)
            return network
    raise ValueError("the first layer of the network is neither a convolution nor dense")
