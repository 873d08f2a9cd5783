"""What a call of `jsma` may say: every argument is checked here, before anything runs."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.jsma.saliency import OUTPUTS, SALIENCIES, Saliency
from attacks.kit.l0_budget import allowed_steps
from attacks.kit.model import CHUNK_ACCELERATOR, CHUNK_CPU


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
    _check_x(x, low, high, pixels=pixels)
    _check_target(target, len(x))
    if not 0 < abs(theta) <= high - low:
        width = f"{high - low:g}"
        raise ValueError(f"theta must be non-zero and in [-{width}, {width}], got {theta}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    signs = (math.copysign(1.0, theta), -math.copysign(1.0, theta))
    channels = x.shape[1] if pixels else 1
    scoring = Saliency(output, saliency, signs if both else signs[:1], channels, low, high)
    features = math.prod(x.shape[1:]) // channels
    return Settings(
        saliency=scoring,
        theta=abs(theta),
        max_steps=allowed_steps(gamma, max_features, features, scoring.features_per_step),
        chunk=chunk or (CHUNK_CPU if x.device.type == "cpu" else CHUNK_ACCELERATOR),
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


def _check_x(x: Tensor, low: float, high: float, *, pixels: bool) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"x must have shape (batch, *shape), got {tuple(x.shape)}")
    if pixels and x.dim() != 4:
        raise ValueError(f"pixels=True needs x of shape (batch, C, H, W), got {tuple(x.shape)}")
    if x.numel() == 0:
        return
    least, most = (float(v) for v in torch.stack(torch.aminmax(x.detach())).cpu())
    if math.isnan(least) or math.isnan(most):
        raise ValueError("x must not contain NaN")
    if least < low or most > high:
        raise ValueError(f"x must lie in [{low:g}, {high:g}], got values in [{least:g}, {most:g}]")


def _check_target(target: Tensor, rows: int) -> None:
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise TypeError(f"target must be integers, got {target.dtype}")
    if target.shape != (rows,):
        raise ValueError(
            f"target must have shape ({rows},), one for each row of x, got {tuple(target.shape)}"
        )
