"""Forty ways to hand over a model or data wrongly: a message with cause and mend, or a flag.

Through the command, a matrix with a checkpoint, exit status 2 before anything runs; through
``bench.evaluate``, a UserError or a warning with the flag. Never a traceback.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bench
from bench.base.types import UserError
from bench.cli import app

MODELS = """
import torch
from torch import nn


def build(info):
    return nn.Sequential(nn.Flatten(), nn.Linear(info.features, info.classes))


def ten(info):
    return nn.Sequential(nn.Flatten(), nn.Linear(info.features, 10))


def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))


def raises():
    raise RuntimeError("no such thing")


def module():
    return {"state": 1}


def two(a, b):
    return nn.Flatten()


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 4)

    def say(self, z):
        return z

    def forward(self, x):
        return self.say(self.body(x.flatten(1)))


class Classes(Head):
    def say(self, z):
        return z.argmax(1)


class Hard(Head):
    def say(self, z):
        return torch.nn.functional.one_hot(z.argmax(1), 4)


class One(Head):
    def say(self, z):
        return z[:, :1]


class Map(Head):
    def say(self, z):
        return z[:, :, None, None]


class Named(Head):
    def say(self, z):
        return {"scores": z}
"""


def arrays(rows: int = 40) -> dict[str, Any]:
    random = np.random.RandomState(0)
    x = random.rand(rows, 1, 8, 8).astype(np.float32)
    return {"x": x, "y": np.arange(rows) % 4}


def state(inputs: int = 64, classes: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"1.weight": torch.randn(classes, inputs), "1.bias": torch.zeros(classes)}


@dataclass
class Payload:
    """Pickled as a call; loading it without care would run code."""

    path: str

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def data(**changes: Any) -> Callable[[], None]:
    """Write a data set with these arrays changed; None: left out."""

    def write() -> None:
        found = {**arrays(), **changes}
        kept = {key: value for key, value in found.items() if value is not None}
        np.savez("test.npz", **kept)

    return write


def torch_file(content: Any) -> Callable[[], None]:
    return lambda: torch.save(content, "w.pt")


def raw(content: bytes, name: str = "w.pt") -> Callable[[], None]:
    return lambda: (Path(name).write_bytes(content), None)[1]


def program() -> None:
    with pytest.warns(FutureWarning):
        torch.jit.trace(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), torch.zeros(2, 1, 8, 8)
        ).save("w.pt")


def fixed() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    torch.export.save(torch.export.export(model, (torch.zeros(5, 1, 8, 8),)), "w.pt2")


X, Y = arrays()["x"], arrays()["y"]
NAN = np.where(np.arange(40)[:, None, None, None] == 3, np.nan, X).astype(np.float32)

FILES: dict[str, tuple[Callable[[], None] | None, dict[str, Any], str]] = {
    # the weights
    "no such file": (None, {"weights": "gone.pt"}, r"gone\.pt.*cannot be read"),
    "a folder": (lambda: Path("w.pt").mkdir(), {}, r"w\.pt.*(folder|directory)"),
    "an empty file": (raw(b""), {}, "it is empty.*save model.state_dict"),
    "no checkpoint": (raw(b"junk" * 99), {}, "cannot be read as a plain state dict"),
    "a page of the web": (raw(b"<!DOCTYPE html><html>"), {}, "page of the web.*download it again"),
    "a pointer": (raw(b"version https://git-lfs.github.com/spec/v1"), {}, "git lfs pull"),
    "another format": (None, {"weights": "w.onnx"}, r"weights must be a .*state dict"),
    "a pickled model": (torch_file(nn.Linear(2, 2)), {}, r"a whole model.*save model\.state_dict"),
    "a pickle with code": (torch_file({"a": Payload("harmed")}), {}, "save model.state_dict"),
    "an average's list": (
        torch_file({"decay": 0.9, "shadow_params": [torch.zeros(3)]}), {}, "ema.copy_to",
    ),
    "a list as a part": (
        torch_file({"model": state(), "ema": {"shadow_params": [torch.zeros(3)]}}),
        {"part": "ema"}, "ema lists its weights without names",
    ),
    "a plain pickle": (raw(pickle.dumps({"w": [1, 2]})), {}, "cannot be read as a plain"),
    "a list": (torch_file([1, 2]), {}, "is not a state dict: it holds a list"),
    "a checkpoint without weights": (
        torch_file({"epoch": 3, "args": {"lr": 0.1}}), {}, "epoch, args hold no tensors",
    ),
    "several sets of weights": (
        torch_file({"teacher": state(), "student": state()}), {},
        'several sets of weights, teacher, student: give part = "teacher"',
    ),
    "a part that is not there": (
        torch_file({"model": state(), "ema": state()}), {"part": "emma"}, "did you mean 'ema'",
    ),
    "missing keys": (torch_file({"1.weight": state()["1.weight"]}), {}, r"missing 1\.bias.*a part"),
    "unexpected keys": (
        torch_file({**state(), "2.weight": torch.ones(1)}), {},
        r"not in the model 2\.weight.*the whole network",
    ),
    "another network's keys": (
        torch_file({"fc.weight": torch.ones(1)}), {}, "missing.*not in the model.*builder must",
    ),
    "wrong classes": (torch_file(state(classes=10)), {}, r"expected \(4, 64\).*classes"),
    "wrong channels": (torch_file(state(192)), {}, r"\(4, 192\), expected \(4, 64\).*channels"),
    "weights that are NaN": (
        torch_file({**state(), "1.bias": torch.full((4,), torch.nan)}), {},
        r"NaN or infinity in 1\.bias.*earlier checkpoint",
    ),
    "a program as weights": (program, {}, 'TorchScript program.*builder = "program"'),
    "weights as a program": (torch_file(state()), {"builder": "program"}, "no TorchScript"),
    "a program for five rows": (
        fixed, {"weights": "w.pt2", "builder": "program"}, "takes no input of shape",
    ),
    # the builder
    "a builder that is not there": (None, {"builder": "models.py:bild"}, "did you mean 'build'"),
    "a builder that raises": (None, {"builder": "models.py:raises"}, "raises RuntimeError: no"),
    "a builder of no module": (None, {"builder": "models.py:module"}, "must return a torch"),
    "a builder with arguments": (None, {"builder": "models.py:two"}, "needs a, b: give the others"),
    "a network of no package": (
        None, {"builder": "torchvision:resnet81"}, "no classifier 'resnet81'.*did you mean",
    ),
    "1,000 classes for ten": (
        torch_file(state(classes=10)), {"builder": "models.py:ten"},
        r"it has 10 classes and the data 4.*classes=",
    ),
    "a network for colours": (None, {"builder": "models.py:colour"}, "takes no input.*1 channels"),
    "classes for logits": (None, {"builder": "models.py:Classes"}, r"got \(2,\).*no logit"),
    "one-hot for logits": (None, {"builder": "models.py:Hard"}, r"torch.int64.*no argmax"),
    "one output": (None, {"builder": "models.py:One"}, r"torch.stack\(\[-z"),
    "no head": (None, {"builder": "models.py:Map"}, "is the head of the network missing"),
    "a dict without logits": (None, {"builder": "models.py:Named"}, "a dict with scores"),
    # what it was trained on
    "a mean without std": (None, {"mean": "0.5"}, "mean and std go together"),
    "a mean for three channels": (
        None, {"mean": "0.5,0.5,0.5", "std": "1,1,1"}, "3 values and the inputs 1 channels",
    ),
    "a range upside down": (None, {"range": "255,0"}, "two ascending numbers"),
    "an accuracy in per cent": (None, {"expect_accuracy": 84.0}, "0.84 for 84 %"),
    # the data
    "no such data": (lambda: Path("test.npz").unlink(), {}, "there is no such file"),
    "data that are none": (raw(b"nothing", "test.npz"), {}, "cannot be read as .npz.*numpy.savez"),
    "objects": (data(y=np.array([{}] * 40)), {}, "cannot be read as .npz"),
    "an array that is not there": (data(x=None, images=X), {}, "no array 'x.*it holds images, y"),
    "training rows without labels": (data(x_train=X), {}, "no array 'y_train'"),
    "an empty set": (data(x=X[:0], y=Y[:0]), {}, "no rows"),
    "labels for fewer rows": (data(y=Y[:30]), {}, r"y must be \(40,\).*a label for each row"),
    "one-hot labels": (data(y=np.eye(4, dtype=int)[Y]), {}, r"y.argmax\(axis=1\)"),
    "float labels": (data(y=Y.astype(float)), {}, r"y.astype\('int64'\)"),
    "labels below zero": (data(y=Y - 1), {}, "smallest label of -1.*count from 0"),
    "names for labels": (data(y=np.array(list("abcd"))[Y]), {}, "must hold numbers.*names of"),
    "labels in a column": (data(y=Y[:, None]), {}, r"y\[:, 0\]"),
    "one class": (data(y=np.zeros(40, int)), {}, "names class 0 alone"),
    "fewer classes than labels": (data(classes=np.array(2)), {}, "classes is 2 and y names"),
    "levels of a byte as floats": (data(x=255 * X), {}, "levels of a byte: divide by 255"),
    "inputs in [-1, 1]": (data(x=2 * X - 1), {}, r'give \(x \+ 1\) / 2.*range = "-1,1"'),
    "normalised inputs": (data(x=(X - 0.5) / 0.2), {}, r"looks normalised: give x \* std \+ mean"),
    "NaN": (data(x=NAN), {}, "without NaN: 1 of its first rows"),
    "integers": (data(x=(255 * X).astype(int)), {}, r"uint8 or floating.*astype\('uint8'\)"),
    "rows that are all the same": (data(x=np.ones_like(X)), {}, "all 40 rows are the same"),
    "more sources than rows": (None, {"sources": 41}, "41 sources were asked for.*has 40"),
    # the budget
    "a budget in levels": (None, {"eps": 8}, r"\(0, 1\], got 8.*are 8/255, and a budget on inputs"),
    "a budget of zero": (None, {"eps": 0}, r"eps must be in \(0, 1\], got 0"),
    "an L2 budget beyond the box": (
        None, {"norm": "l2", "eps": 9.0, "attack": "pgd"}, "exceeds the box, whose diagonal is 8;",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


@pytest.mark.parametrize("way", FILES)
def test_a_wrong_way_ends_a_command_with_its_cause_and_mend(way: str, tmp_path: Path) -> None:
    write, params, message = FILES[way]
    data()()
    if write is not None:
        write()
    if not Path("w.pt").exists():
        torch.save(state(), "w.pt")
    params = {"weights": "w.pt", "builder": "models.py:build", **params}
    sources = params.pop("sources", 10)
    attack = {"name": params.pop("attack", "fgsm"), "eps": params.pop("eps", 0.1)}
    attack |= {"norm": params.pop("norm")} if "norm" in params else {}
    keys, given = ([f"{k} = {v!r}" for k, v in table.items()] for table in (params, attack))
    lines = ['name = "own"', 'dataset = "test.npz"', f"sources = {sources}"]
    lines += ["[[defense]]", 'name = "checkpoint"', *keys]
    lines += ["[[attack]]", *given]
    Path("own.toml").write_text("\n".join(lines))
    done = CliRunner().invoke(app, ["run", "--matrix", "own.toml", "--dry-run", "--trust"])
    said = " ".join(done.output.split())
    assert done.exit_code == 2, said
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert said.startswith("error: ")
    assert not (tmp_path / "harmed").exists()


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


class Off(nn.Module):
    """A network that does something else with its logits."""

    def __init__(self, say: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.body, self.say = linear(), say

    def forward(self, x: torch.Tensor) -> Any:
        return self.say(self.body(x))


class Training(nn.Module):
    """Batch normalisation that never leaves the training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = linear(), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.norm.training = True
        return self.norm(self.body(x))


