"""Models as others hand them over: each gives the logits and the records of the plain one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bench
from bench.base.types import DataInfo, Spec, UserError
from bench.conformance import tiny_data, tiny_model
from bench.handed.adapt import Adapted, Form, adapt
from bench.plugins import discovery, registry
from bench.plugins.contracts import BuildContext
from bench.plugins.data import Dataset
from bench.runner.rebuild import Sources
from bench.training.fit import build
from defenses.checkpoint import Checkpoint

BUILDERS = '''
"""Builders of one small network in the ways that networks come."""
from types import SimpleNamespace

import torch
from torch import nn

import bench


def plain(info):
    return bench.plugins.registry.NETWORKS.make(bench.Spec("mlp", {"width": 32})).build(info)


class Wrapped(nn.Module):
    def __init__(self, info):
        super().__init__()
        self.inner = plain(info)

    def load(self, state):
        return state


class Huggingface(Wrapped):
    def forward(self, pixel_values, labels=None):
        return SimpleNamespace(loss=None, logits=self.inner(pixel_values))


class Dictionary(Wrapped):
    def forward(self, x):
        return {"features": x, "logits": self.inner(x)}


class Tuple(Wrapped):
    def forward(self, x):
        return self.inner(x), x


class Normalised(Wrapped):
    """Takes (x - 0.4) / 0.25, as a network that others trained on normalised images."""

    def forward(self, x):
        return self.inner(0.25 * x + 0.4)


class Symmetric(Wrapped):
    """Takes [-1, 1]."""

    def forward(self, x):
        return self.inner((x + 1) / 2)


class Bytes(Wrapped):
    """Takes [0, 255]."""

    def forward(self, x):
        return self.inner(x / 255)


class Last(Wrapped):
    """Takes channels last, and nothing else."""

    def forward(self, x):
        if x.shape[3] != 1:
            raise ValueError("channels come last")
        return self.inner(x.permute(0, 3, 1, 2))
'''


@pytest.fixture(scope="module")
def data() -> Dataset:
    discovery.load_plugins()
    return tiny_data()


@pytest.fixture(scope="module")
def model(data: Dataset) -> nn.Module:
    return tiny_model(data).eval()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(BUILDERS)
    return tmp_path


def context(data: Dataset) -> BuildContext:
    network = registry.NETWORKS.make(Spec("mlp", {"width": 32}))
    return BuildContext(data.info, {}, lambda: network.build(data.info))


def loaded(data: Dataset, **params: object) -> tuple[nn.Module, list[str]]:
    """Return a checkpoint as a run has it: fitted, stored and made again of what was stored."""
    defense = registry.DEFENSES.make(Spec("checkpoint", params))
    assert isinstance(defense, Checkpoint)
    notes = list(defense.notes(context(data)))
    network = registry.NETWORKS.make(Spec("mlp", {"width": 32}))
    first, again = (build(defense, network, data.info, {}, torch.device("cpu")) for _ in range(2))
    defense.fit(first, data.train.take(slice(0, 0)), None)  # type: ignore[arg-type]
    again.load_state_dict(first.state_dict())
    return again.eval(), notes


def script(model: nn.Module, data: Dataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.trace(model, data.test.x[:2]).save("w.pt")


def export(model: nn.Module, data: Dataset) -> None:
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(model, (data.test.x[:2],), dynamic_shapes=(rows,))
    torch.export.save(program, "w.pt2")


def average(model: nn.Module, data: Dataset) -> None:
    """Write a checkpoint of DataParallel with an average: the average is the trained one."""
    state = model.state_dict()
    other = {f"module.{name}": torch.zeros_like(value) for name, value in state.items()}
    mean = {f"module.module.{name}": value for name, value in state.items()}
    torch.save(
        {
            "epoch": 90,
            "model": other,
            "ema": {"n_averaged": torch.tensor(9), **mean},
            "optimizer": {"state": {}, "param_groups": []},
        },
        "w.pt",
    )


def saved(name: str, prefix: str = "inner.") -> Callable[[nn.Module, Dataset], None]:
    def save(model: nn.Module, data: Dataset) -> None:
        torch.save({f"{prefix}{key}": value for key, value in model.state_dict().items()}, name)

    return save


def lightning(model: nn.Module, data: Dataset) -> None:
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4"}, "w.ckpt")


def trainer(model: nn.Module, data: Dataset) -> None:
    state = {f"classifier.{key}": value for key, value in model.state_dict().items()}
    torch.save({**state, "criterion.weight": torch.ones(3)}, "w.pt")


WAYS = [
    ("models.py:Huggingface", saved("w.pt"), {}, "taken out of its SimpleNamespace"),
    ("models.py:Dictionary", saved("w.pt"), {}, "taken out of its dict"),
    ("models.py:Tuple", saved("w.pt"), {}, "taken out of its tuple"),
    ("models.py:Normalised", saved("w.pt"), {"mean": "0.4", "std": 0.25}, None),
    ("models.py:Symmetric", saved("w.pt"), {"range": "-1,1"}, None),
    ("models.py:Bytes", saved("w.pt"), {"range": "0,255"}, None),
    ("models.py:Last", saved("w.pt"), {}, 'channels last (layout = "nhwc")'),
    ("models.py:Last", saved("w.pt"), {"layout": "nhwc"}, None),
    ("program", script, {}, "TorchScript program"),
    ("program", export, {"weights": "w.pt2"}, "torch.export program"),
    ("models.py:plain", average, {"part": "ema"}, "the prefix 'module.module.' was taken off"),
    ("models.py:plain", lightning, {"weights": "w.ckpt"}, "the weights are 'state_dict'"),
    ("models.py:plain", trainer, {}, "criterion.weight was left out, which is not the network's"),
    ("models.py:plain", saved("w.pt", "student.backbone."), {}, "'student.backbone.' was taken"),
    ("models.py:Tuple", saved("w.pt", ""), {}, "the prefix 'inner.' was put before"),
    ("models.py:Tuple", saved("w.pt", "module."), {}, "the prefix 'module.' was taken off"),
]


@pytest.mark.parametrize(("builder", "save", "params", "note"), WAYS)
def test_every_way_to_hand_a_model_over_gives_the_plain_one_s_records(
    data: Dataset, model: nn.Module, builder: str, save, params, note: str | None
) -> None:
    save(model, data)
    found, notes = loaded(data, **{"weights": "w.pt", **params}, builder=builder)
    with torch.no_grad():
        assert torch.allclose(found(data.test.x), model(data.test.x), atol=1e-4)
    assert any(note in said for said in notes) if note else notes == []
    records, expected = (attacked(who, data) for who in (found, model))
    names = ["sample_id", "clean_prediction", "success", "misclassified", "in_budget"]
    assert records[names].equals(expected[names])
    assert 0 < expected["success"].sum() < len(expected)


def test_weights_under_several_prefixes_are_nobody_s_to_choose_from(
    data: Dataset, model: nn.Module
) -> None:
    state = model.state_dict()
    both = {
        f"{name}.{key}": value for name in ("student", "teacher") for key, value in state.items()
    }
    for content in (both, {"epoch": 3, "state_dict": both}):
        torch.save(content, "w.pt")
        with pytest.raises(
            UserError, match=r'sets of weights, under student\., teacher\.: give part = "teacher"'
        ):
            loaded(data, builder="models.py:plain", weights="w.pt")
        found, _ = loaded(data, builder="models.py:plain", weights="w.pt", part="teacher")
        assert torch.equal(found(data.test.x), model(data.test.x))


def attacked(model: nn.Module, data: Dataset):
    from bench.measure.cell import attack_sources
    from bench.plugins.contracts import AttackContext

    attack = registry.ATTACKS.make(Spec("fgsm", {"eps": 0.12}))
    sources = Sources(torch.arange(24), data.test.x, data.test.y)
    return attack_sources(model, attack, sources, AttackContext(data.info)).records


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_weights_are_cast_and_said(data: Dataset, model: nn.Module, half) -> None:
    rounded = {key: value.to(half) for key, value in model.state_dict().items()}
    save_file(rounded, "w.safetensors")
    found, notes = loaded(data, builder="models.py:plain", weights="w.safetensors")
    name = str(half).removeprefix("torch.")
    assert notes == [f"w.safetensors holds {name}, which was cast to float32"]
    kept = {key: value.float() for key, value in rounded.items()}
    assert all(torch.equal(value, kept[key]) for key, value in found.state_dict().items())
    whole = tiny_model(data)
    whole.load_state_dict(kept)
    assert attacked(found, data).equals(attacked(whole.eval(), data))


def test_a_plain_model_is_left_as_it_is(data: Dataset, model: nn.Module) -> None:
    found, notes = adapt(model, Form(), data.info.shape, 3)
    assert found is model
    assert notes == ()
    wrapped, _ = adapt(model, Form.of(order="bgr", mean=0, std=1), data.info.shape, 3)
    assert isinstance(wrapped, Adapted)


class CastsItself(nn.Module):
    """Casts its inputs, once standardised, to the dtype that its weights were made with."""

    def __init__(self, network: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__()
        self.standardise, self.network = network[0], network[1:].to(dtype)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(self.standardise(x).to(self.dtype))
        return logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_that_casts_its_inputs_by_itself_is_asked_in_its_own_dtype(
    data: Dataset, model: nn.Sequential, dtype: torch.dtype
) -> None:
    cast = CastsItself(copy.deepcopy(model), dtype)
    adapted, notes = adapt(cast, Form(), data.info.shape, data.info.classes)
    name = str(dtype).removeprefix("torch.")
    assert notes == (f"the model is {name}, and is asked in it",)
    with torch.no_grad():
        torch.testing.assert_close(adapted(data.test.x), cast(data.test.x).float())
    assert next(cast.parameters()).dtype == dtype
    with pytest.warns(UserWarning, match="is asked in it"):
        table = bench.evaluate(cast, data.test.x, data.test.y, ["fgsm"])
    assert table.loc[0, "accuracy"] == 1.0


def test_what_no_way_of_asking_mends_is_told_of_the_first() -> None:
    half = nn.Sequential(nn.Flatten(), nn.Linear(7, 3)).half()
    with pytest.raises(UserError, match="shapes cannot be multiplied"):
        adapt(half, Form(), (1, 4, 4))


def test_a_half_model_in_python_stays_half(data: Dataset, model: nn.Module) -> None:
    half = copy.deepcopy(model).half().train()
    with pytest.warns(UserWarning, match=r"the model is float16, and was cast to float32"):
        table = bench.evaluate(half, data.test.x, data.test.y, ["fgsm"])
    assert table.loc[0, "accuracy"] == 1.0
    assert next(half.parameters()).dtype == torch.float16
    assert half.training


def test_what_a_network_answers_may_be_wrapped_in_python_too(
    data: Dataset, model: nn.Module
) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x):
            return SimpleNamespace(logits=self.inner(x))

    with pytest.warns(UserWarning, match="taken out of its SimpleNamespace"):
        table = bench.evaluate(Wrapped(), data.test.x, data.test.y, ["fgsm"])
    plain = bench.evaluate(model, data.test.x, data.test.y, ["fgsm"])
    assert table["success_rate"].equals(plain["success_rate"])


def test_images_with_channels_last_and_bytes_are_taken(data: Dataset, model: nn.Module) -> None:
    images = (data.test.x * 255).round().byte()
    last = images.permute(0, 2, 3, 1).numpy()
    with pytest.warns(UserWarning, match=r"x is taken as \(n, height, width, channels\)"):
        table = bench.evaluate(model, last, data.test.y, ["fgsm"])
    same = bench.evaluate(model, images, data.test.y, ["fgsm"])
    floats = bench.evaluate(model, images.float() / 255, data.test.y, ["fgsm"])
    assert table["success_rate"].equals(same["success_rate"])
    assert table["success_rate"].equals(floats["success_rate"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": "0.5"}, "mean and std go together"),
        ({"mean": "0.5", "std": "0"}, "std must be positive"),
        ({"mean": "half", "std": "1"}, "mean must be numbers with commas"),
        ({"range": "1,-1"}, "two ascending numbers"),
        ({"range": "255"}, "two ascending numbers"),
    ],
)
def test_a_form_that_cannot_be(given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Form.of(**given)


def test_a_mean_for_other_channels_is_named() -> None:
    form = Form.of("0.5,0.5,0.5", "0.2,0.2,0.2")
    info = DataInfo("grey", (1, 16, 16), 3, (0.0,), (1.0,))
    with pytest.raises(UserError, match="mean has 3 values and the inputs 1 channels"):
        adapt(nn.Flatten(), form, info.shape, 3)
    assert Form.of("0.5", "127.5/255").std == (0.5,)
