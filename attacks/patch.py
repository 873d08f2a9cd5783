"""Adversarial patches: one small square that, put onto almost any input, changes the prediction.

Brown, Mané, Roy, Abadi, Gilmer 2017, *Adversarial Patch*, arXiv 1712.09665: learnt in expectation
over inputs and places (section 2, equation 1). Places only: their patch is also scaled and
rotated, which on pictures of a few pixels would be another patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from attacks.kit import draws
from attacks.kit.ball import check_counts
from attacks.kit.draws import row_streams, sample_streams
from attacks.kit.learning import batches, check_loss
from attacks.kit.losses import LOSSES, Output
from attacks.kit.model import Model, finite_gradient, widened
from bench.base.types import DataInfo, Targets, ThreatModel, Unit
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import AttackContext, FitContext, LearningAttack, Perturbation
from bench.plugins.data import Split

FIRST = 0.2
"""Length of the first step in input units; it falls linearly to none."""


@dataclass(frozen=True)
class Patch(LearningAttack):
    """A square of ``side`` by ``side`` pixels for all inputs: Brown et al. 2017, arXiv 1712.09665.

    An L0 threat: the pixels of the square may change as they like, in every channel, and no
    others. ``row``, ``column``: where its upper left corner goes, from 0; None, the default, is
    drawn anew for each input, while it learns and when it attacks. ``unit``: whether the budget,
    side², counts ``features`` or ``pixels``, a fraction of all in both. ``targets``: which
    attempts the runner makes; with any but ``untargeted`` a patch is learnt for every class.
    ``steps``: gradient steps, each on ``batch_size`` training inputs. ``output``: what is
    climbed, a key of ``attacks.kit.losses.LOSSES``.
    """

    side: int = 3
    row: int | None = None
    column: int | None = None
    unit: Unit = "features"
    targets: Targets = "untargeted"
    steps: int = 500
    batch_size: int = 128
    output: Output = "log_odds"

    def __post_init__(self) -> None:
        check_counts(side=self.side, steps=self.steps, batch_size=self.batch_size)
        for name, place in (("row", self.row), ("column", self.column)):
            if place is not None and place < 0:
                raise ValueError(f"{name} must be at least 0, got {place!r}")
        if self.unit not in ("features", "pixels"):
            raise ValueError(f"unit must be 'features' or 'pixels', got {self.unit!r}")
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets must be one of {get_args(Targets)}, got {self.targets!r}")
        if self.output not in LOSSES:
            raise ValueError(f"output must be one of {tuple(LOSSES)}, got {self.output!r}")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return L0 at the share of the square; raises ValueError where it is no part of it."""
        _, height, width = self._image(shape)
        return ThreatModel("l0", self.side**2 / (height * width), self.unit)

    def build(self, info: DataInfo) -> Square:
        """Return a grey patch, or one for each class."""
        channels, _, _ = self._image(info.shape)
        return Square(info.classes if self.targeted else 1, channels, self.side)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> Square:
        """Learn the patch on the training inputs, over places and, if targeted, classes."""
        found = self.build(context.info).to(train.y.device)
        learn(self, model, train, found, context.generator)
        return found

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Put the patch onto every row, at its place or a random one: the model is not asked."""
        patches = self.learnt(context).get_parameter("patches").detach()
        streams = sample_streams(context.sample_ids, target, context.info.classes)
        numbers = draws.uniform(context.seed, 0, row_streams(x, streams), 2)
        places = self.places(x, numbers)
        chosen = patches[torch.zeros_like(y) if target is None else target]
        return Perturbation(put(x, chosen, *places))

    def places(self, x: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and columns (batch,) of the corners; ``numbers``: (batch, 2) in (0, 1).

        A place that is not fixed is uniform over all at which the square lies inside.
        """
        fixed, sizes = (self.row, self.column), x.shape[-2:]
        rows, columns = (
            (numbers[:, axis] * (sizes[axis] - self.side + 1)).long()
            if (place := fixed[axis]) is None
            else torch.full((len(x),), place, dtype=torch.int64, device=x.device)
            for axis in (0, 1)
        )
        return rows, columns

    def _image(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return channels, height and width; raises ValueError where the patch has no place."""
        if len(shape) != 3:
            raise ValueError(
                f"a patch needs images (channels, height, width), and inputs have shape {shape}"
            )
        channels, height, width = shape
        for what, size, place in (("row", height, self.row), ("column", width, self.column)):
            if self.side > size:
                raise ValueError(
                    f"a patch of side {self.side} is larger than images of {height} × {width}"
                )
            if place is not None and place + self.side > size:
                raise ValueError(
                    f"a patch of side {self.side} at {what} {place} leaves images of "
                    f"{height} × {width}: the last {what} is {size - self.side}"
                )
        return channels, height, width


class Square(nn.Module):
    """``patches``: (count, channels, side, side) in [0, 1]."""

    def __init__(self, count: int, channels: int, side: int) -> None:
        super().__init__()
        self.patches = nn.Parameter(torch.full((count, channels, side, side), 0.5))


def put(x: Tensor, patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``x`` (batch, channels, height, width) with a patch in each row of it.

    ``patches``: (batch, channels, side, side); ``rows``, ``columns``: (batch,), the upper left
    corners. The gradient flows into ``patches``.
    """
    side = torch.arange(patches.shape[-1], device=x.device)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    down, across = rows[:, None, None] + side[:, None], columns[:, None, None] + side
    pixels = patches.permute(0, 2, 3, 1)  # as an index puts them: the channels last
    found = x.permute(0, 2, 3, 1).index_put((which, down, across), pixels)
    return found.permute(0, 3, 1, 2).contiguous()


def learn(
    settings: Patch, model: Model, train: Split, found: Square, generator: torch.Generator
) -> None:
    """Learn the patches of ``found`` in place, by signs of gradients in the box [0, 1].

    Raises DivergedError where the loss is not finite.
    """
    loss_of = LOSSES[settings.output]
    patches = found.patches.detach().clone()
    device = patches.device
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        steps = batches(train, settings.batch_size, settings.steps, generator)
        for step, (x, y) in enumerate(steps):
            numbers = torch.rand(len(x), 2, generator=generator, device=device)
            target = _targets(len(patches), y, generator) if settings.targeted else None
            leaf = patches.clone().requires_grad_()
            chosen = leaf[torch.zeros_like(y) if target is None else target]
            logits = model(put(x, chosen, *settings.places(x, numbers)))
            loss = loss_of(widened(logits), y, target)
            check_loss(loss.sum(), step)
            gradient = finite_gradient(loss, leaf).view_as(patches)
            length = FIRST * (1 - step / settings.steps)
            patches = (patches + length * gradient.sign()).clamp(0, 1)
    found.patches.data.copy_(patches)


def _targets(classes: int, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random class for each row, other than its label."""
    shift = torch.randint(1, classes, y.shape, generator=generator, device=y.device)
    return (y + shift) % classes
