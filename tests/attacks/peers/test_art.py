"""The ART adapter: labels, targets, norms, seeds, and a model that is left as it was."""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.peers.art import Art
from attacks.peers.art_table import MAPPED, REFUSED
from bench.base.types import DataInfo, ThreatModel, UserError
from bench.plugins.contracts import AttackContext

INFO = DataInfo("digits", (1, 8, 8), 10, (0.3,), (0.37,))
CONTEXT = AttackContext(INFO, seed=3)
L2 = {"threat_norm": "l2"}

# Parameters with which each class is quick and strong enough to reach its goal on most rows.
QUICK: dict[str, dict[str, Any]] = {
    "AutoAttack": {"eps": 0.3},
    "AutoConjugateGradient": {"eps": 0.3, "max_iter": 60, "nb_random_init": 1},
    "AutoProjectedGradientDescent": {"eps": 0.3, "max_iter": 10, "nb_random_init": 1},
    "BasicIterativeMethod": {"eps": 0.3, "max_iter": 10},
    "BoundaryAttack": {"max_iter": 20, "init_size": 300},
    "CarliniL0Method": {"learning_rate": 0.1, "binary_search_steps": 3, "initial_const": 10},
    "CarliniL2Method": {"learning_rate": 0.1, "binary_search_steps": 4, "initial_const": 1},
    "CarliniLInfMethod": {"learning_rate": 0.1, "initial_const": 0.1, "const_factor": 4},
    "DeepFool": {},
    "ElasticNet": {"learning_rate": 0.05, "binary_search_steps": 4, "max_iter": 30},
    "FastGradientMethod": {"eps": 0.3},
    "HopSkipJump": {"max_iter": 2, "max_eval": 100, "init_eval": 20, "init_size": 300},
    "MomentumIterativeMethod": {"eps": 0.3, "max_iter": 10},
    "NewtonFool": {"eta": 1.0, "max_iter": 200},
    "PixelAttack": {"th": 6, "max_iter": 20},
    "ProjectedGradientDescent": {"eps": 0.3, "max_iter": 10},
    "ProjectedGradientDescentNumpy": {"eps": 2.0, "norm": 2, "eps_step": 0.5, "max_iter": 10},
    "ProjectedGradientDescentPyTorch": {"eps": 0.3, "max_iter": 10},
    "RescalingAutoConjugateGradient": {"eps": 0.3, "max_iter": 60, "nb_random_init": 1},
    "SaliencyMapMethod": {"theta": 1, "gamma": 0.25},
    "ShadowAttack": {"nb_steps": 40, "batch_size": 10, "lambda_tv": 0.01, "lambda_c": 0.01} | L2,
    "SignOPTAttack": {"max_iter": 5, "k": 10, "num_trial": 10},
    "SimBA": {"epsilon": 0.5, "max_iter": 200},
    "SpatialTransformation": {"max_rotation": 60, "num_rotations": 5} | L2,
    "SquareAttack": {"eps": 0.3, "max_iter": 60},
    "TargetedUniversalPerturbation": {"eps": 6, "norm": 2, "max_iter": 3},
    "ThresholdAttack": {"th": 80, "max_iter": 5},
    "UniversalPerturbation": {"attacker": "fgsm", "attacker_params": {"eps": 0.6}, "eps": 0.6},
    "VirtualAdversarialMethod": {"eps": 4, "max_iter": 2, "finite_diff": 0.01},
    "Wasserstein": {"eps": 3, "regularization": 50, "kernel_size": 3, "max_iter": 20} | L2,
    "ZooAttack": {
        "use_resize": False,
        "use_importance": False,
        "nb_parallel": 64,
        "initial_const": 10,
        "learning_rate": 0.1,
        "max_iter": 40,
    },
}
RUNS = [(name, goal) for name, row in MAPPED.items() for goal in row.goals]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a trained network, six correctly classified rows, labels, and runner-up classes."""
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        rows = (model(x).argmax(1) == y).nonzero()[:6, 0]
        target = model(x[rows]).topk(2).indices[:, 1]
    return model, x[rows], y[rows], target


def make(name: str, goal: str = "untargeted", **params: Any) -> Art:
    """Return the plugin with quick parameters."""
    if (package := MAPPED[name].needs) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    targets = "untargeted" if goal == "untargeted" else "runner-up"
    return Art.from_params(attack=name, targets=targets, **QUICK[name] | params)


@pytest.mark.parametrize(("name", "goal"), RUNS)
def test_every_mapped_class_reaches_its_goal_and_repeats(
    name: str, goal: str, trained: tuple[nn.Module, Tensor, Tensor, Tensor]
) -> None:
    model, x, y, target = trained
    if name == "TargetedUniversalPerturbation":  # one perturbation for all rows, one target
        target = torch.full_like(y, 8)
    attack = make(name, goal)
    wanted = None if goal == "untargeted" else target
    x_adv = attack.perturb(model, x, y, wanted, CONTEXT).x_adv
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    predicted = model(x_adv).argmax(1)
    reached = predicted != y if wanted is None else predicted == wanted
    random_start = name in ("BoundaryAttack", "HopSkipJump") and goal == "targeted"
    assert reached.float().mean() >= (0.3 if random_start else 0.6)
    assert torch.equal(x_adv, attack.perturb(model, x, y, wanted, CONTEXT).x_adv)
    threat = attack.threat(INFO.shape)
    sizes = {
        "l0": (x_adv != x).flatten(1).float().mean(1),
        "l2": (x_adv - x).flatten(1).norm(dim=1),
        "linf": (x_adv - x).flatten(1).abs().amax(1),
    }
    # ThresholdAttack truncates to whole levels, which may overshoot by less than one of them.
    slack = 1 / 255 if name == "ThresholdAttack" else 1e-5
    assert threat.budget is None or sizes[threat.norm].max() <= threat.budget + slack


def test_the_table_is_whole() -> None:
    evasion = importlib.import_module("art.attacks.evasion")
    classes = {n for n, c in vars(evasion).items() if isinstance(c, type)}
    assert "DeepFool" in classes
    assert classes <= MAPPED.keys() | REFUSED.keys()
    assert not MAPPED.keys() & REFUSED.keys()
    assert QUICK.keys() == MAPPED.keys()


def test_jsma_takes_the_target_and_never_the_label(
    trained: tuple[nn.Module, Tensor, Tensor, Tensor],
) -> None:
    model, x, y, target = trained
    attack = make("SaliencyMapMethod", "targeted")
    x_adv = attack.perturb(model, x, y, target, CONTEXT).x_adv
    assert (model(x_adv).argmax(1) == target).all()
    # Given the label, ART's class has reached its goal before it starts.
    assert torch.equal(attack.perturb(model, x, y, y, CONTEXT).x_adv, x)
    with pytest.raises(UserError, match=r"cannot make untargeted attempts.*'all', 'random'"):
        make("SaliencyMapMethod", "untargeted")


def test_jsma_overshoots_gamma_by_up_to_a_pair_and_we_do_not_hide_it(
    trained: tuple[nn.Module, Tensor, Tensor, Tensor],
) -> None:
    model, x, y, target = trained
    attack = make("SaliencyMapMethod", "targeted", gamma=0.05)  # 3.2 of 64 features
    changed = (attack.perturb(model, x, y, target, CONTEXT).x_adv != x).flatten(1).sum(1)
    assert attack.threat(INFO.shape).budget == 0.05
    assert changed.max() == 4


def test_rows_that_the_model_misclassifies_stay_where_a_class_ignores_labels(
    trained: tuple[nn.Module, Tensor, Tensor, Tensor],
) -> None:
    model, x, y, _ = trained
    wrong = torch.arange(len(y)) % 2 == 0
    labels = torch.where(wrong, (y + 1) % 10, y)
    x_adv = make("DeepFool").perturb(model, x, labels, None, CONTEXT).x_adv
    moved = (x_adv != x).flatten(1).any(1)
    assert moved.tolist() == (~wrong).tolist()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["FastGradientMethod", "DeepFool", "HopSkipJump"])
def test_model_and_generators_are_left_as_they_were(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))
    model.train(training)
    model[2].bias.requires_grad_(False)
    model[2].weight.grad = torch.full((10, 64), 7.0)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    before, attack = x.clone(), make(name)
    np.random.seed(5)
    random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), random.random(), torch.rand(1)
    np.random.seed(5)
    random.seed(5)
    torch.manual_seed(5)
    calls: list[bool] = []
    model.register_forward_hook(lambda module, *_: calls.append(module.training))
    attack.perturb(model, x, y, None, AttackContext(INFO, seed=1))
    assert (np.random.rand(), random.random(), torch.rand(1)) == expected
    assert calls
    assert set(calls) == {training}  # the hooks of a Sequential are called, in its own mode
    assert [m.training for m in model.modules()] == [training] * 4
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert torch.equal(model[2].weight.grad, torch.full((10, 64), 7.0))
    assert model[2].bias.grad is None
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, before)


def test_seed_decides_what_is_random(trained: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    model, x, y, _ = trained
    attack = make("HopSkipJump")  # draws from a generator of its own, which ART leaves unseeded
    runs = [attack.perturb(model, x, y, None, AttackContext(INFO, s)).x_adv for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_row_does_not_depend_on_its_neighbours(
    trained: tuple[nn.Module, Tensor, Tensor, Tensor],
) -> None:
    model, x, y, _ = trained
    attack = make("ProjectedGradientDescentPyTorch")
    whole = attack.perturb(model, x, y, None, CONTEXT).x_adv
    single = attack.perturb(model, x[2:3], y[2:3], None, CONTEXT).x_adv
    assert torch.allclose(whole[2:3], single, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("FastGradientMethod", {"eps": 0.1}, ThreatModel("linf", 0.1)),
        ("FastGradientMethod", {"eps": 1, "norm": 2.0}, ThreatModel("l2", 1.0)),
        ("HopSkipJump", {"norm": "inf"}, ThreatModel("linf")),
        ("CarliniL2Method", {}, ThreatModel("l2")),
        ("CarliniL0Method", {}, ThreatModel("l0", None, "features")),
        ("PixelAttack", {"th": 16}, ThreatModel("l0", 0.25, "pixels")),
        ("PixelAttack", {}, ThreatModel("l0", None, "pixels")),
        ("ThresholdAttack", {"th": 51}, ThreatModel("linf", 0.2)),
        (
            "SpatialTransformation",
            {"threat_norm": "l0", "threat_budget": 0.5, "threat_unit": "pixels"},
            ThreatModel("l0", 0.5, "pixels"),
        ),
    ],
)
def test_threat_model(name: str, params: dict[str, Any], expected: ThreatModel) -> None:
    assert Art.from_params(attack=name, **params).threat((3, 8, 8)) == expected


def test_parameters_are_complete_json_and_make_the_same_attack_again() -> None:
    attack = Art.from_params(attack="ProjectedGradientDescent", eps=1, norm=float("inf"))
    assert attack.params == {
        "batch_size": 128,
        "decay": None,
        "eps": 1.0,
        "eps_step": 0.1,
        "max_iter": 100,
        "norm": "inf",
        "num_random_init": 0,
        "random_eps": False,
    }
    assert Art.from_params(**json.loads(json.dumps(asdict(attack)))) == attack
    assert hash(attack) == hash(Art.from_params(**asdict(attack)))
    pixels = Art.from_params(attack="SimBA", params={"attack": "px"})
    assert (pixels.params["attack"], pixels.access) == ("px", "scores")
    assert attack.access == "gradients"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "needs the name of an ART class.*DeepFool"),
        ({"attack": "FastGradientMethd"}, "'FastGradientMethd'; did you mean 'FastGradientMethod'"),
        ({"attack": "RobustDPatch"}, "not mapped: it needs an object detector; mapped are Auto"),
        ({"attack": "LowProFool"}, "a matrix file cannot hold"),
        ({"attack": "BasicIterativeMethod", "epz": 1}, "'epz'.*did you mean 'eps'.*max_iter"),
        ({"attack": "DeepFool", "verbose": True}, "'verbose' of ART's DeepFool is set by"),
        ({"attack": "FastGradientMethod", "targeted": True}, "use targets"),
        ({"attack": "FastGradientMethod", "eps": -1.0}, "budget must be positive.*-1.0"),
        ({"attack": "FastGradientMethod", "eps_step": 0}, "refuses its parameters: .*eps_step"),
        ({"attack": "FastGradientMethod", "norm": 1}, "norm = 1 .*expected inf or 2"),
        ({"attack": "ElasticNet", "decision_rule": "L1"}, "no threat model is l1"),
        ({"attack": "ThresholdAttack", "es": 0}, "CMA-ES"),
        ({"attack": "DeepFool", "targets": "all"}, "cannot make targeted attempts, got.*'all'"),
        ({"attack": "CarliniLInfMethod", "targets": "random"}, "cannot make targeted"),
        ({"attack": "DeepFool", "targets": "most"}, "targets must be one of.*'most'"),
        ({"attack": "SpatialTransformation"}, "give threat_norm"),
        ({"attack": "DeepFool", "threat_norm": "l2"}, "a norm of its own"),
        ({"attack": "Wasserstein", "threat_norm": "l1"}, "threat_norm must be one of.*'l1'"),
        ({"attack": "DeepFool", "params": 3}, "must be a table, got 3"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Art.from_params(**params)


def test_missing_art_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
    with pytest.raises(UserError, match="pip install adversarial-robustness-toolbox") as caught:
        Art.from_params(attack="DeepFool")
    assert "\n" not in str(caught.value)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="AutoAttack needs 'multiprocess': pip install"):
        Art.from_params(attack="AutoAttack")


def test_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], trained: tuple[nn.Module, Tensor, Tensor, Tensor]
) -> None:
    model, x, y, target = trained
    for name, params in {
        "UniversalPerturbation": {"attacker": "deepfool", "attacker_params": {}},
        "SaliencyMapMethod": {},
    }.items():
        goal = MAPPED[name].goals[0]
        wanted = None if goal == "untargeted" else target
        make(name, goal, **params).perturb(
            model, x[:2], y[:2], wanted if wanted is None else wanted[:2], CONTEXT
        )
    assert capfd.readouterr() == ("", "")
