"""How many features an attack under L0 may change: said, checked and counted here for all of them.

An attack has the parameters ``gamma``, a fraction of the features, or ``max_features``, their
number, and where it can change pixels whole, ``pixels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.base.types import ThreatModel, count_features

PAPER_GAMMA = 0.145
"""The largest distortion of Papernot et al. 2016: 112 of 784 features in whole pairs."""


@dataclass(frozen=True)
class L0Budget:
    """``gamma``, in (0, 1], or ``max_features``, at least 1, of all features, or of all pixels.

    Raises ValueError unless exactly one of the two is given, in its range.
    """

    gamma: float | None = None
    max_features: int | None = None
    pixels: bool = False

    def __post_init__(self) -> None:
        gamma, most = self.gamma, self.max_features
        if (gamma is None) == (most is None):
            given = "neither" if gamma is None else f"gamma={gamma} and max_features={most}"
            raise ValueError(f"give exactly one of gamma and max_features, got {given}")
        if gamma is not None and not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma!r}")
        if most is not None and most < 1:
            raise ValueError(f"max_features must be at least 1, got {most!r}")

    @classmethod
    def of(cls, attack: Any) -> L0Budget:
        """Return the budget that an attack's parameters say; without one ``gamma`` becomes 0.145.

        The default is written into the attack, whose document is to say what it depends on.
        """
        if attack.gamma is None and attack.max_features is None:
            object.__setattr__(attack, "gamma", PAPER_GAMMA)
        return cls(attack.gamma, attack.max_features, getattr(attack, "pixels", False))

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return L0 in features or pixels of inputs of ``shape``, a number as a fraction of all."""
        budget = self.gamma
        if self.max_features is not None:
            budget = min(1.0, self.max_features / self._total(shape))
        return ThreatModel("l0", budget, "pixels" if self.pixels else "features")

    def steps(self, shape: tuple[int, ...], per_step: int = 1) -> int:
        """Return how many steps of ``per_step`` features an input of ``shape`` may take.

        Raises ValueError where that is not one; ``max_features`` may exceed what there is.
        """
        if self.pixels and len(shape) != 3:
            got = ("batch", *shape)
            raise ValueError(f"pixels=True needs x of shape (batch, C, H, W), got {got}")
        total = self._total(shape)
        # 1e-9 keeps gamma = k / d from losing a step to rounding.
        allowed = self.max_features or int((self.gamma or 0) * total / per_step + 1e-9) * per_step
        if allowed >= per_step:
            return int(allowed) // per_step
        if self.max_features is not None:
            raise ValueError(f"max_features must be at least {per_step}, got {self.max_features}")
        raise ValueError(
            f"gamma must allow at least {per_step} of {total} features, "
            f"got {self.gamma}, which is {(self.gamma or 0) * total:g}"
        )

    def _total(self, shape: tuple[int, ...]) -> int:
        return count_features(shape[1:] if self.pixels else shape)