CALLS: dict[str, tuple[Any, Any, Any, str]] = {
    "a function": (lambda x: x, X, Y, "must be a torch.nn.Module, got function"),
    "an estimator": (object(), X, Y, "must be a torch.nn.Module, got object"),
    "a class": (nn.Linear, X, Y, "must be a torch.nn.Module, got Linear"),
    "a loader": (
        linear(),
        torch.utils.data.DataLoader([0]),
        Y,
        "x is a DataLoader: stack its rows",
    ),
    "rows of two shapes": (linear(), [[1.0], [1.0, 2.0]], Y[:2], "its rows must have one shape"),
    "text": (linear(), [["a", "b"]] * 40, Y, "must hold numbers"),
    "flat rows for images": (linear(), X.reshape(40, 64)[:, :60], Y, "takes no input of shape"),
    "images without channels": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 4)),
        X[:, 0].repeat(2, 1),
        Y,
        r"x\[:, None\]",
    ),
    "NaN": (linear(), NAN, Y, "without NaN"),
    "levels of a byte as floats": (linear(), 255 * X, Y, "divide by 255"),
    "sixteen levels as floats": (linear(), 16 * X, Y, "divide by the largest value"),
    "sixteen levels as integers": (
        linear(),
        (16 * X).astype("int64"),
        Y,
        r"astype\('float32'\) / 15, its largest",
    ),
    "truth values": (linear(), X > 0.5, Y, r"astype\('float32'\)$"),
    "inputs in [-1, 1]": (linear(), 2 * X - 1, Y, r"\(x \+ 1\) / 2"),
    "an empty set": (linear(), X[:0], Y[:0], "no rows"),
    "labels that count from 1": (linear(), X, Y + 2, "do they count from 0"),
    "one class": (linear(), X, Y * 0, "names class 0 alone"),
    "one-hot labels": (linear(), X, np.eye(4, dtype=int)[Y], "one-hot"),
    "a dict without logits": (Off(lambda z: {"scores": z}), X, Y, "a dict with scores"),
    "classes for logits": (Off(lambda z: z.argmax(1)), X, Y, "no logit"),
    "no gradient": (Off(lambda z: z.detach()), X, Y, "answer has none: no torch.no_grad"),
    "training mode": (Training(), X, Y, "two rows and not one.*in training mode"),
}


