"""A data set in memory: tensors in three fixed splits, and a hash of all of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.base.types import DataInfo, UserError


@dataclass(frozen=True)
class Split:
    """``x``: (n, *shape) float32 in [0, 1]; ``y``: (n,) int64 labels in [0, classes)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Split:
        """Return the split on ``device``."""
        return Split(self.x.to(device), self.y.to(device))

    def take(self, index: Tensor | slice) -> Split:
        """Return the rows at ``index``."""
        return Split(self.x[index], self.y[index])


@dataclass(frozen=True)
class Dataset:
    """Three splits, what a network has to know of them, and a SHA-256 of all their bytes."""

    info: DataInfo
    train: Split
    validation: Split
    test: Split
    fingerprint: str

    def to(self, device: torch.device) -> Dataset:
        """Return the data set on ``device``."""
        train, validation, test = (
            split.to(device) for split in (self.train, self.validation, self.test)
        )
        return Dataset(self.info, train, validation, test, self.fingerprint)

    def sources(self, count: int | None, seed: int) -> Tensor:
        """Return indices (int64, on the CPU) of the test images to attack.

        The first ``count`` (None: all) of an order that ``seed`` fixes for every model. NumPy's
        RandomState draws it, whose stream is frozen across versions.
        """
        order = np.random.RandomState(seed).permutation(len(self.test))
        if count is not None and count > len(order):
            raise UserError(
                f"{count} sources were asked for and the test split of {self.info.name!r} "
                f"has {len(order)}: give a smaller number, or all"
            )
        return torch.from_numpy(order[:count].astype(np.int64))


def assemble(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    validation: int,
) -> Dataset:
    """Make a ``Dataset`` of arrays; the last ``validation`` training rows become that split.

    Images are ``(n, *shape)``, uint8 (divided by 255) or floating in [0, 1]; labels integers.
    """
    digest = hashlib.sha256(f"{name} {validation}".encode())
    for array in (*train, *test):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    everything = Split(_inputs(train[0]), torch.from_numpy(train[1].astype(np.int64)))
    cut = len(everything) - validation
    learn, hold = everything.take(slice(None, cut)), everything.take(slice(cut, None))
    held_out = Split(_inputs(test[0]), torch.from_numpy(test[1].astype(np.int64)))
    classes = int(max(everything.y.max(), held_out.y.max())) + 1
    mean, std = _statistics(learn.x)
    info = DataInfo(name, tuple(learn.x.shape[1:]), classes, mean, std)
    return Dataset(info, learn, hold, held_out, digest.hexdigest())


def _inputs(array: np.ndarray) -> Tensor:
    scaled = array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(np.float32)
    return torch.from_numpy(scaled)


def _statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # In float64 and per channel for images. A constant input keeps std = 1, for it is divided by.
    channels = x.shape[1] if x.dim() == 4 else 1
    mean, std = [], []
    for channel in range(channels):
        values = (x[:, channel] if x.dim() == 4 else x).numpy().astype(np.float64)
        mean.append(round(float(values.mean()), 8))
        std.append(round(float(values.std()), 8) or 1.0)
    return tuple(mean), tuple(std)
