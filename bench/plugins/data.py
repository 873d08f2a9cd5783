"""A data set in memory: tensors in three fixed splits, and a hash of all of it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.base.types import DataInfo, UserError

CHUNK = 1024
"""Rows that are converted at a time where a whole split is looked at."""


@dataclass(frozen=True)
class Split:
    """``stored``: (n, *shape), bytes or floating numbers; ``y``: (n,) int64 labels.

    Bytes stay bytes, and a file that is mapped into memory stays on the disk: ``x`` makes inputs
    of all rows each time it is asked for, so whoever wants some of a large split takes them first.
    """

    stored: Tensor
    y: Tensor

    @property
    def x(self) -> Tensor:
        """The inputs, (n, *shape) float32 in [0, 1]: ``stored`` itself where it is just that."""
        if self.stored.dtype != torch.uint8:
            return self.stored.float()
        # A tensor on the device: by a Python number CUDA multiplies with a rounded reciprocal.
        return self.stored.float().div_(torch.tensor(255.0, device=self.stored.device))

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Split:
        """Return the split on ``device``."""
        return Split(self.stored.to(device), self.y.to(device))

    def take(self, index: Tensor | slice) -> Split:
        """Return the rows at ``index``."""
        return Split(self.stored[index], self.y[index])

    def parts(self, rows: int) -> Iterator[Split]:
        """Yield the split in pieces of so many ``rows``, in order; an empty one as it is."""
        for start in range(0, max(1, len(self)), rows):
            yield self.take(slice(start, start + rows))


@dataclass(frozen=True)
class Dataset:
    """Three splits, what a network has to know of them, and a SHA-256 of all their bytes.

    A data set for evaluation alone has no rows in ``train`` and ``validation``. ``notes``: what
    was guessed of the data, or is strange about them, in words.
    """

    info: DataInfo
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Dataset:
        """Return the data set on ``device``."""
        train, validation, test = (
            split.to(device) for split in (self.train, self.validation, self.test)
        )
        return Dataset(self.info, train, validation, test, self.fingerprint, self.notes)

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
    train: tuple[np.ndarray, np.ndarray] | None,
    test: tuple[np.ndarray, np.ndarray],
    validation: int = 0,
    *,
    classes: int | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Make a ``Dataset`` of arrays; the last ``validation`` training rows become that split.

    Images are ``(n, *shape)``, uint8 (divided by 255) or floating in [0, 1]; labels integers.
    Without ``train`` the set serves evaluation alone: its ``info`` has mean 0 and standard
    deviation 1, for the statistics of training data are not known. ``classes``: their number,
    by default as many as the labels name.
    """
    digest = hashlib.sha256(f"{name} {validation}".encode())
    arrays = [*(train or ()), *test]
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    held_out = as_split(*test)
    named = int(held_out.y.max()) + 1
    if train is None:
        everything = held_out.take(slice(0, 0))
        channels = held_out.stored.shape[1] if held_out.stored.dim() == 4 else 1
        learn, mean, std = everything, (0.0,) * channels, (1.0,) * channels
    else:
        everything = as_split(*train)
        named = max(named, int(everything.y.max()) + 1)
        learn = everything.take(slice(None, len(everything) - validation))
        mean, std = _statistics(learn)
    hold = everything.take(slice(len(learn), None))
    if (classes or named) < 2:
        raise UserError(f"data set {name!r}: every label is 0, and two classes are the least")
    info = DataInfo(name, tuple(held_out.stored.shape[1:]), classes or named, mean, std)
    return Dataset(info, learn, hold, held_out, digest.hexdigest(), notes)


def as_split(x: np.ndarray, y: np.ndarray) -> Split:
    """Return arrays as a split: bytes, half and single precision as they are, others as float32."""
    kept = x if x.dtype in (np.uint8, np.float16, np.float32) else x.astype(np.float32)
    with warnings.catch_warnings():
        # Bytes in a file that is mapped for reading: nothing of ours writes into ``stored``.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        stored = torch.from_numpy(np.ascontiguousarray(kept))
    return Split(stored, torch.from_numpy(y.astype(np.int64)))


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # In float64 and per channel for images. A constant input keeps std = 1, for it is divided by.
    stored = split.stored
    channels = stored.shape[1] if stored.dim() == 4 else 1
    mean, std = [], []
    for channel in range(channels):
        of_channel = stored[:, channel] if stored.dim() == 4 else stored
        middle, spread = _moments(of_channel)
        mean.append(round(middle, 8))
        std.append(round(spread, 8) or 1.0)
    return tuple(mean), tuple(std)


def _moments(values: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation in float64; of bytes by counting, for there are 256."""
    if values.dtype != torch.uint8:
        exact = values.float().numpy().astype(np.float64)
        return float(exact.mean()), float(exact.std())
    counts = np.zeros(256)
    for rows in torch.split(values, CHUNK):
        counts += np.bincount(rows.numpy().ravel(), minlength=256)
    levels = Split(torch.arange(256, dtype=torch.uint8), torch.zeros(256)).x.double().numpy()
    mean = float((counts @ levels) / counts.sum())
    return mean, float(np.sqrt((counts @ (levels - mean) ** 2) / counts.sum()))


SPLITS = ("train", "validation", "test")


def pack(data: Dataset) -> bytes:
    """Return a data set as one safetensors file: splits as they are stored, facts beside them."""
    from safetensors.torch import save

    tensors = {}
    for name in SPLITS:
        split: Split = getattr(data, name)
        tensors[f"{name}.stored"], tensors[f"{name}.y"] = split.stored, split.y
    facts = {"info": asdict(data.info), "fingerprint": data.fingerprint}
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return bytes(save(plain, {"retort": json.dumps(facts)}))


def unpack(path: Path) -> Dataset:
    """Return the data set in a file that holds what ``pack`` returned, mapped into memory."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        facts = json.loads(file.metadata()["retort"])
        train, validation, test = (
            Split(file.get_tensor(f"{name}.stored"), file.get_tensor(f"{name}.y"))
            for name in SPLITS
        )
    told: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in facts["info"].items()
    }
    return Dataset(DataInfo(**told), train, validation, test, facts["fingerprint"])
