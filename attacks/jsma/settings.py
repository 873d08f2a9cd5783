"""What a call of `jsma` may say: every argument is checked here, before anything runs."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from torch import Tensor

from attacks.jsma.saliency import OUTPUTS, SALIENCIES, Saliency
from attacks.kit.ball import check_counts, check_inputs, default_chunk
from attacks.kit.l0_budget import L0Budget


@dataclass(frozen=True)
class Settings:
    """Checked arguments. `theta` is positive: the signs are in `saliency`."""

    saliency: Saliency
    theta: float
    max_steps: int
    chunk: int


def check(  # noqa: PLR0913 - mirrors the public signature
    x: Tensor,
    target: Tensor,
    *,
    theta: float,
    gamma: float | None,
    max_features: int | None,
    output: str,
    saliency: str,
    both: bool,
    pixels: bool,
    clip: tuple[float, float],
    chunk: int | None,
) -> Settings:
    """Return the settings of a valid call, or raise ValueError or TypeError."""
    _check_names(output, saliency)
    low, high = _check_box(clip)
    check_inputs(x, None, target, None, box=(low, high))
    check_counts(chunk=chunk)
    if not 0 < abs(theta) <= high - low:
        width = f"{high - low:g}"
        raise ValueError(f"theta must be non-zero and in [-{width}, {width}], got {theta}")
    signs = (math.copysign(1.0, theta), -math.copysign(1.0, theta))
    budget = L0Budget(gamma, max_features, pixels)
    channels = x.shape[1] if pixels else 1
    scoring = Saliency(output, saliency, signs if both else signs[:1], channels, low, high)
    return Settings(
        saliency=scoring,
        theta=abs(theta),
        max_steps=budget.steps(x.shape[1:], scoring.features_per_step),
        chunk=chunk or default_chunk(x),
    )


def _check_names(output: str, saliency: str) -> None:
    for name, given, valid in (("output", output, OUTPUTS), ("saliency", saliency, SALIENCIES)):
        if given not in valid:
            close = difflib.get_close_matches(str(given), valid, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name} must be one of {', '.join(valid)}, got {given!r}{hint}")
    if saliency in ("weighted", "taylor") and output != "logits":
        raise ValueError(
            f"saliency {saliency!r} weighs the gradients of the logits with the probabilities: "
            f"output must be 'logits', got {output!r}"
        )


def _check_box(clip: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(bound) for bound in clip)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"clip must be two finite numbers (low, high) with low < high, got {clip}")
    return low, high
