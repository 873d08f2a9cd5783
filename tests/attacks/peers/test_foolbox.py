"""The foolbox adapter: goals, norms, seeds, parameters, and a model that is left as it was."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from dataclasses import asdict
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.peers import foolbox as adapter
from attacks.peers.foolbox import Foolbox
from attacks.peers.foolbox_table import MAPPED
from bench.base.types import DataInfo, ThreatModel, UserError
from bench.plugins.contracts import AttackContext

INFO = DataInfo("digits", (1, 8, 8), 10, (0.3,), (0.37,))
CONTEXT = AttackContext(INFO, seed=3)
Task = tuple[nn.Module, Tensor, Tensor, Tensor]

# Parameters with which each class is quick and strong enough to reach its goal on most rows.
QUICK: dict[str, dict[str, Any]] = {
    "L2CarliniWagnerAttack": {"steps": 30, "stepsize": 0.1, "binary_search_steps": 4},
    "L2PGD": {"eps": 2.0, "steps": 20, "rel_stepsize": 0.1},
    "LinfPGD": {"eps": 0.4, "steps": 20},
}
RUNS = [
    (name, targeted)
    for name, row in MAPPED.items()
    for targeted in (False, True)
    if row.targeted or not targeted
]


@pytest.fixture(scope="module")
def task() -> Task:
    """A trained network, eight correctly classified rows, labels, and runner-up classes."""
    pytest.importorskip("scipy")
    if importlib.util.find_spec("foolbox") is None:
        pytest.skip("the extra peers is not installed")
    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(data.target)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    with torch.no_grad():
        rows = (model(x).argmax(1) == y).nonzero()[:8, 0]
        target = model(x[rows]).topk(2).indices[:, 1]
    return model.eval(), x[rows], y[rows], target


def make(name: str, *, targeted: bool = False, **params: Any) -> Foolbox:
    """Return the plugin with quick parameters."""
    targets = "runner-up" if targeted else "untargeted"
    return Foolbox.from_params(attack=name, targets=targets, **QUICK.get(name, {}) | params)


@pytest.mark.parametrize(("name", "targeted"), RUNS)
def test_every_mapped_class_reaches_its_goal_and_repeats(
    name: str, targeted: bool, task: Task
) -> None:
    model, x, y, target = task
    attack, wanted = make(name, targeted=targeted), target if targeted else None
    x_adv = attack.perturb(model, x, y, wanted, CONTEXT).x_adv
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    predicted = model(x_adv).argmax(1)
    reached = predicted == target if targeted else predicted != y
    assert reached.float().mean() >= 0.6
    assert x_adv.equal(attack.perturb(model, x, y, wanted, CONTEXT).x_adv)
    threat = attack.threat(INFO.shape)
    change = (x_adv - x).flatten(1)
    if threat.budget is not None:
        size = change.norm(dim=1) if threat.norm == "l2" else change.abs().amax(1)
        assert size.max() <= threat.budget + 1e-5
        assert size.max() >= 0.9 * threat.budget  # and the budget is used
    if threat.norm == "l0":
        assert (change != 0).float().mean() < 0.2


@pytest.mark.parametrize("name", MAPPED)
def test_the_table_has_foolbox_s_own_defaults(name: str, task: Task) -> None:
    foolbox = adapter.load()
    attack_class = getattr(foolbox.attacks, name)
    parameters = inspect.signature(attack_class).parameters
    # What only serves a starting point, which a matrix file cannot hold, is left out.
    unused = {"init_attack"} | ({"binary_search_steps"} if "FMN" in name else set())
    assert MAPPED[name].defaults == {
        key: parameter.default for key, parameter in parameters.items() if key not in unused
    }
    fixed = foolbox.attacks.base.FixedEpsilonAttack
    assert issubclass(attack_class, fixed) == MAPPED[name].fixed
    if MAPPED[name].norm != "l0":
        distances = {"l2": foolbox.distances.l2, "linf": foolbox.distances.linf}
        assert attack_class.distance == distances[MAPPED[name].norm]
    else:
        assert attack_class.distance == foolbox.distances.l0


def test_seed_decides_what_is_random_and_generators_are_restored(task: Task) -> None:
    model, x, y, _ = task
    attack = make("LinfPGD", steps=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    runs = [attack.perturb(model, x, y, None, AttackContext(INFO, s)).x_adv for s in (1, 1, 2)]
    assert torch.rand(1).equal(expected)
    assert runs[0].equal(runs[1])
    assert not runs[0].equal(runs[2])


def test_chunks_do_not_matter_where_nothing_is_drawn(task: Task) -> None:
    model, x, y, _ = task
    whole, parts = (
        make("L0FMNAttack", steps=20, chunk=chunk).perturb(model, x, y, None, CONTEXT).x_adv
        for chunk in (256, 3)
    )
    assert torch.allclose(whole, parts, atol=1e-5)
    nothing = make("LinfPGD").perturb(model, x[:0], y[:0], None, CONTEXT).x_adv
    assert nothing.shape == (0, 1, 8, 8)


def test_the_model_is_attacked_in_eval_mode_and_left_as_it_was(task: Task) -> None:
    _, x, y, _ = task
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).train()
    modes: list[bool] = []
    model.register_forward_hook(lambda module, *_: modes.append(module[1].training))
    make("LinfPGD").perturb(model, x, y, None, CONTEXT)
    assert set(modes) == {False}
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"attack": "LinfPGD", "eps": 0.1}, ThreatModel("linf", 0.1)),
        ({"attack": "L2PGD", "eps": 1}, ThreatModel("l2", 1)),
        ({"attack": "L0FMNAttack"}, ThreatModel("l0", None, "features")),
        ({"attack": "LInfFMNAttack"}, ThreatModel("linf")),
        ({"attack": "L2DeepFoolAttack"}, ThreatModel("l2")),
    ],
)
def test_threat_model(params: dict[str, Any], expected: ThreatModel) -> None:
    assert Foolbox.from_params(**params).threat((3, 8, 8)) == expected


def test_parameters_are_complete_json_and_make_the_same_attack_again() -> None:
    attack = Foolbox.from_params(attack="LinfPGD", eps=0.3, steps=7, abs_stepsize=1)
    assert attack.params == {
        "abs_stepsize": 1.0,
        "random_start": True,
        "rel_stepsize": 0.01 / 0.3,
        "steps": 7,
    }
    assert Foolbox.from_params(**json.loads(json.dumps(asdict(attack)))) == attack
    assert hash(attack) == hash(Foolbox.from_params(**asdict(attack)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "no foolbox attack None is mapped.*valid: DDNAttack"),
        ({"attack": "L0FMNAtack"}, "'L0FMNAtack' is mapped: did you mean 'L0FMNAttack'"),
        ({"attack": "L1FMNAttack"}, "did you mean"),
        ({"attack": "L0FMNAttack", "step": 3}, "no parameter 'step': did you mean 'steps'"),
        ({"attack": "L0FMNAttack", "steps": 0}, "steps .*integer of at least 1, got 0"),
        ({"attack": "L0FMNAttack", "steps": 2.5}, "integer of at least 1, got 2.5"),
        ({"attack": "L0FMNAttack", "gamma": "a"}, "gamma .* finite number.*got 'a'"),
        ({"attack": "L0FMNAttack", "eps": 0.1}, "minimum norm: leave out eps, got 0.1"),
        ({"attack": "LinfPGD"}, "needs eps.*got None"),
        ({"attack": "LinfPGD", "eps": -1}, "needs eps.*got -1"),
        ({"attack": "LinfPGD", "eps": 0.1, "random_start": 1}, "true or false, got 1"),
        ({"attack": "LinfPGD", "eps": 0.1, "chunk": 0}, "chunk must be .* got 0"),
        ({"attack": "LinfPGD", "eps": 0.1, "adaptive": "no"}, "adaptive must be true or false"),
        ({"attack": "L2DeepFoolAttack", "targets": "all"}, "cannot reach.*got 'all'"),
        ({"attack": "L2DeepFoolAttack", "targets": "most"}, "targets must be one of.*'most'"),
        ({"attack": "L2DeepFoolAttack", "loss": "ce"}, "'logits' or 'crossentropy', got 'ce'"),
        ({"attack": "L2DeepFoolAttack", "candidates": 1}, "at least 2, got 1"),
        ({"attack": "DDNAttack", "params": 3}, "must be a table, got 3"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Foolbox.from_params(**params)


def test_without_foolbox_cells_are_skipped_and_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack = Foolbox("L0FMNAttack")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert attack.unavailable() == "foolbox is not installed: pip install 'retort-bench[peers]'"
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(UserError, match="missing or broken: pip install") as caught:
        adapter.load()
    assert "\n" not in str(caught.value)


def test_where_foolbox_is_installed_it_runs(task: Task) -> None:
    assert Foolbox("L0FMNAttack").unavailable() is None
