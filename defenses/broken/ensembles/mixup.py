"""Mixup inference: Pang, Xu, Zhu 2020, arXiv 1909.11515."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.base.types import UserError
from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from bench.suspicion.average import Average
from defenses.broken.base import Broken
from defenses.votes import mean_answer


@dataclass(frozen=True)
class MixupInference(Broken):
    """A network trained by mixup answers the mean over mixtures of x with images of other classes.

    ``draws``: mixtures an answer, at least 1 (the paper: 30); ``share``: of x in each, in (0, 1),
    above 0.5 where there are two classes; ``pool``: training images to draw from, at least 2. The
    paper's variant for other labels.
    """

    draws: int = 5
    share: float = 0.5
    pool: int = 500

    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.draws < 1 or self.pool < 2:
            raise ValueError("draws must be at least 1 and pool at least 2")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), got {self.share!r}")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the network and its mixing."""
        if context.info.classes == 2 and self.share <= 0.5:
            raise UserError(
                f"share = {self.share:g} mixes as much of the other of two classes in as it leaves "
                "of the input: take more than 0.5"
            )
        return Mixture(context.network(), self.pool, context.info.shape, self.draws, self.share)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train by mixup (Zhang et al. 2018, arXiv 1710.09412; uniform shares)."""
        assert isinstance(model, Mixture)
        rows = torch.arange(self.pool, device=train.x.device) % len(train)
        model.images.copy_(train.x[rows])
        model.labels.copy_(train.y[rows])
        classes = context.info.classes

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            assert isinstance(model, Mixture)
            generator = context.generator
            share = torch.rand(len(x), generator=generator, device=x.device)
            other = torch.randperm(len(x), generator=generator, device=x.device)
            weight = share.view(-1, *[1] * (x.dim() - 1))
            mixed = weight * x + (1 - weight) * x[other]
            soft = F.one_hot(y, classes).float()
            soft = share[:, None] * soft + (1 - share[:, None]) * soft[other]
            return F.cross_entropy(model.network(mixed).float(), soft)

        context.train(model, train.x, train.y, objective=objective)

    def surrogate(self, model: nn.Module) -> nn.Module:
        """Return the average of draws that the harness would take too, made side by side."""
        return Average(model, by_row=True)


class Mixture(nn.Module):
    """The logarithm of the mean probability of ``network`` on mixtures with a pool of images."""

    images: Tensor
    labels: Tensor

    def __init__(
        self, network: nn.Module, pool: int, shape: tuple[int, ...], draws: int, share: float
    ) -> None:
        super().__init__()
        self.network = network
        self.draws = draws
        self.share = share
        self.register_buffer("images", torch.zeros(pool, *shape))
        self.register_buffer("labels", torch.zeros(pool, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (batch, classes)."""
        with torch.no_grad():
            guess = self.network(x).argmax(dim=1)
        # Every image of another class than the guess is as likely; all are where none is.
        weights = (self.labels != guess[:, None]).float()
        weights += weights.sum(dim=1, keepdim=True) == 0
        chosen = torch.multinomial(weights, self.draws, replacement=True)
        mixed = self.share * x + (1 - self.share) * self.images[chosen.T]
        logits = self.network(mixed.flatten(0, 1)).view(self.draws, len(x), -1)
        return mean_answer(logits)
