"""Projection on a generative model: Samangouei, Kabkab, Chellappa 2018, arXiv 1805.06605."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.base.types import UserError
from bench.plugins.contracts import BuildContext, FitContext
from bench.plugins.data import Split
from defenses.broken.base import Broken, StraightThrough
from defenses.broken.inputs.magnet import Autoencoder
from defenses.crafting import check_positive, check_steps


@dataclass(frozen=True)
class GenerativeProjection(Broken):
    """The network sees the nearest image that a generator can draw, found by gradient descent.

    ``latent``: dimensions of the generator, at least 1, fewer than features; ``steps``: of
    descent, at least 1, each of length ``rate``; ``starts``: codes of training images, of which the
    nearest starts. Defense-GAN has a GAN and random starts; a decoder that learns beside an encoder
    is small enough for digits, and fixed starts answer the same query alike.
    """

    latent: int = 12
    steps: int = 20
    starts: int = 256
    rate: float = 0.5

    def __post_init__(self) -> None:
        for name in ("latent", "steps", "starts"):
            check_steps(getattr(self, name), name)
        check_positive(rate=self.rate)

    def build(self, context: BuildContext) -> nn.Module:
        """Return the projection and the network."""
        features = math.prod(context.info.shape)
        if self.latent >= features:
            raise UserError(
                f"latent = {self.latent} is not less than the {features} features of "
                f"{context.info.name!r}: such a generator could draw everything"
            )
        drawer = Autoencoder(context.info.shape, self.latent)
        return nn.Sequential(
            Projection(drawer, self.starts, self.latent, self.steps, self.rate), context.network()
        )

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train the generator beside the network, which sees what its autoencoder draws."""
        assert isinstance(model, nn.Sequential)
        projection, network = model
        assert isinstance(projection, Projection)
        drawer = projection.drawer

        def objective(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            drawn = drawer(x)
            seen = torch.cat((x, drawn.detach()))
            loss = F.cross_entropy(network(seen).float(), torch.cat((y, y)))
            projection.keep(drawer.encode(x))
            return loss + 10 * F.mse_loss(drawn.float(), x)

        context.train(model, train.x, train.y, objective=objective)
        count = min(self.starts, len(train))
        with torch.no_grad():
            codes = drawer.encode(train.x[:count])
        projection.keep(codes)

    def way_round(self, model: nn.Module) -> nn.Module:
        """Return the network behind a projection with the gradient of the identity."""
        assert isinstance(model, nn.Sequential)
        projection, network = model
        return nn.Sequential(StraightThrough(projection), network)


class Projection(nn.Module):
    """The image that ``drawer`` draws nearest to x, by descent on the squared distance.

    The gradient does not pass: x is detached, and its graph is kept by adding nothing of it.
    """

    codes: Tensor

    def __init__(
        self, drawer: Autoencoder, starts: int, latent: int, steps: int, rate: float
    ) -> None:
        super().__init__()
        self.drawer = drawer
        self.steps = steps
        self.rate = rate
        self.register_buffer("codes", torch.zeros(starts, latent))

    @torch.no_grad()
    def keep(self, codes: Tensor) -> None:
        """Keep the first ``codes`` (n, latent) as starts; the last repeats where they are few."""
        rows = torch.arange(len(self.codes), device=codes.device).clamp(max=len(codes) - 1)
        self.codes.copy_(codes.detach().float()[rows])

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the shape of ``x``."""
        with torch.no_grad():
            goal = x.flatten(1)
            drawn = self.drawer.decode(self.codes).flatten(1)
            code = self.codes[torch.cdist(goal, drawn).argmin(dim=1)]
            for _ in range(self.steps):
                # Of one length for all rows: what a row gets does not depend on its neighbours.
                code = code - self.rate * slope(self.drawer, code, goal)
            drawn = self.drawer.decode(code)
        kept: Tensor = drawn + 0 * x
        return kept


def slope(drawer: Autoencoder, code: Tensor, goal: Tensor) -> Tensor:
    """Return the gradient at ``code`` (batch, latent) of the squared distance drawn to ``goal``.

    ``goal``: (batch, features). By hand, for it is taken in every step of every answer.
    """
    first, second = (layer for layer in drawer.decode if isinstance(layer, nn.Linear))
    hidden = first(code).relu()
    drawn = second(hidden).sigmoid()
    back = (drawn - goal) * drawn * (1 - drawn)
    found: Tensor = 2 * ((back @ second.weight) * (hidden > 0)) @ first.weight
    return found
