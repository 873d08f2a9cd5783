"""Inputs and labels as they come: what is wrong with them is said with how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.base.types import UserError
from bench.plugins.data import CHUNK, Split, as_split

CHANNELS = (1, 3, 4)
"""How many channels an image may have, for its layout to be told from its shape."""

CLASSES = 100_000
"""Classes beyond which a label is taken for a mistake: a network has an output for each."""


DIM = 100
"""Whole numbers up to which inputs are not taken for levels of a byte: no test set is so dark."""


@dataclass(frozen=True)
class Inputs:
    """``x``: (n, *shape), images as (channels, height, width), uint8 or floating in [0, 1].

    ``y``: (n,) int64 from 0; ``notes``: what was guessed or is strange, in words.
    """

    x: np.ndarray
    y: np.ndarray
    notes: tuple[str, ...] = ()

    def split(self) -> Split:
        """Return both as a split."""
        return as_split(self.x, self.y)


def check_inputs(x: Any, y: Any, names: tuple[str, str] = ("x", "y"), origin: str = "") -> Inputs:
    """Return ``x`` and ``y`` as the harness takes them; tensors, arrays or nested lists.

    ``names`` are what they are called in messages, ``origin`` the file that they come from.
    Raises UserError for values that cannot be inputs or labels: it says why, and what to do.
    """
    where = f"{origin}: " if origin else ""
    inputs, labels = (
        _array(value, where + name) for value, name in zip((x, y), names, strict=True)
    )
    inputs, notes = _inputs(inputs, where + names[0])
    labels, more = _labels(labels, len(inputs), where + names[1], names[0])
    return Inputs(inputs, labels, (*notes, *more))


def _array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, torch.utils.data.DataLoader | torch.utils.data.Dataset):
        raise UserError(
            f"{name} is a {type(value).__name__}: stack its rows, "
            "torch.stack([row for row, _ in data]), or save them as .npz"
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is no array: its rows must have one shape ({error})") from error
    if array.dtype.kind in "OUSmMV":
        raise UserError(
            f"{name} must hold numbers, got {array.dtype} from {type(value).__name__}: "
            "rows of different shapes, or names of classes?"
        )
    return array


def _inputs(x: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if x.ndim == 1 and x.size:
        raise UserError(
            f"{name} has one number a row, shape {x.shape}: are inputs and labels exchanged? "
            "Inputs must be (n, *shape)"
        )
    if x.ndim < 2 or not x.size:
        raise UserError(
            f"{name} has no rows: it must be (n, *shape) and not empty, got shape {x.shape}"
        )
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UserError(f"{name} must be uint8 or floating, got {x.dtype}: {_as_number(x, name)}")
    notes = _check_bytes(x, name) if x.dtype == np.uint8 else _check_range(x, name)
    if x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        notes.append(f"{name} is taken as (n, height, width, channels): its shape is {x.shape}")
        x = x.transpose(0, 3, 1, 2)
    if len(x) > 1 and all((rows == x[:1]).all() for rows in _chunks(x)):
        raise UserError(f"{name}: all {len(x)} rows are the same: it is no test set")
    return x, tuple(notes)


def _as_number(x: np.ndarray, name: str) -> str:
    """Return what to write in place of whole numbers or truth values."""
    written, low, high = name.rpartition(" ")[2], x.min(), x.max()
    if x.dtype == bool or (low >= 0 and high <= 1):
        return f"write {written}.astype('float32')"
    if low >= 0 and high <= DIM:
        return f"write {written}.astype('float32') / {high}, its largest value"
    return f"write {written}.astype('uint8') where it holds 0 to 255"


def _check_bytes(x: np.ndarray, name: str) -> list[str]:
    if (high := max(int(rows.max()) for rows in _chunks(x))) > DIM:
        return []
    meant = f"{name.rpartition(' ')[2]}.astype('float32') / {max(high, 1)}"
    found = f"{name} is uint8, and so 255 is taken for 1, but it goes up to {high} only"
    return [f"{found}: is {meant} meant?"]


def _check_range(x: np.ndarray, name: str) -> list[str]:
    low, high = np.inf, -np.inf
    for rows in _chunks(x):
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows.reshape(len(rows), -1))).any(axis=1).sum())
            raise UserError(
                f"{name} must lie in [0, 1], without NaN: {bad} of its first rows hold NaN or "
                "infinity: leave those rows out"
            )
        low, high = min(low, float(rows.min())), max(high, float(rows.max()))
    if low >= 0 and high <= 1:
        if high <= 1.5 / 255:
            return [f"{name} goes up to {high:.3g} only: was it divided by 255 twice?"]
        return []
    found = f"{name} must lie in [0, 1], got {low:.4g} to {high:.4g}"
    if low >= 0 and high <= DIM:
        raise UserError(f"{found}: divide by the largest value that there can be, {high:.4g}?")
    if low >= 0 and high <= 255:
        raise UserError(f"{found}: it looks like levels of a byte: divide by 255, or give uint8")
    if low >= -1 and high <= 1:
        raise UserError(
            f'{found}: give (x + 1) / 2, and the model range = "-1,1" (a wrapper undoes it)'
        )
    raise UserError(
        f"{found}: it looks normalised: give x * std + mean, "
        "and the model mean and std (a wrapper normalises)"
    )


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(x), CHUNK):
        yield x[start : start + CHUNK]


def _labels(y: np.ndarray, rows: int, name: str, inputs: str) -> tuple[np.ndarray, tuple[str, ...]]:
    found = f"{name} must be ({rows},) integers from 0, got {y.dtype} {y.shape}"
    if y.shape == (rows, 1):
        raise UserError(f"{found}: drop its second axis, y[:, 0]")
    if y.ndim == 2 and len(y) == rows:
        raise UserError(f"{found}: one-hot or probabilities? give y.argmax(axis=1)")
    if y.shape != (rows,):
        raise UserError(f"{found}: a label for each row of {inputs} is needed")
    if y.dtype == bool or not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{found}: give y.astype('int64')")
    if y.min() < 0:
        raise UserError(f"{found} with a smallest label of {y.min()}: classes count from 0")
    present = np.unique(y)
    if len(present) == 1:
        raise UserError(
            f"{name} names class {present[0]} alone: a model that always says so is right on "
            "every row; give rows of at least two classes"
        )
    if y.max() >= CLASSES:
        raise UserError(f"{found} with the label {y.max()}: at most {CLASSES} classes are meant")
    labels = y.astype(np.int64)
    if present[0] == 1 and len(present) == present[-1]:
        return labels, (f"{name} holds 1 to {present[-1]}, no 0: classes count from 0",)
    return labels, ()
