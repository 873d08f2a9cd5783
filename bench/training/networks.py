"""The reference networks. Each takes inputs in [0, 1], standardises inside, returns logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.base.types import DataInfo
from bench.plugins.contracts import Network

INDEX = {
    "digits-cnn": "bench.training.networks:DigitsCnn",
    "papernot-mnist": "bench.training.networks:PapernotMnist",
    "papernot-cifar10": "bench.training.networks:PapernotCifar10",
    "softmax-regression": "bench.training.networks:SoftmaxRegression",
    "mlp": "bench.training.networks:Mlp",
    "resnet18": "bench.training.residual:ResNet18",
    "wideresnet-28-10": "bench.training.residual:WideResNet",
    "torchvision": "bench.training.zoo:Torchvision",
    "timm": "bench.training.zoo:Timm",
    "robustbench": "bench.training.zoo:RobustBench",
}


class Standardise(nn.Module):
    """(x - mean) / std, one value a channel for images, one for all other shapes."""

    mean: Tensor
    std: Tensor

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        view = (len(info.mean), 1, 1) if len(info.shape) == 3 else (1,) * len(info.shape)
        self.register_buffer("mean", torch.tensor(info.mean).view(view), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(view), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` standardised; any floating dtype."""
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class _Papernot(Network):
    """conv, conv, pool, conv, conv, pool, dense, dense, softmax: Papernot et al. 2016, table I.

    ``narrow`` and ``wide``: filters of the first and second pair of convolutions; ``dense``: units
    of the dense layers; ``dropout``: the rate after each of them, in [0, 1).
    """

    narrow: int
    wide: int
    dense: int
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")

    def standardise(self, info: DataInfo) -> list[nn.Module]:
        """Return what stands before the first layer."""
        return []

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network; images of at least 16 × 16 (the convolutions are unpadded)."""
        channels, side = _image(self, info, least=16)
        left = ((side - 4) // 2 - 4) // 2
        body = [
            *_convolutions(channels, self.narrow),
            *_convolutions(self.narrow, self.wide),
            nn.Flatten(),
            nn.Linear(self.wide * left * left, self.dense),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.dense, self.dense),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.dense, info.classes),
        ]
        return nn.Sequential(*self.standardise(info), *body)


@dataclass(frozen=True)
class PapernotMnist(_Papernot):
    """The MNIST network of Papernot et al. 2016 (arXiv 1511.04508): 32, 64 filters, 200 units."""

    narrow: int = 32
    wide: int = 64
    dense: int = 200


@dataclass(frozen=True)
class PapernotCifar10(_Papernot):
    """The CIFAR-10 network of Papernot et al. 2016 (arXiv 1511.04508): 64, 128 filters, 256 units.

    The paper feeds standardised images; here the network takes [0, 1] and standardises inside.
    """

    narrow: int = 64
    wide: int = 128
    dense: int = 256

    def standardise(self, info: DataInfo) -> list[nn.Module]:
        """Return the per-channel standardisation."""
        return [Standardise(info)]


@dataclass(frozen=True)
class DigitsCnn(Network):
    """A small CNN for 8 × 8 images: conv 3 × 3, conv 3 × 3 twice as wide, pool, dense, dense.

    ``width``: filters of the first convolution; ``dense``: units of the first dense layer.
    Unpadded, like Papernot's networks; the smallest that we found to learn at T = 100 too.
    """

    width: int = 16
    dense: int = 64

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network; square images of at least 6 × 6."""
        channels, side = _image(self, info, least=6)
        return nn.Sequential(
            nn.Conv2d(channels, self.width, 3),
            nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * self.width * ((side - 4) // 2) ** 2, self.dense),
            nn.ReLU(),
            nn.Linear(self.dense, info.classes),
        )


@dataclass(frozen=True)
class SoftmaxRegression(Network):
    """One linear layer, for inputs of any shape."""

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network."""
        return nn.Sequential(nn.Flatten(), nn.Linear(info.features, info.classes))


@dataclass(frozen=True)
class Mlp(Network):
    """Two hidden layers of ``width`` ReLU units over standardised inputs of any shape."""

    width: int = 128

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network."""
        return nn.Sequential(
            Standardise(info),
            nn.Flatten(),
            nn.Linear(info.features, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, info.classes),
        )


def _convolutions(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


def _image(network: Network, info: DataInfo, least: int) -> tuple[int, int]:
    if len(info.shape) != 3 or info.shape[1] != info.shape[2] or info.shape[1] < least:
        raise ValueError(
            f"{type(network).__name__} takes square images (channels, side, side) of at least "
            f"{least} × {least}, and {info.name!r} has inputs of shape {info.shape}: use mlp"
        )
    return info.shape[0], info.shape[1]
