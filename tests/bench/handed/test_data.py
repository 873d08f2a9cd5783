"""Data as others hand them over: for evaluation alone, as bytes, from the disk, as photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import bench
from bench.base.types import UserError
from bench.handed import arrays as module
from bench.handed.arrays import Arrays
from bench.handed.images import ImageFolder
from bench.plan.options import RunOptions
from bench.plugins import discovery
from bench.plugins.contracts import DataSettings
from bench.plugins.data import Dataset, Split, assemble
from bench.plugins.parameter import as_dataset
from bench.runner.prepare import prepare

BYTES = np.random.RandomState(0).randint(0, 256, (40, 3, 8, 8)).astype(np.uint8)
LABELS = np.arange(40) % 4


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    discovery.load_plugins()
    return tmp_path


def load(path: str) -> Dataset:
    return Arrays(path).load(DataSettings())


@pytest.mark.parametrize("names", [("x", "y"), ("x_test", "y_test")])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_test_set_alone_is_a_data_set(names: tuple[str, str], suffix: str) -> None:
    content = dict(zip(names, (BYTES, LABELS), strict=True))
    if suffix == "npz":
        np.savez("test.npz", **content)
    else:
        save_file({k: torch.from_numpy(v) for k, v in content.items()}, "test.safetensors")
    data = load(f"test.{suffix}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [0, 0, 40]
    assert data.info.shape == (3, 8, 8)
    assert data.info.classes == 4
    # What the training data were like is not known: nothing is standardised by it.
    assert (data.info.mean, data.info.std) == ((0.0,) * 3, (1.0,) * 3)
    assert data.notes == ()
    assert data.test.stored.dtype == torch.uint8
    assert np.array_equal(data.test.x.numpy(), BYTES.astype(np.float32) / 255)


def test_every_byte_is_the_float_that_it_was() -> None:
    levels = np.arange(256, dtype=np.uint8)[:, None]
    kept = Split(torch.from_numpy(levels), torch.zeros(256)).x
    assert np.array_equal(kept.numpy(), levels.astype(np.float32) / 255)
    assert kept.dtype == torch.float32


def test_statistics_of_bytes_are_those_of_their_floats() -> None:
    labels = (BYTES[:, 0, 0, 0] % 4, LABELS)
    as_bytes = assemble("a", (BYTES, labels[0]), (BYTES, labels[1]), 4)
    floats = BYTES.astype(np.float32) / 255
    as_floats = assemble("a", (floats, labels[0]), (floats, labels[1]), 4)
    assert as_bytes.info == as_floats.info
    assert torch.equal(as_bytes.validation.x, as_floats.validation.x)


def test_a_number_of_classes_that_no_label_names() -> None:
    np.savez("test.npz", x=BYTES, y=LABELS, classes=10)
    assert load("test.npz").info.classes == 10


def test_channels_last_are_put_first_and_said() -> None:
    np.savez("test.npz", x=BYTES.transpose(0, 2, 3, 1), y=LABELS)
    data = load("test.npz")
    assert np.array_equal(data.test.stored.numpy(), BYTES)
    assert "x is taken as (n, height, width, channels)" in data.notes[0]


def test_training_rows_in_the_test_set_are_counted() -> None:
    np.savez("both.npz", x_train=BYTES, y_train=LABELS, x_test=BYTES[:10], y_test=LABELS[:10])
    (note,) = load("both.npz").notes
    assert note.startswith("10 of 10 test rows are training rows too")


def test_large_arrays_stay_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 100)
    for save, mapped in ((np.savez, True), (np.savez_compressed, False)):
        save("test.npz", x=BYTES, y=LABELS, é=np.zeros(3))
        found = module.read_arrays(Path("test.npz"))
        assert isinstance(found["x"], np.memmap) == mapped
        assert np.array_equal(found["x"], BYTES)
        assert np.array_equal(found["y"], LABELS)
        stored = load("test.npz").test.stored
        stored[:] = 0  # private: what is written stays in this process
    assert np.array_equal(module.read_arrays(Path("test.npz"))["x"], BYTES)


def test_half_precision_is_kept_until_it_is_asked_for() -> None:
    halves = (BYTES / 255).astype(np.float16)
    np.savez("test.npz", x=halves, y=LABELS)
    part = load("test.npz").test
    assert part.stored.dtype == torch.float16
    assert part.take(slice(3, 5)).x.dtype == torch.float32
    assert np.array_equal(part.x.numpy(), halves.astype(np.float32))


def photos(*sizes: tuple[int, int]) -> None:
    random = np.random.RandomState(0)
    for row, (width, height) in enumerate(sizes):
        to = Path("photos") / ("cat" if row % 2 else "dog")
        to.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(to / f"{row}.png")


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    photos(*[(20, 16)] * 6)
    data = ImageFolder("photos").load(DataSettings())
    assert data.info.shape == (3, 16, 20)
    assert data.info.name == "photos"
    assert data.test.y.tolist() == [0, 0, 0, 1, 1, 1]  # cat before dog
    assert data.test.stored.dtype == torch.uint8
    first = np.asarray(Image.open("photos/cat/1.png")).transpose(2, 0, 1)
    assert np.array_equal(data.test.stored[0].numpy(), first)
    (stored,) = (tmp_path / "cache" / "images").glob("*.npy")
    before = stored.stat().st_mtime_ns
    again = ImageFolder("photos").load(DataSettings())
    assert again.fingerprint == data.fingerprint
    assert stored.stat().st_mtime_ns == before  # decoded once


def test_images_are_resized_and_cropped_as_is_said() -> None:
    photos((20, 16), (32, 40), (16, 16), (50, 17))
    with pytest.raises(UserError, match=r"is 16 × 16 pixels|is \d+ × \d+ pixels.*resize and crop"):
        ImageFolder("photos").load(DataSettings())
    data = ImageFolder("photos", resize=12, crop=10).load(DataSettings())
    assert data.info.shape == (3, 10, 10)
    from torchvision.transforms import v2

    image = v2.functional.center_crop(
        v2.functional.resize(Image.open("photos/cat/1.png"), [12]), [10]
    )
    assert np.array_equal(data.test.stored[0].numpy().transpose(1, 2, 0), np.asarray(image))


def test_images_may_be_gray() -> None:
    photos(*[(20, 16)] * 4)
    data = ImageFolder("photos", gray=True).load(DataSettings())
    assert data.info.shape == (1, 16, 20)
    first = np.asarray(Image.open("photos/cat/1.png").convert("L"))
    assert np.array_equal(data.test.stored[0, 0].numpy(), first)
    assert ImageFolder("photos").load(DataSettings()).info.shape == (3, 16, 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "a folder of images for each class is expected"),
        (lambda: Path("photos").mkdir(), "a folder of images for each class is expected"),
        (
            lambda: (photos((8, 8), (8, 8)), Path("photos/cat/1.png").write_bytes(b"no")),
            "cannot be read as an image",
        ),
        (lambda: photos((8, 8), ), "names class 0 alone"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used(make, message: str) -> None:
    make()
    with pytest.raises(UserError, match=message):
        ImageFolder("photos").load(DataSettings())


def test_a_file_or_folder_is_a_data_set_wherever_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert as_dataset("a.npz") == {"name": "arrays", "path": "a.npz"}
    assert as_dataset("a.safetensors", tmp_path)["path"] == str(tmp_path / "a.safetensors")
    assert as_dataset("photos/") == {"name": "image-folder", "path": "photos/"}
    assert as_dataset("./photos") == {"name": "image-folder", "path": "./photos"}
    assert as_dataset("mnist") == {"name": "mnist"}


LINEAR = """
from torch import nn