@pytest.mark.parametrize("way", CALLS)
def test_a_wrong_way_ends_a_call_with_its_cause_and_mend(way: str) -> None:
    model, x, y, message = CALLS[way]
    with pytest.raises(UserError, match=message):
        bench.evaluate(model, x, y)


class Colours(nn.Module):
    """Right on coloured squares; ``change`` is done to what it is given."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.change = change
        self.weight = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * self.change(x).mean(dim=(2, 3))


def squares() -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(90) % 3
    x = 0.2 + 0.2 * torch.rand(90, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    x[torch.arange(90), y] += 0.4
    return x, y


class Noisy(nn.Module):
    """Normalises by the batch that it is asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Colours()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x)
        return z - 0.9 * z.mean(dim=0)


def shuffled(y: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(3).permutation(y.numpy()))


FLAGGED: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Tensor], torch.Tensor], str]] = {
    "BGR": (lambda: Colours(lambda x: x.flip(1)), lambda y: y, "handed-over: .*channels are BGR"),
    "labels shifted": (Colours, lambda y: (y + 1) % 3, "handed-over: .*labels are one too high"),
    "shuffled labels": (Colours, shuffled, "chance: clean accuracy"),
    "softmax inside": (
        lambda: nn.Sequential(Colours(), nn.Softmax(1)), lambda y: y, "probabilities: .*sum to one",
    ),
    "statistics of the batch": (Noisy, lambda y: y, "batch-dependent|stateful"),
    "an answer of NaN": (lambda: Colours(lambda x: x / 0 * 0), lambda y: y, "no-answer"),
}  # fmt: skip


@pytest.mark.filterwarnings("default")  # others than the one that is awaited
@pytest.mark.parametrize("way", FLAGGED)
def test_what_cannot_be_refused_is_a_flag(way: str) -> None:
    make, relabel, message = FLAGGED[way]
    x, y = squares()
    with pytest.warns(UserWarning, match=message):
        bench.evaluate(make(), x, relabel(y), ["fgsm"], sources=30)


def test_there_are_more_than_forty() -> None:
    assert len(FILES) + len(CALLS) + len(FLAGGED) >= 80
