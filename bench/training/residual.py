"""Residual networks for 32 × 32 images: inputs in [0, 1], standardised inside, to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.base.types import DataInfo
from bench.plugins.contracts import Network
from bench.training.networks import Standardise


@dataclass(frozen=True)
class ResNet18(Network):
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) in the variant of the CIFAR papers.

    torchvision's, with a first convolution of 3 × 3 at stride 1 and without the first pooling. Its
    weights are named as torchvision's, under ``1.`` behind the standardisation.
    """

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network; images of at least 8 × 8."""
        from torchvision.models import resnet18

        network = resnet18(num_classes=info.classes)
        network.conv1 = nn.Conv2d(_channels(self, info), 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        return nn.Sequential(Standardise(info), network)


@dataclass(frozen=True)
class WideResNet(Network):
    """WRN-28-10 (Zagoruyko and Komodakis 2016, arXiv 1605.07146): 28 layers, ten times as wide.

    ``depth``: 6 n + 4 layers; ``width``: by what the 16, 32 and 64 filters are multiplied;
    ``dropout``: the rate between the two convolutions of a block, in [0, 1).
    """

    depth: int = 28
    width: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4, as 28, got {self.depth!r}")
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network; images of at least 8 × 8."""
        layers: list[nn.Module] = [nn.Conv2d(_channels(self, info), 16, 3, padding=1, bias=False)]
        inputs = 16
        for group, filters in enumerate((16, 32, 64)):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group and not block else 1
                layers.append(_Wide(inputs, filters * self.width, stride, self.dropout))
                inputs = filters * self.width
        head = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(Standardise(info), *layers, *head, nn.Linear(inputs, info.classes))


class _Wide(nn.Module):
    """Two 3 × 3 convolutions, each behind normalisation and ReLU; 1 × 1 where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        same = inputs == outputs and stride == 1
        self.short = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (batch, outputs, height, width)."""
        active = self.first(x)
        shortcut = x if self.short is None else self.short(active)
        return torch.add(shortcut, self.body(active))


def _channels(network: Network, info: DataInfo) -> int:
    if len(info.shape) != 3 or min(info.shape[1:]) < 8:
        raise ValueError(
            f"{type(network).__name__} takes images (channels, height, width) of at least 8 × 8, "
            f"and {info.name!r} has inputs of shape {info.shape}: use mlp"
        )
    return info.shape[0]
