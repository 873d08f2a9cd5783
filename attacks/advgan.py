"""AdvGAN: a generator of perturbations, learnt against a model and a discriminator.

Xiao, Li, Zhu, He, Liu, Song 2018, *Generating Adversarial Examples with Adversarial Networks*,
arXiv 1801.02610. Once it is fitted, an adversarial input is one pass of the generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from attacks.kit.ball import check_ball, check_counts, project
from attacks.kit.learning import batches, check_loss, check_positive
from attacks.kit.losses import LOSSES, Output
from attacks.kit.model import Model, widened
from bench.base.types import DataInfo, ThreatModel
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import AttackContext, FitContext, LearningAttack, Perturbation
from bench.plugins.data import Split


@dataclass(frozen=True)
class AdvGAN(LearningAttack):
    """A generator against the model and a discriminator: Xiao et al. 2018, arXiv 1801.02610.

    ``eps``: the budget in L∞, in (0, 1], onto which the generator's output is projected, while it
    learns and when it attacks. The generator's loss (equation 4) is ``adversarial`` times what
    misleads the model, plus ``gan`` times what misleads the discriminator (least squares), plus
    ``hinge`` times what the length of a perturbation exceeds ``bound`` by (equation 3), by default
    that of one that uses the whole ball, eps √features. ``margin``: how far, in units of
    ``output``, an input is driven beyond the model's decision; equation 2 with the loss of Carlini
    and Wagner 2017. ``output``: what is climbed, a key of ``attacks.kit.losses.LOSSES``.
    ``steps``: updates of generator and discriminator, each on ``batch_size`` training inputs, by
    Adam at the learning rate ``lr``, which falls linearly. ``width``: channels of the generator at
    full resolution, or a 16th of the units of its layers where inputs are flat. ``fitted_eps``:
    learn once in this ball, and scale to ``eps``: all budgets then share one fit; by default each
    budget has its own.
    """

    eps: float = 0.1
    adversarial: float = 10.0
    gan: float = 1.0
    hinge: float = 1.0
    bound: float | None = None
    margin: float = 2.0
    output: Output = "margin"
    steps: int = 400
    batch_size: int = 64
    lr: float = 2e-3
    width: int = 16
    fitted_eps: float | None = None

    def __post_init__(self) -> None:
        for eps in (self.eps, self.fitted_eps):
            if eps is not None:
                check_ball("linf", eps)
        check_counts(steps=self.steps, batch_size=self.batch_size, width=self.width)
        check_positive(lr=self.lr, adversarial=self.adversarial, bound=self.bound)
        for name in ("gan", "hinge", "margin"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be finite and at least 0, got {getattr(self, name)!r}"
                )
        if self.output not in LOSSES:
            raise ValueError(f"output must be one of {tuple(LOSSES)}, got {self.output!r}")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of radius ``eps``, whatever the ``shape``."""
        return ThreatModel("linf", self.eps)

    def fitted_as(self) -> AdvGAN:
        """Return the attack at ``fitted_eps``, where it is given."""
        return self if self.fitted_eps is None else replace(self, eps=self.fitted_eps)

    def build(self, info: DataInfo) -> nn.Module:
        """Return an untrained generator: (batch, *shape) to perturbations in [-1, 1]."""
        if len(info.shape) == 3:
            return ConvGenerator(info.shape[0], self.width)
        return FlatGenerator(info.shape, 16 * self.width)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> nn.Module:
        """Play the game of generator and discriminator on the training inputs."""
        generator = self.build(context.info).to(train.y.device)
        learn(self, model, train, generator, context.generator)
        return generator

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Return one pass of the generator, inside box and ball: the model is not asked."""
        scale = 1.0 if self.fitted_eps is None else self.eps / self.fitted_eps
        with torch.no_grad():
            return Perturbation(within(x, scale * self.learnt(context)(x), self.eps))


def within(x: Tensor, change: Tensor, eps: float) -> Tensor:
    """Return x + change, (batch, *shape), in the box and the L∞ ball of ``eps`` around ``x``."""
    flat = x.flatten(1)
    return project(flat + change.flatten(1), flat, eps, "linf").view_as(x)


def learn(
    settings: AdvGAN, model: Model, train: Split, generator: nn.Module, random: torch.Generator
) -> None:
    """Train ``generator`` in place against ``model`` and a discriminator.

    ``random`` says in which order the inputs come; initial weights are torch's global generator's.
    Raises DivergedError where a loss is not finite.
    """
    shape = tuple(train.stored.shape[1:])
    discriminator = _discriminator(shape, settings.width).to(train.y.device)
    players = [
        torch.optim.Adam(player.parameters(), lr=settings.lr, betas=(0.5, 0.999))
        for player in (generator, discriminator)
    ]
    schedules = [
        torch.optim.lr_scheduler.LinearLR(player, 1.0, 0.01, settings.steps) for player in players
    ]
    generator.train()
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        steps = batches(train, settings.batch_size, settings.steps, random)
        for step, (x, y) in enumerate(steps):
            change = generator(x)
            x_adv = within(x, change, settings.eps)
            real, fake = discriminator(x), discriminator(x_adv.detach())
            told = (real - 1).square().mean() + fake.square().mean()
            _update(players[1], told)
            lost = (
                settings.adversarial * _misled(settings, model, x_adv, y)
                + settings.gan * (discriminator(x_adv) - 1).square().mean()
                + settings.hinge * _excess(settings, change)
            )
            check_loss(lost + told, step)
            _update(players[0], lost)
            for schedule in schedules:
                schedule.step()
    generator.eval()


def _update(player: torch.optim.Optimizer, loss: Tensor) -> None:
    player.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    player.step()


def _misled(settings: AdvGAN, model: Model, x_adv: Tensor, y: Tensor) -> Tensor:
    """Return by how much inputs are not yet ``margin`` beyond the decision, the mean over rows."""
    reached = LOSSES[settings.output](widened(model(x_adv)), y, None)
    return (settings.margin - reached).clamp(min=0).mean()


def _excess(settings: AdvGAN, change: Tensor) -> Tensor:
    """Return by how much perturbations are longer than the bound, the mean over rows."""
    flat = change.flatten(1)
    bound = settings.bound or settings.eps * flat.shape[1] ** 0.5
    length: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return (length - bound).clamp(min=0).mean()


class ConvGenerator(nn.Module):
    """Perturbations of images (batch, channels, height, width), through half of the resolution.

    The paper's, in small: a convolution, one of stride 2, two residual blocks, and back. Odd sizes
    are padded by a pixel. No layer mixes the rows of a batch.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
                nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            )
            for _ in range(2)
        )  # fmt: skip
        # Pixel shuffling: its backward pass is deterministic everywhere, interpolation's is not.
        self.up = nn.Sequential(
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return perturbations in [-1, 1] of the shape of ``x``."""
        height, width = x.shape[-2:]
        hidden = self.down(F.pad(x, (0, width % 2, 0, height % 2)))
        for block in self.blocks:
            hidden = F.relu(hidden + block(hidden))
        found: Tensor = self.up(hidden)
        return found[..., :height, :width]


class FlatGenerator(nn.Module):
    """Perturbations of inputs (batch, *shape) that are no images: two hidden layers."""

    def __init__(self, shape: tuple[int, ...], units: int) -> None:
        super().__init__()
        features = int(torch.Size(shape).numel())
        self.layers = nn.Sequential(
            nn.Linear(features, units), nn.ReLU(),
            nn.Linear(units, units), nn.ReLU(),
            nn.Linear(units, features), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return perturbations in [-1, 1] of the shape of ``x``."""
        found: Tensor = self.layers(x.flatten(1)).view_as(x)
        return found


def _discriminator(shape: tuple[int, ...], width: int) -> nn.Module:
    """Return a network that tells inputs of the data set, 1, from perturbed ones, 0."""
    if len(shape) == 3:
        return nn.Sequential(
            nn.Conv2d(shape[0], width, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.LazyLinear(1),
        )  # fmt: skip
    units = 16 * width
    return nn.Sequential(
        nn.Flatten(), nn.Linear(int(torch.Size(shape).numel()), units), nn.LeakyReLU(0.2),
        nn.Linear(units, 1),
    )  # fmt: skip
