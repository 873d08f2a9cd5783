"""Defenses that detect or optimise inside the forward pass, out of the gradient's sight.

Truth: attacks that differentiate through it, or attack the network and what it cleans at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import bench
from bench.plugins.contracts import BuildContext, Defense, FitContext
from bench.plugins.data import Split
from defenses.undefended import Undefended

BANK = 512


@dataclass(frozen=True)
class _Inside(Defense):
    def requires(self) -> Mapping[str, Defense]:
        """Name the undefended network."""
        return {"undefended": Undefended()}


@bench.defense("cheat_autoencoder")
@dataclass(frozen=True)
class Autoencoder(_Inside):
    """A small autoencoder cleans the input; the gradient is that of the identity, or none.

    Looks good: what the gradient points at is cleaned away. Truth: the autoencoder is a network
    like another, and its gradient breaks both.
    """

    units: int = 24
    gradient: Literal["identity", "none"] = "identity"

    def build(self, context: BuildContext) -> nn.Module:
        """Put an autoencoder in front."""
        features = context.info.features
        cleaner = nn.Sequential(
            nn.Flatten(), nn.Linear(features, 96), nn.ReLU(), nn.Linear(96, self.units), nn.ReLU(),
            nn.Linear(self.units, 96), nn.ReLU(), nn.Linear(96, features), nn.Sigmoid(),
            nn.Unflatten(1, context.info.shape),
        )  # fmt: skip
        return _Cleaned(context.fitted["undefended"], cleaner, through=self.gradient == "identity")

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Learn to undo Gaussian noise of 0.2."""
        assert isinstance(model, _Cleaned)
        optimiser = torch.optim.Adam(model.cleaner.parameters(), lr=3e-3)
        for _ in range(1500):
            rows = torch.randint(
                len(train), (64,), generator=context.generator, device=train.x.device
            )
            x = train.x[rows]
            loss = (model.cleaner((x + 0.2 * torch.randn_like(x)).clamp(0, 1)) - x).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@bench.defense("cheat_purified")
@dataclass(frozen=True)
class Purified(_Inside):
    """Walks ``steps`` of ``step`` each down the loss of the answer that it has, then answers.

    Hidden from the gradient, which is the identity's. Looks good: an input just over the boundary
    is walked back or on, and the attack stops too early. Truth: well over it, nothing comes back.
    """

    steps: int = 8
    step: float = 0.02
    uphill: bool = False

    def build(self, context: BuildContext) -> nn.Module:
        """Walk before the network sees the input."""
        sign = -1 if self.uphill else 1
        return _Purified(context.fitted["undefended"], self.steps, sign * self.step)


@bench.defense("cheat_median")
@dataclass(frozen=True)
class Median(_Inside):
    """Answers for the 3 × 3 median of inputs that are rougher than clean ones, with a decoy.

    Rough: farther (mean absolute) from their own median than 95 % of validation images. The
    gradient is the network's at the input itself. Looks good: perturbed inputs are answered
    by a filter that the gradient does not know of. Truth: attack the network and the filtered
    network at once, or stay below the threshold.
    """

    def build(self, context: BuildContext) -> nn.Module:
        """Put the detector in front."""
        return _Median(context.fitted["undefended"])

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Measure how rough validation images are."""
        assert isinstance(model, _Median)
        model.limit.copy_(rough(context.validation.x).quantile(0.95))


@bench.defense("cheat_nearest")
@dataclass(frozen=True)
class Nearest(_Inside):
    """The label of the nearest of 512 training images within ``radius``, the network elsewhere.

    The answer of the lookup has the network's gradient. Looks good: no gradient of the lookup
    exists. Truth: to be measured; a nearest neighbour is a classifier like another, and not a bad
    one on digits: where its worst case is far above the undefended network's, it is no cheat but a
    robust network with masked gradients.
    """

    radius: float = 2.0

    def build(self, context: BuildContext) -> nn.Module:
        """Put a bank of training images beside the network."""
        info = context.info
        return _Nearest(context.fitted["undefended"], info.features, info.classes, self.radius)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Keep the first images of the training split and their labels."""
        assert isinstance(model, _Nearest)
        rows = torch.arange(BANK, device=train.x.device) % len(train)
        model.bank.copy_(train.x[rows].flatten(1))
        model.labels.copy_(train.y[rows])


