"""L-infinity and L2 balls around inputs in [0, 1]: flat tensors (rows, features), row by row."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from attacks.kit import draws
from attacks.kit.model import CHUNK_ACCELERATOR, CHUNK_CPU
from bench.base.types import rows_at_once

BallNorm = Literal["linf", "l2"]

ROOM = 3e-7
"""The share of an L2 radius left free: float32 rounds the entries of a point on the sphere."""

ROUNDS = 4
"""Rounds of the L2 projection, each as cheap as a norm: what they leave of a radius is little."""


def check_ball(norm: str, eps: float) -> None:
    """Raise ValueError unless ``norm`` is known and ``eps`` one of its radii."""
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be one of ('linf', 'l2'), got {norm!r}")
    if norm == "linf" and not 0 < eps <= 1:
        raise ValueError(f"eps must be in (0, 1], got {eps!r}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps!r}")


def check_inputs(
    x: Tensor,
    y: Tensor | None,
    target: Tensor | None,
    streams: Tensor | None,
    box: tuple[float, float] = (0, 1),
) -> None:
    """Raise ValueError or TypeError unless x is in the box and the rest has one integer a row."""
    low, high = box
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"x must have shape (batch, *shape), got {tuple(x.shape)}")
    if x.numel() and not bool(((x >= low) & (x <= high)).all()):
        least, most = (float(bound) for bound in torch.aminmax(x.detach()))
        raise ValueError(
            f"x must lie in [{low:g}, {high:g}], without NaN, got values in [{least:g}, {most:g}]"
        )
    for name, rows in (("y", y), ("target", target), ("streams", streams)):
        if rows is None:
            continue
        if rows.dtype == torch.bool or rows.is_floating_point() or rows.is_complex():
            raise TypeError(f"{name} must be integers, got {rows.dtype}")
        if rows.shape != x.shape[:1]:
            raise ValueError(
                f"{name} must have shape ({len(x)},), one for each row of x, "
                f"got {tuple(rows.shape)}"
            )


def check_counts(**counts: int | None) -> None:
    """Raise ValueError naming the first of ``counts`` that is given and less than 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count!r}")


def default_chunk(x: Tensor) -> int:
    """Return how many rows like those of ``x`` to query at once on its device."""
    most = CHUNK_CPU if x.device.type == "cpu" else CHUNK_ACCELERATOR
    return rows_at_once(x.shape[1:], most)


def random_point(
    x: Tensor, eps: float, norm: BallNorm, seed: int, draw: int, streams: Tensor
) -> Tensor:
    """Return points uniform in the balls of radius ``eps`` around ``x``, clipped to the box."""
    features = x.shape[1]
    if norm == "linf":
        offset = eps * (2 * draws.uniform(seed, draw, streams, features) - 1)
    else:
        # One more number than features, for the radius: u^(1/d) of a point uniform in the ball.
        numbers = draws.normal(seed, draw, streams, features + 1)
        share = 0.5 * torch.erfc(numbers[:, -1:] / math.sqrt(2))
        offset = eps * share ** (1 / features) * _unit(numbers[:, :-1])
    return project(x + offset.to(x.dtype), x, eps, norm)


def random_extreme(
    x: Tensor, eps: float, norm: BallNorm, seed: int, draw: int, streams: Tensor
) -> Tensor:
    """Return corners of the L-infinity ball, or points of the sphere, inside the box."""
    if norm == "linf":
        offset = eps * (draws.uniform(seed, draw, streams, x.shape[1]) - 0.5).sign()
    else:
        # From outside, so that what the box takes of some entries is spent on the others.
        offset = 8 * eps * _unit(draws.normal(seed, draw, streams, x.shape[1]))
    return project(x + offset.to(x.dtype), x, eps, norm)


def steepest(gradient: Tensor, norm: BallNorm) -> Tensor:
    """Return the step of length 1 along which a loss of this gradient grows fastest.

    Its sign (linf) or its direction (l2); zero where the gradient is zero everywhere.
    """
    return gradient.sign() if norm == "linf" else _unit(gradient)


def project(x_adv: Tensor, x: Tensor, eps: float, norm: BallNorm) -> Tensor:
    """Return the point nearest to ``x_adv`` in the box and the ball of radius ``eps`` around ``x``.

    For linf that is a clip. For l2 it is x + s (x_adv - x), clipped to the box, with the largest
    s <= 1 that the ball allows (the conditions of Karush, Kuhn and Tucker). s is approached from
    below: the length of a clipped offset grows at most as fast as s, so that no round goes too far.
    """
    if norm == "linf":
        return torch.clamp(x_adv, (x - eps).clamp_(min=0), (x + eps).clamp_(max=1))
    offset = x_adv - x
    share = _share(offset, eps).clamp_(max=1)  # infinite where nothing has moved
    for _ in range(ROUNDS):
        share = (share * _share((x + share * offset).clamp_(0, 1) - x, eps)).clamp_(max=1)
    return (x + share * offset).clamp_(0, 1)


def _share(offset: Tensor, eps: float) -> Tensor:
    """Return (rows, 1), by what to multiply each row for a length of ``eps``, nearly."""
    length: Tensor = torch.linalg.vector_norm(offset, dim=1, keepdim=True, dtype=torch.float64)
    share = eps * (1 - ROOM) / length.clamp_(min=torch.finfo(offset.dtype).tiny)
    return share.to(offset.dtype)


def _unit(vector: Tensor) -> Tensor:
    """Return each row at length 1, or 0; the squares of a tiny gradient would underflow."""
    scaled = vector / vector.abs().amax(1, keepdim=True).clamp(min=torch.finfo(vector.dtype).tiny)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.clamp(min=torch.finfo(vector.dtype).tiny)
