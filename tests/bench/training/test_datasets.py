"""Data sets: splits, synthetic files in the real formats, damage, a user's arrays."""

import gzip
import hashlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.base.types import Spec, UserError
from bench.handed.arrays import Arrays
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import DataSettings
from bench.plugins.data import Dataset
from bench.training.datasets import BreastCancer, Digits
from bench.training.downloads import Cifar10, Mnist


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load(DataSettings())


def test_digits_are_whole_and_disjoint(digits: Dataset) -> None:
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1347, 150, 300]
    for part in parts:
        assert part.x.dtype == torch.float32
        assert part.x.shape[1:] == (1, 8, 8)
        assert part.x.min() >= 0
        assert part.x.max() <= 1
        assert part.y.dtype == torch.int64
        assert set(part.y.tolist()) == set(range(10))
    rows = [row.numpy().tobytes() for part in parts for row in part.x]
    train = set(rows[:1347])
    assert not train & set(rows[1347:])


def test_splits_and_sources_never_move(digits: Dataset) -> None:
    # Frozen: published results name these images.
    assert digits.fingerprint == Digits().load(DataSettings()).fingerprint
    assert digits.test.y[:12].tolist() == [8, 8, 2, 2, 2, 9, 8, 8, 3, 6, 0, 4]
    first = digits.sources(100, 0)
    assert torch.equal(first[:20], digits.sources(20, 0))
    assert len(set(first.tolist())) == 100
    assert not torch.equal(first, digits.sources(100, 1))
    assert sorted(digits.sources(None, 3).tolist()) == list(range(300))


def test_more_sources_than_there_are_is_said(digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"301 sources.*has 300"):
        digits.sources(301, 0)


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def mnist_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small MNIST in the real format, with torchvision's checksums replaced by its own."""
    from torchvision import datasets

    random = np.random.RandomState(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for part, count in (("train", 5200), ("t10k", 50)):
        images = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            path = raw / f"{part}-{name}-ubyte.gz"
            path.write_bytes(content)
            resources.append((path.name, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return tmp_path


def test_mnist_is_read_compressed_from_a_read_only_folder(mnist_folder: Path) -> None:
    for path in [*mnist_folder.rglob("*"), mnist_folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    data = Mnist().load(DataSettings(mnist_folder, offline=True))
    for path in [mnist_folder, *mnist_folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [200, 5000, 50]
    assert data.info.shape == (1, 28, 28)
    assert data.info.classes == 10
    assert data.test.y.tolist() == (np.arange(50) % 10).tolist()


def test_a_damaged_file_is_named_with_its_checksum(mnist_folder: Path) -> None:
    path = mnist_folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"t10k-labels-idx1-ubyte\.gz is damaged: its MD5 is [0-9a-f]{32}"
    ):
        Mnist().load(DataSettings(mnist_folder))


def test_a_missing_file_offline_says_what_to_put_where(mnist_folder: Path) -> None:
    (mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"train-images.*is missing and --offline.*--data-dir"):
        Mnist().load(DataSettings(mnist_folder, offline=True))


def test_the_folder_comes_from_the_environment_too(
    mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_DATA", str(mnist_folder))
    assert len(Mnist().load(DataSettings(offline=True)).test) == 50


def test_a_broken_torchvision_is_one_clear_line(
    mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # `import torchvision` now fails
    with pytest.raises(UserError, match=r"pip install --force-reinstall torch torchvision"):
        Mnist().load(DataSettings(mnist_folder))
    assert len(Digits().load(DataSettings()).test) == 300


def test_cifar10_in_the_real_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.RandomState(0)

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(rows: int) -> dict[str, object]:
        data = random.randint(0, 256, (rows, 3072)).astype(np.uint8)
        return {"data": data, "labels": (np.arange(rows) % 10).tolist()}

    train = [write(f"data_batch_{i}", batch(1010)) for i in range(1, 6)]
    test = [write("test_batch", batch(40))]
    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    data = Cifar10().load(DataSettings(tmp_path, offline=True))
    assert data.info.shape == (3, 32, 32)
    assert len(data.info.mean) == 3
    assert [len(part) for part in (data.train, data.validation, data.test)] == [50, 5000, 40]


def arrays(path: Path, **changes: np.ndarray) -> Arrays:
    random = np.random.RandomState(0)
    content = {
        "x_train": random.rand(40, 5).astype(np.float32),
        "y_train": np.arange(40) % 3,
        "x_test": random.rand(10, 5),
        "y_test": np.arange(10) % 3,
    }
    np.savez(path / "mine.npz", **{**content, **changes})
    return Arrays(str(path / "mine.npz"))


def test_arrays_of_any_shape(tmp_path: Path) -> None:
    data = arrays(tmp_path).load(DataSettings())
    assert data.info.name == "mine"
    assert data.info.shape == (5,)
    assert data.info.classes == 3
    assert [len(part) for part in (data.train, data.validation, data.test)] == [36, 4, 10]
    assert data.test.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.full((10, 5), 2.0)}, r"x_test must lie in \[0, 1\]"),
        ({"x_test": np.full((10, 5), np.nan)}, r"x_test must lie in \[0, 1\]"),
        ({"x_test": np.eye(10, 6)}, "rows of one shape"),
        ({"y_test": np.zeros(9, int)}, "y_test must be"),
        ({"y_train": np.zeros(40)}, "y_train must be"),
        ({"y_train": np.full(40, -1)}, "y_train must be"),
        ({"x_train": np.zeros((40, 5), int)}, "uint8 or floating"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        arrays(tmp_path, **changes).load(DataSettings())


def test_an_archive_that_is_none_or_lacks_an_array(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        Arrays(str(tmp_path / "bad.npz")).load(DataSettings())
    np.savez(tmp_path / "few.npz", x_train=np.eye(3, 2), x=np.eye(3, 2), y=np.arange(3))
    with pytest.raises(UserError, match="no array 'y_train'"):
        Arrays(str(tmp_path / "few.npz")).load(DataSettings())
    doors.load_plugins()
    with pytest.raises(UserError, match="needs the parameter 'path'"):
        registry.DATASETS.make(Spec("arrays", {}))
    with pytest.raises(UserError, match="path must name"):
        registry.DATASETS.make(Spec("arrays", {"path": "mine.csv"}))


@pytest.mark.skipif("RETORT_DATA" not in os.environ, reason="RETORT_DATA names no folder")
def test_the_real_mnist() -> None:
    data = Mnist().load(DataSettings(offline=True))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [55000, 5000, 10000]
    assert data.info.mean[0] == pytest.approx(0.1307, abs=2e-3)


@pytest.mark.parametrize("binary", [False, True])
def test_flat_features_are_scaled_without_the_test_rows(binary: bool) -> None:
    data = BreastCancer(binary).load(DataSettings())
    assert [len(part) for part in (data.train, data.validation, data.test)] == [359, 60, 150]
    assert data.info.shape == (30,)
    for part in (data.train, data.validation, data.test):
        assert part.x.min() >= 0
        assert part.x.max() <= 1
    if binary:
        assert set(data.test.x.unique().tolist()) == {0.0, 1.0}
        assert data.train.x.mean(dim=0).sub(0.5).abs().max() < 0.01  # split at the median
    else:
        assert torch.equal(data.train.x.amin(dim=0), torch.zeros(30))
        assert torch.equal(data.train.x.amax(dim=0), torch.ones(30))
