"""Adaptive diversity promoting ensembles: Pang, Xu, Du, Chen, Zhu 2019, arXiv 1901.08846."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.base.types import UserError
from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from defenses.broken.base import Broken, StraightThrough
from defenses.votes import mean_answer


@dataclass(frozen=True)
class EnsembleDiversity(Broken):
    """``members`` networks whose wrong answers are pushed apart while they learn together.

    The loss is the sum of the members' cross-entropies, minus ``entropy`` times the entropy of
    their mean, minus ``diversity`` times the log-determinant of the Gram matrix of their normalised
    probabilities of the incorrect classes (the paper's α = 2 and β = 0.5). Needs at least two
    members, and more classes than members.
    """

    members: int = 3
    entropy: float = 2.0
    diversity: float = 0.5

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError(f"members must be at least 2, got {self.members!r}")
        weights = {"entropy": self.entropy, "diversity": self.diversity}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {weight!r}")
        if not any(weights.values()):
            raise ValueError("entropy and diversity are both 0: an ordinary ensemble")

    def build(self, context: BuildContext) -> nn.Module:
        """Return the ensemble."""
        if context.info.classes <= self.members:
            raise UserError(
                f"{self.members} members need more than {self.members} classes to differ in, "
                f"and {context.info.name!r} has {context.info.classes}"
            )
        return Ensemble(context.network() for _ in range(self.members))

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train the members together."""
        assert isinstance(model, Ensemble)
        members = model.members

        def objective(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            logits = torch.stack([member(x).float() for member in members])
            loss = torch.stack([F.cross_entropy(each, y) for each in logits]).sum()
            return loss - self.entropy * mean_entropy(logits) - self.diversity * spread(logits, y)

        context.train(model, train.x, train.y, objective=objective)

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return the ensemble with the gradient of its members' mean logits."""
        assert isinstance(model, Ensemble)
        return StraightThrough(model, MeanLogits(model.members))


class Ensemble(nn.Module):
    """The logarithm of the mean probability of ``members``, (batch, classes)."""

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities."""
        return mean_answer(torch.stack([member(x) for member in self.members]))


class MeanLogits(nn.Module):
    """The mean of the logits of ``members``, (batch, classes): no sure member drowns another."""

    def __init__(self, members: nn.ModuleList) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean."""
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the members' mean probability, a mean over rows.

    ``logits``: (members, batch, classes).
    """
    mean = logits.softmax(dim=2).mean(dim=0)
    return -(mean * mean.clamp(min=1e-20).log()).sum(dim=1).mean()


def spread(logits: Tensor, y: Tensor) -> Tensor:
    """Return the log-determinant of the members' Gram matrix over incorrect classes, a mean.

    0 where they are orthogonal, negative elsewhere. ``logits``: (members, batch, classes).
    """
    wrong = ~F.one_hot(y, logits.shape[2]).bool()
    probabilities = logits.softmax(dim=2)[:, wrong].view(len(logits), len(y), -1)
    unit = F.normalize(probabilities, dim=2).transpose(0, 1)
    gram = unit @ unit.transpose(1, 2) + 1e-6 * torch.eye(len(logits), device=logits.device)
    volume: Tensor = torch.linalg.slogdet(gram).logabsdet
    return volume.mean()