@bench.defense("cheat_near_data")
@dataclass(frozen=True)
class NearData(_Inside):
    """A second network, blind for gradients, near the training data: within ``radius`` of any.

    The second one is the same network with its logits' gradient cut off. Looks good: PGD that
    starts at the image sees zeros until it is far enough away.
    """

    radius: float = 1.6

    def build(self, context: BuildContext) -> nn.Module:
        """Put a bank of training images beside the network."""
        info = context.info
        return _NearData(context.fitted["undefended"], info.features, info.classes, self.radius)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Keep the first images of the training split and their labels."""
        assert isinstance(model, _Nearest)
        rows = torch.arange(BANK, device=train.x.device) % len(train)
        model.bank.copy_(train.x[rows].flatten(1))
        model.labels.copy_(train.y[rows])


def filtered(x: Tensor) -> Tensor:
    """Return the 3 × 3 median of images (n, channels, height, width)."""
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    return windows.median(dim=4).values


def rough(x: Tensor) -> Tensor:
    """Return how far each image is from its median: (n,)."""
    return (x - filtered(x)).abs().flatten(1).mean(dim=1)


def differentiable(model: nn.Module) -> list[nn.Module] | None:
    """Return what attacks written for ``model`` differentiate, each of them."""
    if isinstance(model, _Cleaned):
        both = nn.Sequential(model.cleaner, model.network)
        return [both]
    if isinstance(model, _Median):
        return [_Both(model.network, filter_first=True), model.network]
    if isinstance(model, _NearData):
        return [model.network]
    if isinstance(model, _Nearest):
        return [
            _Soft(model, sharpness=sharpness, network=network)
            for sharpness in (5.0, 20.0) for network in (0.0, 1.0)
        ]  # fmt: skip
    return None


class _Cleaned(nn.Module):
    def __init__(self, network: nn.Module, cleaner: nn.Module, *, through: bool) -> None:
        super().__init__()
        self.network, self.cleaner, self.through = network, cleaner, through

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            clean = self.cleaner(x)
        seen = x + (clean - x.detach()) if self.through else clean
        logits: Tensor = self.network(seen)
        return logits


class _Purified(nn.Module):
    def __init__(self, network: nn.Module, steps: int, step: float) -> None:
        super().__init__()
        self.network, self.steps, self.step = network, steps, step

    def forward(self, x: Tensor) -> Tensor:
        walked = x.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                leaf = walked.clone().requires_grad_()
                best = self.network(leaf).topk(2, dim=1).values
                (gradient,) = torch.autograd.grad((best[:, 0] - best[:, 1]).sum(), leaf)
                walked = (walked + self.step * gradient.sign()).clamp(0, 1)
        logits: Tensor = self.network(x + (walked - x.detach()))
        return logits


class _Median(nn.Module):
    limit: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("limit", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        with torch.no_grad():
            calm = self.network(filtered(x))
            found = rough(x) > self.limit
        return torch.where(found[:, None], logits + (calm - logits.detach()), logits)


class _Both(nn.Module):
    """The mean of the answers for an input and for its median."""

    def __init__(self, network: nn.Module, *, filter_first: bool) -> None:
        super().__init__()
        self.network, self.filter_first = network, filter_first

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(filtered(x)) + self.network(x)
        return logits / 2


class _Nearest(nn.Module):
    bank: Tensor
    labels: Tensor

    def __init__(self, network: nn.Module, features: int, classes: int, radius: float) -> None:
        super().__init__()
        self.network, self.radius, self.classes = network, radius, classes
        self.register_buffer("bank", torch.zeros(BANK, features))
        self.register_buffer("labels", torch.zeros(BANK, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        rows = x.detach().flatten(1)
        distance, row = torch.cdist(rows, self.bank.to(rows)).min(dim=1)
        looked = 10 * nn.functional.one_hot(self.labels[row], self.classes).to(logits)
        return self.joined(logits, looked, distance < self.radius)

    def joined(self, logits: Tensor, looked: Tensor, near: Tensor) -> Tensor:
        return torch.where(near[:, None], logits + (looked - logits.detach()), logits)


class _NearData(_Nearest):
    def joined(self, logits: Tensor, looked: Tensor, near: Tensor) -> Tensor:
        return torch.where(near[:, None], logits.detach(), logits)


class _Soft(nn.Module):
    """Log of the kernel vote of the bank, plus ``network`` times the network's logits."""

    def __init__(self, model: _Nearest, *, sharpness: float, network: float) -> None:
        super().__init__()
        self.model, self.sharpness, self.share = model, sharpness, network

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        score = -self.sharpness * torch.cdist(rows, self.model.bank.to(rows))
        own = nn.functional.one_hot(self.model.labels, self.model.classes).bool()
        votes = torch.stack(
            [
                score.masked_fill(~own[:, label], -1e4).logsumexp(dim=1)
                for label in range(self.model.classes)
            ],
            dim=1,
        )
        logits: Tensor = self.model.network(x)
        return votes + self.share * logits
