"""Data sets, whole in memory as tensors, in fixed splits: train, validation, test."""

from __future__ import annotations

import gzip
import hashlib
import os
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.plugin import DataSettings, DataSource
from bench.types import DataInfo, UserError

INDEX = {
    "digits": "bench.datasets:Digits",
    "mnist": "bench.datasets:Mnist",
    "fashion-mnist": "bench.datasets:FashionMnist",
    "cifar10": "bench.datasets:Cifar10",
    "arrays": "bench.datasets:Arrays",
}


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


class _Downloadable(DataSource):
    """A data set that torchvision knows: its files, their MD5 sums, where they are published."""

    folder: ClassVar[str]

    def load(self, settings: DataSettings) -> Dataset:
        """Read the files under ``data_dir``, ``RETORT_DATA`` or the cache, or download them.

        Raises UserError where a file is damaged, or missing and not to be had.
        """
        root = find_data(settings)
        for name, md5, urls in self.resources(_torchvision_datasets()):
            _ensure(root / self.folder / name, md5, urls, settings)
        return self.read(root)

    @abstractmethod
    def resources(self, torchvision: Any) -> Sequence[tuple[str, str, list[str]]]:
        """Return ``(file name, MD5, addresses)`` of each file, from torchvision's own lists."""

    @abstractmethod
    def read(self, root: Path) -> Dataset:
        """Read the verified files under ``root``."""


@dataclass(frozen=True)
class Mnist(_Downloadable):
    """MNIST (LeCun, Cortes, Burges): 28 × 28 grey digits; 55,000 / 5,000 / 10,000."""

    network: ClassVar[str] = "papernot-mnist"
    recipe: ClassVar[str] = "fast"
    folder: ClassVar[str] = "MNIST/raw"
    name: ClassVar[str] = "mnist"
    listing: ClassVar[str] = "MNIST"

    def resources(self, torchvision: Any) -> Sequence[tuple[str, str, list[str]]]:
        """Return the four IDX files."""
        source = getattr(torchvision, self.listing)
        return [(name, md5, [m + name for m in source.mirrors]) for name, md5 in source.resources]

    def read(self, root: Path) -> Dataset:
        """Read the IDX files where they lie, compressed: the folder may be read-only."""
        raw = root / self.folder
        parts = [
            (_read_idx(raw / f"{part}-images-idx3-ubyte.gz", 3)[:, None],
             _read_idx(raw / f"{part}-labels-idx1-ubyte.gz", 1))
            for part in ("train", "t10k")
        ]  # fmt: skip
        return assemble(self.name, parts[0], parts[1], validation=5000)


@dataclass(frozen=True)
class FashionMnist(Mnist):
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), in MNIST's format."""

    folder: ClassVar[str] = "FashionMNIST/raw"
    name: ClassVar[str] = "fashion-mnist"
    listing: ClassVar[str] = "FashionMNIST"


@dataclass(frozen=True)
class Cifar10(_Downloadable):
    """CIFAR-10 (Krizhevsky 2009): 32 × 32 colour images; 45,000 / 5,000 / 10,000."""

    network: ClassVar[str] = "papernot-cifar10"
    recipe: ClassVar[str] = "fast"
    folder: ClassVar[str] = "cifar-10-batches-py"

    def resources(self, torchvision: Any) -> Sequence[tuple[str, str, list[str]]]:
        """Return the six batches; torchvision fetches them as one archive."""
        source = torchvision.CIFAR10
        listed = [*source.train_list, *source.test_list]
        listed.append([source.meta["filename"], source.meta["md5"]])
        return [(name, md5, [source.url]) for name, md5 in listed]

    def read(self, root: Path) -> Dataset:
        """Read the batches through torchvision."""
        source = _torchvision_datasets().CIFAR10
        parts = [source(root, train=flag) for flag in (True, False)]
        arrays = [(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)) for part in parts]
        return assemble("cifar10", arrays[0], arrays[1], validation=5000)


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
            with Path(self.path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
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


def find_data(settings: DataSettings) -> Path:
    """Return the folder that data sets lie in: ``data_dir``, ``RETORT_DATA``, else the cache."""
    if settings.data_dir is not None:
        return settings.data_dir
    if folder := os.environ.get("RETORT_DATA"):
        return Path(folder)
    from bench.store import default_cache

    return (settings.cache_dir or default_cache()) / "data"


def _torchvision_datasets() -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"torchvision cannot be imported ({error}): install it together with its torch, "
            "`pip install --force-reinstall torch torchvision`; the data set digits needs neither"
        ) from error
    return datasets


def _ensure(path: Path, md5: str, urls: list[str], settings: DataSettings) -> None:
    if not path.exists():
        _download(path, md5, urls, settings)
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{path} is damaged: its MD5 is {found}, expected {md5}; "
            "delete it (it is then downloaded again) or put the right file there"
        )


def _download(path: Path, md5: str, urls: list[str], settings: DataSettings) -> None:
    advice = f"put it there, or name the folder that holds {path.parent.name} with --data-dir"
    if settings.offline:
        raise UserError(f"{path} is missing and --offline forbids to download it: {advice}")
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    failures = []
    for url in urls:
        if not url.startswith("https://"):
            failures.append(f"{url}: not over TLS")
            continue
        try:
            if url.endswith(path.name):
                download_url(url, str(path.parent), path.name, md5)
            else:  # CIFAR-10: the archive holds the folder itself
                download_and_extract_archive(url, str(path.parent.parent), remove_finished=True)
            return
        except (OSError, RuntimeError) as error:
            failures.append(f"{url}: {error}")
    raise UserError(f"{path} is missing and cannot be downloaded ({'; '.join(failures)}): {advice}")


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    # IDX: two zero bytes, a type (8: uint8), the number of dimensions, each size as big-endian
    # int32, then the data. torchvision's reader takes only extracted files.
    with gzip.open(path) as file:
        content = file.read()
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(f"{path} is not an IDX file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
