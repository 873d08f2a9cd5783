"""A model trained elsewhere: what is accepted, what is refused, what identifies it."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bench
from bench.base.files import read_tensors
from bench.base.types import Document, Spec, UserError
from bench.conformance import check_defense, tiny_data, tiny_model
from bench.conformance.models import fitted
from bench.measure.query import predict
from bench.plan.graph import make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.runner.keys import Keys, check_files
from defenses.checkpoint import Checkpoint

BUILDERS = """
from torch import nn

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 3))

def of_info(info, bias=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(info.features, info.classes, bias))

def greedy(a, b):
    return nn.Flatten()

def wrong():
    return 3

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(256, 3))

CONSTANT = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    doors.load_plugins()
    (tmp_path / "my models.py").write_text(BUILDERS)  # a path with a space is a path
    return tmp_path


def linear_weights(outputs: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"1.weight": torch.randn(outputs, 256), "1.bias": torch.randn(outputs)}


def fit(**params: str) -> nn.Module:
    return fitted(Spec("checkpoint", params), tiny_data())


@pytest.mark.parametrize("builder", ["linear", "of_info", "Net"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_the_model_is_the_builder_with_the_weights(builder: str, suffix: str) -> None:
    weights = linear_weights()
    path = f"w.{suffix}"
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    model = fit(builder=f"my models.py:{builder}", weights=path)
    x = tiny_data().test.x
    expected = x.flatten(1) @ weights["1.weight"].T + weights["1.bias"]
    assert torch.allclose(predict(model, x, 3), expected, atol=1e-4)


def test_a_registered_network_and_the_matrix_s_own() -> None:
    save_file(linear_weights(), "w.safetensors")
    assert fit(builder="softmax-regression", weights="w.safetensors")[1].out_features == 3
    save_file(tiny_model(tiny_data()).state_dict(), "mlp.safetensors")
    x = tiny_data().test.x
    own = fit(weights="mlp.safetensors")  # the suite fits on mlp, 32 units wide
    assert torch.equal(predict(own, x, 3), predict(tiny_model(tiny_data()), x, 3))


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("my models.py:liner", "has no 'liner': did you mean 'linear'"),
        ("my models.py:CONSTANT", "must be a function or a class, got 3"),
        ("no_such_package.models:build", "cannot be imported: ModuleNotFoundError"),
        ("nowhere.py:build", "plugin file .*nowhere.py' does not exist"),
        ("softmax-regresion", "unknown network.*did you mean 'softmax-regression'"),
        (":build", "a reference is module:name or file.py:name"),
    ],
)
def test_a_builder_that_is_not_there_is_named_before_the_run(builder: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.DEFENSES.make(Spec("checkpoint", {"builder": builder, "weights": "w.pt"}))


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("greedy", "must take no argument or the DataInfo alone, and it needs a, b"),
        ("wrong", "must return a torch.nn.Module, got int"),
        ("narrow", r"logits of shape \(2, 3\), got \(2, 2\): it has 2 classes and the data 3"),
    ],
)
def test_a_builder_that_does_not_serve(builder: str, message: str) -> None:
    save_file(linear_weights(2), "w.safetensors")
    with pytest.raises(UserError, match=message):
        fit(builder=f"my models.py:{builder}", weights="w.safetensors")


@dataclass
class Payload:
    """Pickled as a call; loading it without care would run code."""

    path: str

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": 1}, "epoch": 3}, "state_dict, epoch hold no tensors"),
        ([1, 2], "it holds a list"),
        ({}, "it holds a dict"),
        (b"junk", "cannot be read as a plain state dict"),
        (b"", "cannot be read as a plain state dict"),
        (nn.Linear(2, 2), "cannot be read as a plain state dict"),
        ({"1.weight": torch.zeros(3, 256)}, "missing 1.bias"),
        ({**linear_weights(), "2.bias": torch.zeros(3)}, "not in the model 2.bias"),
        (linear_weights(4), r"1.weight is \(4, 256\), expected \(3, 256\)"),
    ],
)
def test_a_file_that_does_not_fit_is_named(content: object, message: str) -> None:
    if isinstance(content, bytes):
        Path("w.pt").write_bytes(content)
    else:
        torch.save(content, "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt.*{message}"):
        fit(builder="my models.py:linear", weights="w.pt")


def test_no_code_of_the_file_runs(tmp_path: Path) -> None:
    torch.save({"a": Payload(str(tmp_path / "harmed"))}, "w.pt")
    with pytest.raises(UserError, match="cannot be read as a plain state dict"):
        fit(builder="my models.py:linear", weights="w.pt")
    assert not (tmp_path / "harmed").exists()


def test_junk_as_safetensors_and_a_strange_suffix() -> None:
    Path("w.safetensors").write_bytes(b"junk" * 9)
    with pytest.raises(UserError, match=r"w\.safetensors.*cannot be read"):
        fit(builder="my models.py:linear", weights="w.safetensors")
    with pytest.raises(
        UserError, match=r"weights must be a .safetensors, .pt, .* file, got 'w.onnx'"
    ):
        registry.DEFENSES.make(Spec("checkpoint", {"weights": "w.onnx"}))


def test_it_passes_the_conformance_suite() -> None:
    save_file(linear_weights(), "w.safetensors")
    checks = check_defense(Checkpoint("w.safetensors", "my models.py:of_info"))
    assert len(checks) == 14
    assert [str(check) for check in checks if check.status != "ok"] == []


def key(defense: dict[str, str]) -> Document:
    matrix = {"name": "m", "defense": [{"name": "checkpoint", **defense}], "attack": ["fgsm"]}
    plan = make_plan(parse_matrix(matrix, "test"))
    check_files(plan)
    return Keys(tiny_data(), "cpu", {}).of(plan.of("fit")[0])


def test_the_builder_s_code_and_the_file_are_part_of_the_identity() -> None:
    defense = {"builder": "my models.py:linear", "weights": "w.safetensors"}
    with pytest.raises(
        UserError, match=r"needs the file 'w\.safetensors'.*a relative path starts at"
    ):
        key(defense)
    save_file(linear_weights(), "w.safetensors")
    first, again = key(defense), key(defense)
    assert first == again
    assert key({**defense, "builder": "my models.py:Net"})["source"] != first["source"]
    save_file(linear_weights(4), "w.safetensors")
    assert {name for name, value in key(defense).items() if value != first[name]} == {"files"}


@pytest.mark.process
def test_other_weights_under_the_same_name_are_another_result(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    defense = {"name": "checkpoint", "builder": "models.py:build", "weights": "w.safetensors"}
    matrix = {"name": "mine", "sources": 5, "defense": [defense], "attack": ["fgsm"]}
    folder, accuracies = tmp_path / "runs" / "mine-digits", []
    for scale in (1.0, -1.0):
        torch.manual_seed(0)
        weights = {"1.weight": scale * torch.randn(10, 64), "1.bias": torch.zeros(10)}
        save_file(weights, tmp_path / "w.safetensors")
        (row,) = bench.run(matrix, workers=1, cache_dir=tmp_path / "cache").to_dict("records")
        assert row["status"] == "done", row["reason"]
        accuracies.append(row["accuracy"])
        (model,) = (folder / "models").glob("*.safetensors")
        assert torch.equal(read_tensors(model)["1.weight"], weights["1.weight"])
    assert accuracies[0] != accuracies[1]
