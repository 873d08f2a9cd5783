"""Random numbers that belong to a row: no batch, chunk, order or device changes them.

A generator hands its numbers to whoever comes first, so a row's depend on its neighbours. Here
each row has a stream of its own, SplitMix64 (Steele, Lea, Flood 2014, *Fast Splittable
Pseudorandom Number Generators*, figure 17), computed for all rows at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def uniform(seed: int, draw: int, streams: Tensor, size: int) -> Tensor:
    """Return (rows, size) float64 in (0, 1), on the device of ``streams``.

    A row's numbers are a function of ``seed``, ``draw`` and its entry of ``streams`` (rows,)
    int64, and of nothing else.
    """
    # Nested, so that no two of the three can be exchanged, or add up to the same.
    state = _mix(_mix(_mix(_word(seed, streams)) + _word(draw, streams)) + streams)
    counts = torch.arange(1, size + 1, device=streams.device) * _STEP
    bits = _shift(_mix(state[:, None] + counts), 11)
    return (bits.double() + 0.5) * 2.0**-53


def normal(seed: int, draw: int, streams: Tensor, size: int) -> Tensor:
    """Return (rows, size) float64 standard normal numbers, as ``uniform`` does (Box, Muller)."""
    radius, angle = uniform(seed, draw, streams, 2 * size).chunk(2, dim=1)
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def sample_streams(ids: Tensor | None, target: Tensor | None, classes: int) -> Tensor | None:
    """Return a stream for each sample and target, (rows,); None, the positions, without ids."""
    return ids if ids is None or target is None else ids * classes + target


def row_streams(x: Tensor, streams: Tensor | None) -> Tensor:
    """Return the random stream of each row, on the device of ``x``: by default its position."""
    if streams is None:
        return torch.arange(len(x), device=x.device)
    return streams.to(device=x.device, dtype=torch.int64)


def _word(value: int, like: Tensor) -> Tensor:
    # Filled on the device: a number that is copied there waits for all that was asked before.
    return torch.full((), _signed(value % (1 << 64)), dtype=torch.int64, device=like.device)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift repeats the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)
