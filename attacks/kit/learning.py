"""What attacks that learn share: batches of training inputs, and an end where nothing is learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.plugins.data import Split
from bench.training.loop import DivergedError


def batches(
    train: Split, size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` batches of at most ``size`` inputs with their labels.

    All rows once in a random order, then again in another. Raises ValueError without any rows.
    """
    if not len(train):
        raise ValueError("there are no training data to learn from")
    order = torch.empty(0, dtype=torch.int64, device=train.y.device)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(train), generator=generator, device=train.y.device)
        rows, order = order[:size], order[size:]
        part = train.take(rows)
        yield part.x, part.y


def check_loss(loss: Tensor, step: int) -> None:
    """Raise DivergedError where the ``loss`` of a step, a scalar, is NaN or infinite."""
    if not math.isfinite(value := float(loss.detach())):
        raise DivergedError(f"the attack's fit diverged: its loss at step {step + 1} is {value}")


def check_positive(**values: float | None) -> None:
    """Raise ValueError naming the first of ``values`` not None that is not positive and finite."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
