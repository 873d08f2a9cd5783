"""Error-correcting output codes: Verma, Swami 2019 (NeurIPS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from defenses.broken.base import Broken

MOST_BITS = 1024


@dataclass(frozen=True)
class OutputCodes(Broken):
    """The network answers the bits of a code word, one tanh each; the nearest word is the class.

    The words are rows of a Hadamard matrix, of the smallest size above the number of classes, at
    least ``bits`` (a power of two, at most 1024). A class's probability is in proportion to the
    correlation of its word with the bits, where that is positive. Trained by the hinge loss of each
    bit.
    """

    bits: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= MOST_BITS or self.bits & (self.bits - 1):
            raise ValueError(f"bits must be a power of two in [2, {MOST_BITS}], got {self.bits!r}")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the network, a layer of bits, and the decoder."""
        size = self.bits
        while size <= context.info.classes:
            size *= 2
        words = hadamard(size)[1 : context.info.classes + 1]
        layer = nn.Linear(context.info.classes, size)
        return nn.Sequential(context.network(), layer, Decoder(words))

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train the bits."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            assert isinstance(model, nn.Sequential)
            network, layer, decoder = model
            assert isinstance(decoder, Decoder)
            bits = layer(network(x)).float()
            return F.relu(1 - decoder.words[y] * bits).mean()

        context.train(model, train.x, train.y, objective=objective)

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return the correlation without the tanh and the logarithm."""
        assert isinstance(model, nn.Sequential)
        network, layer, decoder = model
        assert isinstance(decoder, Decoder)
        return nn.Sequential(network, layer, Correlation(decoder.words))


class Correlation(nn.Module):
    """The product of each of ``words`` (classes, bits) with a row of bits."""

    words: Tensor

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", words, persistent=False)

    def forward(self, bits: Tensor) -> Tensor:
        """Return (batch, classes)."""
        return bits @ self.words.T


LEAST = 0.01
"""What counts as no correlation: far above the rounding of a sum of bits, which a logarithm of less
would make into another answer in another batch."""


class Decoder(Correlation):
    """The logarithm of the positive part of the correlation with tanh(bits)."""

    def forward(self, bits: Tensor) -> Tensor:
        """Return log-probabilities up to a constant, (batch, classes)."""
        return super().forward(bits.tanh()).clamp(min=LEAST).log()


def hadamard(size: int) -> Tensor:
    """Return Sylvester's matrix of ones and minus ones, (size, size); ``size`` a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix
