"""The index of data sets, and those that need no download: digits, and a user's own arrays."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.base.places import placed
from bench.base.types import UserError
from bench.plugins.contracts import DataSettings, DataSource
from bench.plugins.data import Dataset, assemble

INDEX = {
    "digits": "bench.training.datasets:Digits",
    "mnist": "bench.training.downloads:Mnist",
    "fashion-mnist": "bench.training.downloads:FashionMnist",
    "cifar10": "bench.training.downloads:Cifar10",
    "breast-cancer": "bench.training.datasets:BreastCancer",
    "arrays": "bench.training.datasets:Arrays",
}


@dataclass(frozen=True)
class Digits(DataSource):
    """1,797 real handwritten digits, 8 × 8 grey, 10 classes, inside scikit-learn.

    UCI ML hand-written digits, test set (Alpaydin and Kaynak 1998). 1,347 train, 150 validation,
    300 test, after one fixed shuffle.
    """

    network: ClassVar[str] = "digits-cnn"
    recipe: ClassVar[str] = "digits"

    def load(self, settings: DataSettings) -> Dataset:
        """Load from scikit-learn's own files; nothing is fetched."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        order = np.random.RandomState(0).permutation(len(raw.target))
        x = (raw.images[order] / 16).astype(np.float32)[:, None]
        y = raw.target[order]
        return assemble("digits", (x[:-300], y[:-300]), (x[-300:], y[-300:]), validation=150)


@dataclass(frozen=True)
class BreastCancer(DataSource):
    """569 rows of 30 measurements, benign or malignant, inside scikit-learn: flat features.

    Wisconsin Diagnostic Breast Cancer (Street, Wolberg, Mangasarian 1993). Scaled to [0, 1] by the
    range of the training rows; ``binary`` asks of each feature only whether it is above the
    training median, as the features of malware are there or not. 359 train, 60 validation,
    150 test, after one fixed shuffle.
    """

    binary: bool = False

    def load(self, settings: DataSettings) -> Dataset:
        """Load from scikit-learn's own files; nothing is fetched."""
        from sklearn.datasets import load_breast_cancer

        raw = load_breast_cancer()
        order = np.random.RandomState(0).permutation(len(raw.target))
        x, y = raw.data[order], raw.target[order]
        learn = x[:-210]  # neither validation nor test has a say in the scale
        if self.binary:
            x = (x > np.median(learn, axis=0)).astype(np.float32)
        else:
            low, high = learn.min(axis=0), learn.max(axis=0)
            x = np.clip((x - low) / (high - low), 0, 1).astype(np.float32)
        name = "breast-cancer-binary" if self.binary else "breast-cancer"
        return assemble(name, (x[:-150], y[:-150]), (x[-150:], y[-150:]), validation=60)


@dataclass(frozen=True)
class Arrays(DataSource):
    """A user's own ``.npz`` (``path``) with x_train, y_train, x_test, y_test.

    Inputs: (n, *shape), uint8 or floating in [0, 1]; labels: (n,) integers from 0. The last
    ``validation`` fraction of the training rows becomes the validation split.
    """

    path: str
    validation: float = 0.1

    def __post_init__(self) -> None:
        if not self.path.endswith(".npz"):
            raise ValueError(f"path must name a .npz file, got {self.path!r}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a fraction in (0, 1), got {self.validation!r}")

    def load(self, settings: DataSettings) -> Dataset:
        """Load and check the arrays; raises UserError that names the file and the array."""
        try:
            # Opened here, for numpy leaves the file open where it is no archive.
            with placed(self.path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path}: cannot be read as .npz: {error}") from error
        for part in ("train", "test"):
            _check_arrays(self.path, arrays, part)
        train = (arrays["x_train"], arrays["y_train"])
        if train[0].shape[1:] != arrays["x_test"].shape[1:]:
            raise UserError(
                f"{self.path}: x_train and x_test must have rows of one shape, "
                f"got {train[0].shape[1:]} and {arrays['x_test'].shape[1:]}"
            )
        held = round(self.validation * len(train[0]))
        if not 0 < held < len(train[0]):
            raise UserError(f"{self.path}: x_train has too few rows ({len(train[0])}) to split")
        test = (arrays["x_test"], arrays["y_test"])
        return assemble(Path(self.path).stem, train, test, validation=held)


def _check_arrays(path: str, arrays: dict[str, np.ndarray], part: str) -> None:
    for key in (f"x_{part}", f"y_{part}"):
        if key not in arrays:
            raise UserError(f"{path}: has no array {key!r}; it holds {', '.join(sorted(arrays))}")
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UserError(f"{path}: x_{part} must be uint8 or floating, got {x.dtype}")
    if x.ndim < 2 or len(x) == 0 or x[0].size == 0:
        raise UserError(f"{path}: x_{part} must be (n, *shape) and not empty, got shape {x.shape}")
    if x.dtype != np.uint8 and not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise UserError(f"{path}: x_{part} must lie in [0, 1], without NaN: scale it first")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise UserError(
            f"{path}: y_{part} must be ({len(x)},) integers from 0, got {y.dtype} {y.shape}"
        )
