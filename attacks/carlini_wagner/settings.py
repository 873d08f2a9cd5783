"""What a call of `carlini_wagner` may say: checked here, before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from attacks.carlini_wagner.losses import LossName
from attacks.kit.ball import check_counts
from bench.base.types import Norm


@dataclass(frozen=True)
class Settings:
    """The parameters of the attack itself.

    ``norm``: what is minimised, ``l2``, ``l0`` or ``linf``. ``loss``: ``f1`` to ``f7``, see
    ``attacks.carlini_wagner.losses``. ``kappa``: by how much the goal's logit has to win, at least
    0, and 0 for any loss but ``f6``. ``steps``: Adam's, for one value of c. ``searches``: how many
    values of c a row may try, under ``l0`` and ``linf`` anew after each success.
    ``learning_rate``: Adam's, in tanh space; the authors take 1,000 to 10,000 steps of 0.01.
    ``initial_const``: the first c. ``shrink``: what tau is multiplied by under ``linf``, in (0, 1).
    ``pixels``: whether ``l0`` counts and fixes whole pixels of an image (channels, height, width),
    as the paper does, or features. ``chunk``: rows at once, by default 256 on a CPU and 2048
    elsewhere; results depend on it only by rounding.
    """

    norm: Norm = "l2"
    loss: LossName = "f6"
    kappa: float = 0.0
    steps: int = 100
    searches: int = 9
    learning_rate: float = 0.1
    initial_const: float = 1e-3
    shrink: float = 0.9
    pixels: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, valid in (("norm", get_args(Norm)), ("loss", get_args(LossName))):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {valid}, got {getattr(self, name)!r}")
        check_counts(steps=self.steps, searches=self.searches, chunk=self.chunk)
        for name in ("learning_rate", "initial_const"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        if not 0 <= self.kappa < math.inf:
            raise ValueError(f"kappa must be at least 0 and finite, got {self.kappa!r}")
        if self.kappa > 0 and self.loss != "f6":
            raise ValueError(
                f"kappa is defined for the loss f6 alone, got {self.kappa!r} with {self.loss!r}"
            )
        if not 0 < self.shrink < 1:
            raise ValueError(f"shrink must be in (0, 1), got {self.shrink!r}")
        if self.pixels and self.norm != "l0":
            raise ValueError(f"pixels are counted under norm l0 alone, got norm {self.norm!r}")
