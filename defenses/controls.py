"""Regularisation alone: controls that make a network smoother, and not robust.

Papernot et al. 2016, arXiv 1511.04508, section II, tells defenses from regularisation; Goodfellow
et al. 2015, arXiv 1412.6572, sections 5 and 6, tried weight decay and noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from defenses.crafting import check_positive


@dataclass(frozen=True)
class WeightDecay(Defense):
    """Cross-entropy plus ``amount`` / 2 times the squared L2 norm of the weights.

    ``amount`` is positive. Biases and other vectors are not penalised. Krogh and Hertz 1991.
    """

    amount: float = 1e-3

    def __post_init__(self) -> None:
        check_positive(amount=self.amount)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels with the penalty."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            weights = [weight for weight in model.parameters() if weight.dim() > 1]
            penalty = torch.stack([weight.square().sum() for weight in weights]).sum()
            return F.cross_entropy(model(x).float(), y) + self.amount / 2 * penalty

        context.train(model, train.x, train.y, objective=objective)


@dataclass(frozen=True)
class GaussianAugmentation(Defense):
    """Training on x + noise, clamped to [0, 1], with fresh noise in every batch.

    ``sigma``: the standard deviation in input units, positive. Bishop 1995, *Training with noise
    is equivalent to Tikhonov regularization*.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels of noisy inputs."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=context.generator, device=x.device)
            return F.cross_entropy(model((x + self.sigma * noise).clamp(0, 1)).float(), y)

        context.train(model, train.x, train.y, objective=objective)


@dataclass(frozen=True)
class Dropout(Defense):
    """The reference network with dropout after its hidden dense layers, and nothing else.

    ``rate``: the share of units dropped in training, in (0, 1). A network that drops units already
    does so at ``rate`` instead; one with a single dense layer drops the inputs of that layer. The
    weights keep their names and shapes. Srivastava et al. 2014, *Dropout: A Simple Way to Prevent
    Neural Networks from Overfitting*. ``build`` raises ValueError for a network without any dense
    layer.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be in (0, 1), got {self.rate!r}")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the reference network with the dropout."""
        network = context.network()
        layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        for layer in layers:
            layer.p = self.rate
        if layers:
            return network
        dense = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not dense:
            raise ValueError(
                "dropout acts before dense layers (nn.Linear), and the network has none"
            )
        for module in dense[1:] or dense:
            module.register_forward_pre_hook(partial(_drop, rate=self.rate))
        return network

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels."""
        context.train(model, train.x, train.y)


def _drop(module: nn.Module, inputs: tuple[Tensor], *, rate: float) -> Tensor:
    return F.dropout(inputs[0], rate, module.training)
