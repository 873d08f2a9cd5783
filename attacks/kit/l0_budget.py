"""How many features an attack under L0 may change: checked once, for all of them."""

from __future__ import annotations

import math

PAPER_GAMMA = 0.145
"""The largest distortion of Papernot et al. 2016: 112 of 784 features in whole pairs."""


def allowed_steps(
    gamma: float | None, max_features: int | None, features: int, per_step: int
) -> int:
    """Return the budget in steps. 1e-9 keeps gamma = k/d from losing a step to rounding."""
    if (gamma is None) == (max_features is None):
        given = "neither" if gamma is None else f"gamma={gamma} and max_features={max_features}"
        raise ValueError(f"give exactly one of gamma and max_features, got {given}")
    if max_features is not None:
        if max_features < per_step:
            raise ValueError(f"max_features must be at least {per_step}, got {max_features}")
        return int(max_features) // per_step
    if gamma is None or not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma}")
    steps = math.floor(gamma * features / per_step + 1e-9)
    if steps < 1:
        raise ValueError(
            f"gamma must allow at least {per_step} of {features} features, "
            f"got {gamma}, which is {gamma * features:g}"
        )
    return steps
