"""Modules handed over in memory: one path with the command, and no pickle is read untrusted."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.base.types import UserError
from bench.plugins import unpickle
from bench.plugins.unpickle import identity, pickled, unpickled
from tests.bench.conftest import Command, in_process


class Blobs(nn.Module):
    """Two classes of 6 features: which half is larger; answers in a tuple."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        weight = torch.tensor([[1.0] * 3 + [-1.0] * 3, [-1.0] * 3 + [1.0] * 3])
        self.linear = nn.Linear(6, 2, bias=False)
        self.linear.weight.data = scale * weight

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.linear(x), None


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    y = np.arange(70) % 2
    x = random.uniform(0.3, 0.5, (70, 6)).astype(np.float32)
    x[y == 0, :3] += 0.3
    x[y == 1, 3:] += 0.3
    return x, y


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> bench.Verdict:
    """Three models with a reference, on tiny data."""
    folder = tmp_path_factory.mktemp("live")
    with in_process(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return bench.judge(
            [Blobs(1.0), Blobs(1.1), Blobs(1.2)], *data(), norm="linf", budget="0.25",
            reference=Blobs(0.9), name="blobs", workers=1, device="cpu", cache_dir=folder / "cache",
        )  # fmt: skip


def test_a_verdict_says_what_it_is_and_where_it_lies(judged: bench.Verdict) -> None:
    assert judged.label == "broken"
    assert judged.worst_case == [0.0, 0.0, 0.0]
    assert judged.delta == [0.0, 0.0, 0.0]
    assert judged.broken_by
    assert judged.folder.name == "blobs-linf-0.25"
    assert (judged.folder / "judge.toml").exists()
    text = str(judged)
    assert text.startswith("BROKEN: L∞ 0.25 on blobs, 70 sources")
    assert judged.reason in text
    assert "retort verify" in text
    shown = judged._repr_html_()
    assert "<table" in shown
    assert "data:image/png;base64" in shown


def test_the_same_modules_again_attack_nothing_anew(
    judged: bench.Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (judged.folder / "cells").glob("*.parquet")}
    with in_process():
        again = bench.judge(
            [Blobs(1.0), Blobs(1.1), Blobs(1.2)], *data(), norm="linf", budget=0.25,
            reference=Blobs(0.9), name="blobs", out=judged.folder, workers=1, device="cpu",
        )  # fmt: skip
    assert json.loads(json.dumps(again.row)) == json.loads(json.dumps(judged.row))
    after = {p: p.stat().st_mtime_ns for p in (judged.folder / "cells").glob("*.parquet")}
    assert before == after


def test_nobody_else_s_pickle_is_read_without_a_word(
    judged: bench.Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    copy = Path(shutil.copytree(judged.folder, tmp_path / "copy"))
    monkeypatch.setattr(unpickle, "_trusted", set())
    refused = command("verify", copy)
    assert refused.exit_code == 2
    assert "--unpickle" in refused.output
    refused = command("run", "--matrix", copy / "judge.toml", "--out", copy)
    assert refused.exit_code == 2
    assert "reading it runs its code" in refused.output
    checked = command("verify", copy, "--unpickle")
    assert checked.exit_code == 0, checked.output


def test_what_is_no_module_or_cannot_be_pickled_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = data()
    for models, message in [
        ([], "no model"),
        (["w.pt"], "must be a torch.nn.Module, got str"),
        ([Blobs(1.0), Blobs(1.0)], "the same module was given twice"),
    ]:
        with pytest.raises(UserError, match=message):
            bench.judge(models, x, y, norm="linf", budget=0.1, out="out")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="compared with itself"):
        bench.judge(Blobs(1.0), x, y, norm="linf", budget=0.1, reference=Blobs(1.0), out="out")
    with pytest.raises(UserError, match="unknown option 'worker'"):
        bench.judge(Blobs(1.0), x, y, norm="linf", budget=0.1, worker=1)
    held = Blobs(1.0)
    held.handle = (item for item in ())  # type: ignore[assignment]
    with pytest.raises(UserError, match="cannot be handed to other processes"):
        pickled(held)


@pytest.mark.process
def test_a_class_of_a_notebook_travels_with_its_module(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    source = (
        "from torch import nn\n"
        "class Local(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x)\n"
    )
    exec(source, names)
    model = names["Local"]()
    path = tmp_path / "m.pkl"
    path.write_bytes(pickled(model))
    x = torch.full((3, 2), 0.25)
    assert torch.equal(unpickled(path)(x), model(x))
    code = (
        "import sys, hashlib, pathlib, torch; from bench.plugins.unpickle import trust, unpickled;"
        "path = pathlib.Path(sys.argv[1]); trust([hashlib.sha256(path.read_bytes()).hexdigest()]);"
        "print(unpickled(path)(torch.full((3, 2), 0.25)).tolist())"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert json.loads(done.stdout) == model(x).tolist(), done.stderr
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="reading it runs its code"):
        unpickled(path)


def test_the_identity_is_of_code_structure_and_weights() -> None:
    assert identity(Blobs(1.0)) == identity(Blobs(1.0))
    assert identity(Blobs(1.0)) != identity(Blobs(2.0))
    assert identity(nn.Sequential(nn.ReLU())) != identity(nn.Sequential(nn.Tanh()))


def test_a_module_of_two_names_and_one_registered_before_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twice.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    (tmp_path / "hidden.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    twice, hidden = importlib.import_module("twice"), importlib.import_module("hidden")
    monkeypatch.setitem(sys.modules, "alias", twice)
    monkeypatch.delitem(sys.modules, "hidden")
    monkeypatch.setitem(sys.modules, "other", hidden)  # its own name leads nowhere
    cloudpickle.register_pickle_by_value(twice)
    try:
        content = pickled(twice.Net(2, 2))
        assert "twice" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(twice)
        monkeypatch.delitem(sys.modules, "twice")
    assert cloudpickle.loads(content).weight.shape == (2, 2)  # it travelled by value
    assert pickled(nn.Linear(2, 2))
    assert not cloudpickle.list_registry_pickle_by_value()