def build(info):
    return nn.Sequential(nn.Flatten(), nn.Linear(info.features, info.classes))
"""


def checkpoint() -> dict[str, str]:
    Path("models.py").write_text(LINEAR)
    torch.manual_seed(0)
    torch.save({"1.weight": torch.randn(4, 192), "1.bias": torch.zeros(4)}, "w.pt")
    np.savez("test.npz", x=BYTES, y=LABELS)
    return {"name": "checkpoint", "builder": "models.py:build", "weights": "w.pt"}


def test_a_plan_that_must_train_without_training_data_names_the_defense() -> None:
    own = checkpoint()
    table = {"name": "m", "dataset": "test.npz", "sources": 10, "defense": [own]}
    _, _, data = prepare({**table, "attack": ["fgsm"]}, RunOptions())
    assert len(data.train) == 0
    with pytest.raises(UserError, match=r"'label_smoothing' has to be trained and .*'test' has no"):
        prepare({**table, "defense": [own, "label_smoothing"], "attack": ["fgsm"]}, RunOptions())
    panel = {"panel": [{"norm": "linf", "budgets": ["8/255"]}]}
    with pytest.raises(UserError, match=r"'undefended' has to be trained"):
        prepare({**table, **panel, "reference": "undefended"}, RunOptions())
    plan, _, _ = prepare(
        {**table, **panel}, RunOptions()
    )  # no reference was asked for: there is none
    assert {node.document["defense"]["name"] for node in plan.of("fit")} == {"checkpoint"}


@pytest.mark.process
def test_a_run_on_a_test_set_alone(tmp_path: Path) -> None:
    matrix = {
        "name": "own", "dataset": "test.npz", "sources": 20, "reference": "none",
        "defense": [checkpoint()], "attack": [{"name": "fgsm", "eps": "8/255"}],
    }  # fmt: skip
    table = bench.run(matrix, workers=1)
    assert table["status"].tolist() == ["done"], table["reason"].tolist()
    assert table.loc[0, "attack_params"]["eps"] == 8 / 255
    # The same, in Python, and by the numbers of one's own.
    weights = torch.load("w.pt")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    model.load_state_dict(weights)
    with torch.no_grad():
        right = (model(torch.from_numpy(BYTES).float() / 255).argmax(1).numpy() == LABELS).mean()
    assert table.loc[0, "accuracy"] == right
