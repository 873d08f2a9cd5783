"""How networks are trained, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from bench.base.text import nearest
from bench.base.types import UserError


@dataclass(frozen=True)
class Recipe:
    """How networks are trained: chosen on validation splits, never on test splits.

    ``schedule``: ``one-cycle`` (Smith and Topin 2018) peaks at ``lr``; ``halving`` multiplies the
    learning rate and the momentum by 0.5 every ``period`` epochs; ``constant`` does neither.
    ``bf16`` computes the passes in bfloat16 where that is worth it; weights stay float32.
    """

    epochs: int
    batch_size: int
    optimizer: Literal["adam", "sgd"]
    lr: float
    schedule: Literal["one-cycle", "halving", "constant"] = "one-cycle"
    momentum: float = 0.0
    period: int = 10
    bf16: bool = False


RECIPES = {
    "smoke": Recipe(epochs=10, batch_size=64, optimizer="adam", lr=1e-2),
    "digits": Recipe(epochs=50, batch_size=64, optimizer="adam", lr=1e-2),
    "default": Recipe(epochs=30, batch_size=64, optimizer="adam", lr=3e-3),
    "fast": Recipe(epochs=6, batch_size=64, optimizer="adam", lr=1e-3, bf16=True),
    # For the study of what moves success at a temperature: length, and the paper's optimiser.
    "fast-2": Recipe(epochs=2, batch_size=64, optimizer="adam", lr=1e-3, bf16=True),
    "fast-18": Recipe(epochs=18, batch_size=64, optimizer="adam", lr=1e-3, bf16=True),
    "sgd-12": Recipe(12, 128, "sgd", lr=0.1, schedule="constant", momentum=0.5, bf16=True),
    # For residual networks on 32 × 32 images, as such papers train; nobody has tried it here.
    "residual": Recipe(30, 128, "sgd", lr=0.1, momentum=0.9, bf16=True),
    "papernot-mnist": Recipe(50, 128, "sgd", lr=0.1, schedule="constant", momentum=0.5),
    # The same in half the time: passes in bfloat16.
    "papernot-mnist-bf16": Recipe(
        50, 128, "sgd", lr=0.1, schedule="constant", momentum=0.5, bf16=True
    ),
    "papernot-cifar10": Recipe(50, 128, "sgd", lr=0.01, schedule="halving", momentum=0.9),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``; raises UserError where there is none."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name]


Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""The loss of one batch, a scalar: of the model in training mode, inputs and targets."""
