"""The cheats are what they say: each keeps its contract, and decides as the network inside does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo, Spec
from bench.plugins import discovery, registry
from bench.plugins.contracts import BuildContext
from tests.cheats import truth

HERE = Path(__file__).parent
SAME = ("scale", "shaped", "temperature", "gradient", "rippled", "grid", "root", "bad_surrogate")
CHANGED = ("silent_off_grid", "tired")


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> None:
    discovery.load_plugins([str(file) for file in HERE.glob("[!t_]*.py")])


def made(name: str, params: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """A model on small untrained networks, and the network inside."""
    torch.manual_seed(0)
    info = DataInfo("tiny", (1, 8, 8), 10, (0.5,), (0.3,))
    network = registry.NETWORKS.make(Spec("digits-cnn", {}))
    fitted = {key: network.build(info) for key in ("undefended", "twin", "robust", "inside")}
    context = BuildContext(info, fitted, lambda: network.build(info))
    model = registry.DEFENSES.make(Spec(name, params)).build(context)
    return model.eval(), fitted["undefended"].eval()


def images() -> Tensor:
    return torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 16


@pytest.mark.parametrize(("name", "params"), truth.CASES, ids=str)
def test_answers_ten_logits_a_row_and_reloads_its_weights(
    name: str, params: dict[str, Any]
) -> None:
    model, _ = made(name, params)
    with torch.no_grad():
        assert model(images()).shape == (12, 10)
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("name", "params"),
    [case for case in truth.CASES if any(part in case[0] for part in SAME)
     and not any(part in case[0] for part in CHANGED)],
    ids=str,
)  # fmt: skip
def test_decides_as_the_network_inside(name: str, params: dict[str, Any]) -> None:
    model, network = made(name, params)
    network[-1].weight.data *= 30  # untrained logits lie closer than a ripple is high
    answers = network(images())
    best = answers.topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > 0.15
    assert (model(images()).argmax(dim=1) == answers.argmax(dim=1))[sure].all()


def test_every_registered_cheat_is_a_case() -> None:
    registered = {name for name in registry.DEFENSES.names() if name.startswith("cheat_")}
    assert registered == {name for name, _ in truth.CASES} - {"undefended"}


def test_memory_answers_for_what_lies_near_and_fresh_memory_does_not() -> None:
    model, network = made("cheat_first_batch", {})
    x = images()
    near = (x + 0.3 * torch.randn(x.shape).sign()).clamp(0, 1)
    with torch.no_grad():
        assert not torch.allclose(model(near), network(x))
        model, network = made("cheat_first_batch", {})
        model(x)
        assert torch.allclose(model(near), network(x), atol=1e-5)


def test_two_faced_shows_the_other_face_to_single_rows() -> None:
    model, network = made("cheat_two_faced", {"sign": "batch"})
    x = images()
    with torch.no_grad():
        assert torch.equal(model(x[:1]), network(x[:1]))
        assert not torch.allclose(model(x), network(x))


def test_an_abstention_does_not_survive() -> None:
    silent = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(silent[1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(silent[1].bias)  # type: ignore[arg-type]
    x, y = images(), torch.zeros(12, dtype=torch.int64)
    assert not truth.survives(silent, x[None], y, draws=1).any()
    silent[1].bias.data[0] = 1.0  # type: ignore[union-attr]
    assert truth.survives(silent, x[None], y, draws=1).all()


def test_pairs_find_the_two_features_that_decide() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    weights = torch.zeros(10, 64)
    weights[1, 5], weights[1, 9], weights[0, 20] = 1.0, 1.0, 0.5
    linear[1].weight.data.copy_(weights)  # type: ignore[union-attr,operator]
    x = torch.zeros(1, 1, 8, 8)
    (best,) = truth.pairs(linear, x, torch.tensor([0]), keep=1)
    assert best.flatten().nonzero().flatten().tolist() == [5, 9]


@pytest.mark.parametrize("family", ["honest", "awkward"])
def test_every_kind_can_be_made(family: str) -> None:
    (field, *_) = dataclasses.fields(registry.DEFENSES.get(family))  # type: ignore[arg-type]
    module = truth.plugin(family)
    kinds = module.Kind if family == "honest" else module.Way
    for kind in kinds.__args__:
        model, _ = made(family, {field.name: kind})
        assert isinstance(model, nn.Module)
