"""Data sets that torchvision knows, read where they lie or downloaded, checksummed either way."""

from __future__ import annotations

import gzip
import hashlib
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.base.types import UserError
from bench.plugins.contracts import DataSettings, DataSource
from bench.plugins.data import Dataset, assemble


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
    paper_recipe: ClassVar[str | None] = "papernot-mnist"
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
    paper_recipe: ClassVar[str | None] = "papernot-cifar10"
    folder: ClassVar[str] = "cifar-10-batches-py"
    name: ClassVar[str] = "cifar10"
    listing: ClassVar[str] = "CIFAR10"

    def resources(self, torchvision: Any) -> Sequence[tuple[str, str, list[str]]]:
        """Return the batches; torchvision fetches them as one archive."""
        source = getattr(torchvision, self.listing)
        listed = [*source.train_list, *source.test_list]
        listed.append([source.meta["filename"], source.meta["md5"]])
        return [(name, md5, [source.url]) for name, md5 in listed]

    def read(self, root: Path) -> Dataset:
        """Read the batches through torchvision."""
        source = getattr(_torchvision_datasets(), self.listing)
        train, test = (_channels_first(source(root, train=flag)) for flag in (True, False))
        return assemble(self.name, train, test, validation=5000)


@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100 (Krizhevsky 2009): 100 classes, else as CIFAR-10."""

    network: ClassVar[str] = "resnet18"
    recipe: ClassVar[str] = "residual"
    paper_recipe: ClassVar[str | None] = None
    folder: ClassVar[str] = "cifar-100-python"
    name: ClassVar[str] = "cifar100"
    listing: ClassVar[str] = "CIFAR100"


@dataclass(frozen=True)
class Svhn(_Downloadable):
    """Street View House Numbers, cropped (Netzer et al. 2011): 32 × 32; 68,257 / 5,000 / 26,032."""

    network: ClassVar[str] = "resnet18"
    recipe: ClassVar[str] = "residual"
    folder: ClassVar[str] = ""

    def resources(self, torchvision: Any) -> Sequence[tuple[str, str, list[str]]]:
        """Return the two files."""
        listed = [torchvision.SVHN.split_list[part] for part in ("train", "test")]
        return [(name, md5, [url.replace("http://", "https://", 1)]) for url, name, md5 in listed]

    def read(self, root: Path) -> Dataset:
        """Read the two files through torchvision, which makes the label of a zero 0."""
        source = _torchvision_datasets().SVHN
        train, test = (
            (part.data, np.asarray(part.labels))
            for part in (source(root, split=name) for name in ("train", "test"))
        )
        return assemble("svhn", train, test, validation=5000)


def _channels_first(part: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets)


def find_data(settings: DataSettings) -> Path:
    """Return the folder that data sets lie in: ``data_dir``, ``RETORT_DATA``, else the cache."""
    if settings.data_dir is not None:
        return settings.data_dir
    if folder := os.environ.get("RETORT_DATA"):
        return Path(folder)
    from bench.base.files import default_cache

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


_md5 = partial(hashlib.md5, usedforsecurity=False)


def _ensure(path: Path, md5: str, urls: list[str], settings: DataSettings) -> None:
    if not path.exists():
        _download(path, md5, urls, settings)
    if not path.is_file():
        raise UserError(f"{path} is no file: put the right one there")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, _md5).hexdigest()
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
