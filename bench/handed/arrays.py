"""A user's own arrays in a file, with training data or for evaluation alone."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench.base.places import placed
from bench.base.types import UserError
from bench.handed.inputs import Inputs, check_inputs
from bench.plugins.contracts import DataSettings, DataSource
from bench.plugins.data import Dataset, assemble

SUFFIXES = (".npz", ".safetensors")

KNOWN = ("x", "y", "x_train", "y_train", "x_test", "y_test", "classes")
"""Arrays that are read, whatever their size; others that are large are left alone."""

LARGE = 2**24
"""Bytes from which an array is mapped into memory rather than read."""


@dataclass(frozen=True)
class Arrays(DataSource):
    """A user's own ``.npz`` or ``.safetensors`` (``path``): x and y, or x_test and y_test.

    With x_train and y_train defenses can be trained on it; without, it serves models that are
    trained already. Inputs: (n, *shape), uint8 or floating in [0, 1], images with their channels
    first or last; labels: (n,) integers from 0. A number ``classes`` in the file says how many
    there are, where no label names the last one. The last ``validation`` fraction of the training
    rows becomes the validation split. An uncompressed array stays on the disk until it is asked
    for (``numpy.savez``, not ``savez_compressed``).
    """

    path: str
    validation: float = 0.1

    def __post_init__(self) -> None:
        if not self.path.endswith(SUFFIXES):
            raise ValueError(f"path must name a .npz or .safetensors file, got {self.path!r}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a fraction in (0, 1), got {self.validation!r}")

    def load(self, settings: DataSettings) -> Dataset:
        """Load and check the arrays; raises UserError that names the file and the array."""
        arrays = read_arrays(placed(self.path))
        suffix = "_test" if "x_test" in arrays or "x" not in arrays else ""
        test = self._part(arrays, suffix)
        classes = int(arrays["classes"]) if "classes" in arrays else None
        if classes is not None and classes <= int(test.y.max()):
            raise UserError(
                f"{self.path}: classes is {classes} and y{suffix} names class {test.y.max()}: "
                "classes count from 0"
            )
        name = Path(self.path).stem
        if "x_train" not in arrays and "y_train" not in arrays:
            return assemble(name, None, (test.x, test.y), classes=classes, notes=test.notes)
        train = self._part(arrays, "_train")
        if train.x.shape[1:] != test.x.shape[1:]:
            raise UserError(
                f"{self.path}: x_train and x{suffix} must have rows of one shape, "
                f"got {train.x.shape[1:]} and {test.x.shape[1:]}"
            )
        held = round(self.validation * len(train.x))
        if not 0 < held < len(train.x):
            raise UserError(f"{self.path}: x_train has too few rows ({len(train.x)}) to split")
        notes = (*train.notes, *test.notes, *_shared(train.x, test.x))
        return assemble(
            name, (train.x, train.y), (test.x, test.y), held, classes=classes, notes=notes
        )

    def _part(self, arrays: dict[str, np.ndarray], suffix: str) -> Inputs:
        names = (f"x{suffix}", f"y{suffix}")
        for key in names:
            if key not in arrays:
                raise UserError(
                    f"{self.path}: has no array {key!r}; it holds "
                    f"{', '.join(sorted(arrays)) or 'nothing'}: name them x and y, or x_test and "
                    "y_test, and x_train and y_train where there are training data"
                )
        return check_inputs(arrays[names[0]], arrays[names[1]], names, self.path)


def _shared(train: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """Return a note where test rows are training rows."""
    if train.dtype != test.dtype:
        return ()
    seen = {hash(row.tobytes()) for row in train}
    count = sum(hash(row.tobytes()) in seen for row in test)
    if not count:
        return ()
    note = (
        f"{count} of {len(test)} test rows are training rows too: what is measured on them says "
        "nothing of new inputs; without training data give x_test and y_test alone"
    )
    return (note,)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a ``.npz`` or ``.safetensors`` file, large ones mapped, by name.

    Nothing in the file is run. Raises UserError where it cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return {name: tensor.numpy() for name, tensor in load_file(path).items()}
        # Opened here, for numpy leaves the file open where it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            sizes, mapped = _sizes(path), _mapped(path)
            return {
                key: mapped[key] if key in mapped else archive[key]
                for key in archive.files
                if key in KNOWN or key in mapped or sizes.get(key, 0) < LARGE
            }
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,  # a single array is no archive
        zipfile.BadZipFile,
        zlib.error,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{path}: cannot be read as {path.suffix}: {error}; write it with "
            "numpy.savez(path, x=x, y=y)"
        ) from error


def _sizes(path: Path) -> dict[str, int]:
    """Return how many bytes the archive holds of each array.

    Raises ValueError where a header claims more.
    """
    found = {}
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if not item.filename.endswith(".npy"):
                continue
            with archive.open(item) as member:
                version = np.lib.format.read_magic(member)
                read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    version, np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(member)
            claimed, held = math.prod(shape) * dtype.itemsize, item.file_size
            if claimed > held and not dtype.hasobject:
                raise ValueError(f"{item.filename} claims {claimed} bytes and holds {held}")
            found[item.filename.removesuffix(".npy")] = held
    return found


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Return the large uncompressed arrays of an archive, mapped: private, so never written to."""
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for item in archive.infolist():
            if item.compress_type != zipfile.ZIP_STORED or item.file_size < LARGE:
                continue
            with archive.open(item) as member:
                version = np.lib.format.read_magic(member)
                read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    version, np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = read(member)
                start = member.tell()
            # The local header repeats the name and has an extra field of its own.
            file.seek(item.header_offset + 26)
            start += item.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            if dtype.hasobject or fortran:
                continue
            found[item.filename.removesuffix(".npy")] = np.memmap(path, dtype, "c", start, shape)
    return found
