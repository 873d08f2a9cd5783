"""The suite finds each fault that it is for, says how to mend it, and passes every built-in."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench import conformance
from bench.base.types import UserError
from bench.cli import app
from bench.conformance import Check, check_attack, check_defense, check_plugins, tiny_data
from bench.conformance.advice import ADVICE
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.parameter import ZOOS

CHECKERS: dict[str, Callable[..., list[Check]]] = {
    "defenses": check_defense,
    "attacks": check_attack,
    "networks": conformance.check_network,
    "datasets": conformance.check_dataset,
}
HEADER = '''"""Plugins, each with one fault."""
from dataclasses import dataclass
from typing import Any
import random
import torch
from torch import nn
import bench

class Sum(nn.Module):
    """Logits from the network inside, changed by a function."""
    def __init__(self, inner, change):
        super().__init__()
        self.inner = inner
        self.change = change
    def forward(self, x):
        return self.change(self.inner, x)

def trained(self, model, train, context):
    context.train(model, train.x, train.y)

class Attack(bench.Attack):
    """An L-infinity attack."""
    def threat(self, shape):
        return bench.ThreatModel("linf", 0.1)

def step(model, x, y, eps=0.1):
    x = x.detach().clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(x), y)
    (g,) = torch.autograd.grad(loss, x)
    return (x.detach() + eps * g.sign()).clamp(0, 1)

def add(x):
    x += 1
    return x

'''
DEFENSES = {
    "contract": "class Bad(bench.Defense):\n    '''It has amount.'''\n    amount: float = 1.0",
    "documentation": "class Bad(bench.Defense):\n    '''Nothing.'''\n    amount: float = 1.0",
    "parameters": (
        "class Bad(bench.Defense):\n    '''amount.'''\n    amount: float = -1.0\n"
        "    def __post_init__(self):\n        if self.amount < 0: raise ValueError('no')"
    ),
    "round trip": (
        "class Bad(bench.Defense):\n    '''shift.'''\n    shift: float = 1.0\n"
        "    def __post_init__(self): object.__setattr__(self, 'shift', self.shift + 1)"
    ),
    "fit": (
        "class Bad(bench.Defense):\n    '''Text.'''\n"
        "    def fit(self, model, train, context): raise RuntimeError('no luck')"
    ),
    "training data": (
        "class Bad(bench.Defense):\n    '''Text.'''\n"
        "    def fit(self, model, train, context): train.x.mul_(0.999)"
    ),
    "logits": (
        "class Bad(bench.Defense):\n    '''Text.'''\n    def build(self, context):\n"
        "        return Sum(context.network(), lambda f, x: f(x).softmax(1))"
    ),
    "forward": (
        "class Bad(bench.Defense):\n    '''Text.'''\n    def build(self, context):\n"
        "        return Sum(context.network(), lambda f, x: f(x.mul_(0.5)))"
    ),
    "repeated query": (
        "class Bad(bench.Defense):\n    '''Text.'''\n    def build(self, context):\n"
        "        return Sum(context.network(), lambda f, x: f(x + torch.rand_like(x)))"
    ),
    "batch independence": (
        "class Bad(bench.Defense):\n    '''Text.'''\n    def build(self, context):\n"
        "        return Sum(context.network(), lambda f, x: f(x - x.mean(0)))"
    ),
    "same fit": (
        "class Bad(bench.Defense):\n    '''Text.'''\n"
        "    def fit(self, model, train, context): model[-1].bias.data += random.random()"
    ),
    "rebuild": (
        "class Bad(bench.Defense):\n    '''Text.'''\n    def build(self, context):\n"
        "        return Sum(context.network(), lambda f, x: f(x))\n"
        "    def fit(self, model, train, context):\n"
        "        model.change = lambda f, x: 3 * f(x)"
    ),
    "gradients": (
        "class Bad(bench.Defense):\n    '''Text.'''\n    def build(self, context):\n"
        "        return Sum(context.network(), lambda f, x: f((4 * x).round() / 4))"
    ),
}
PERTURB = "    def perturb(self, model, x, y, target, context):\n        return bench.Perturbation("
ATTACKS = {
    "threat model": "    targets = 'everyone'\n" + PERTURB + "x)",
    "requirements": "    def requires(self): return {'a': bench.Spec('none')}\n" + PERTURB + "x)",
    "output": PERTURB + "x[:, :, 1:])",
    "box": PERTURB + "x + 0.1 * torch.sign(x - 0.6) * 9)",
    "budget": PERTURB + "step(model, x, y, 0.3))",
    "effect": PERTURB + "x)",
    "access": "    access = 'scores'\n" + PERTURB + "step(model, x, y))",
    "same output": (
        "    def perturb(self, model, x, y, target, context):\n"
        "        generator = torch.Generator().manual_seed(random.SystemRandom().randrange(9**9))\n"
        "        noise = torch.rand(x.shape, generator=generator)\n"
        "        return bench.Perturbation((x + 0.1 * noise).clamp(0, 1))"
    ),
    "a single row": (
        "    def perturb(self, model, x, y, target, context):\n"
        "        if len(x) == 1: raise IndexError('one')\n"
        "        return bench.Perturbation(step(model, x, y))"
    ),
    "side effects": PERTURB + "step(model.train(), x, y))",
}  # fmt: skip


def failures(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.failed]


def check_source(path: Path, text: str) -> list[Check]:
    path.write_text(HEADER + text)
    return check_plugins(str(path))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    doors.load_plugins()
    for found in registry.REGISTRIES.values():
        monkeypatch.setattr(found, "_entries", dict(found._entries))
        monkeypatch.setattr(found, "_classes", dict(found._classes))


@pytest.mark.parametrize("fault", DEFENSES)
def test_a_defense_with_one_fault_fails_that_check(fault: str, tmp_path: Path) -> None:
    decorated = "" if fault == "contract" else "@dataclass(frozen=True)\n"
    text = f"@bench.defense('bad')\n{decorated}{DEFENSES[fault]}\n"
    if "def fit" not in text and fault not in ("contract", "documentation"):
        text += "    fit = trained\n"
    checks = check_source(tmp_path / "bad defense.py", text)
    assert failures(checks)[0] == fault, [str(check) for check in checks]
    if fault not in ("contract", "repeated query", "batch independence"):
        assert failures(checks) == [fault], [str(check) for check in checks]
    shown = str(next(check for check in checks if check.failed))
    assert shown.startswith(f"FAILED  defense bad: {fault}: ")
    assert f"; to mend it: {ADVICE[fault]}" in shown


@pytest.mark.parametrize("fault", ATTACKS)
def test_an_attack_with_one_fault_fails_that_check(fault: str, tmp_path: Path) -> None:
    text = (
        "@bench.attack('bad')\n@dataclass(frozen=True)\nclass Bad(Attack):\n"
        f"    '''Text.'''\n{ATTACKS[fault]}\n"
    )
    checks = check_source(tmp_path / "bad_attack.py", text)
    expected = ["box", "budget"] if fault == "box" else [fault]
    assert failures(checks) == expected, [str(check) for check in checks]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("x.add_(0.01).clamp_(0, 1)", "changes x"),
        ("y.zero_()", "changes y"),
        ("[p.data.mul_(1.01) for p in model.parameters()]", "weights"),
        ("model(x).sum().backward()", r"gradients \(.grad\)"),
        ("model.requires_grad_(False)", "requires_grad"),
        ("model.register_forward_hook(lambda *a: None)", "hooks"),
    ],
)
def test_every_side_effect_is_found(line: str, what: str, tmp_path: Path) -> None:
    text = (
        "@bench.attack('bad')\n@dataclass(frozen=True)\nclass Bad(Attack):\n    '''Text.'''\n"
        "    def perturb(self, model, x, y, target, context):\n"
        f"        result = step(model, x, y, 0.05)\n        {line}\n"
        "        return bench.Perturbation(result)\n"
    )
    (found,) = [c for c in check_source(tmp_path / "bad.py", text) if c.name == "side effects"]
    assert found.failed
    assert what.replace("\\", "") in found.problem


def test_what_is_declared_is_no_fault(tmp_path: Path) -> None:
    text = (
        "@bench.defense('rounded')\n@dataclass(frozen=True)\nclass Rounded(bench.Defense):\n"
        "    '''Text.'''\n    stochastic = True\n    differentiable = False\n    fit = trained\n"
        "    def build(self, context):\n        return Sum(context.network(),"
        " lambda f, x: f((4 * x + 0.1 * torch.rand_like(x)).round() / 4))\n"
    )
    checks = check_source(tmp_path / "rounded.py", text)
    assert checks
    assert failures(checks) == []


def test_missing_parameters_are_named_and_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "needs.py"
    path.write_text(
        HEADER + "@bench.defense('needs')\n@dataclass(frozen=True)\nclass Needs(bench.Defense):\n"
        "    '''It has an amount.'''\n    amount: float\n    fit = trained\n"
    )
    (*_, last) = check_plugins(str(path))
    assert last.status == "not checked"
    assert "it needs amount: give amount with --param NAME=VALUE" in last.problem
    checks = check_plugins(str(path), {"amount": 2.0})
    assert {check.status for check in checks} == {"ok"}
    assert len(checks) == 14


def test_a_class_that_nobody_registered_is_checked_too() -> None:
    from tests.plugin_package.retort_example.defense import GaussianNoise

    assert failures(check_defense(GaussianNoise)) == []
    assert failures(check_defense(GaussianNoise(0.3))) == []
    assert failures(check_defense(GaussianNoise, {"sigma": -1.0})) == ["parameters"]


WRONG = {
    # The museum: they hide their gradients and say nothing of it, as their papers did.
    "input_transformation": "zero everywhere",
    "generative_projection": "zero everywhere",
    # So does this one, and a few images are too few to learn its codes.
    "thermometer_encoding": "training collapsed",
    # Or to learn to draw them.
    "magnet": "training collapsed",
}
"""What the suite says of built-in defenses that are wrong on purpose, or need more data."""


@pytest.mark.parametrize("kind", CHECKERS)
def test_every_built_in_passes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torchvision

    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))

    data = tiny_data()
    save_file(conformance.tiny_model(data).state_dict(), tmp_path / "w.safetensors")
    x_adv = (data.test.x[:8] + 0.1).clamp(0, 1)
    save_file({"x_adv": x_adv, "sample_ids": torch.arange(8)}, tmp_path / "adv.safetensors")
    parts = {"train": data.train, "test": data.test}
    arrays = {f"x_{name}": part.x.numpy() for name, part in parts.items()}
    arrays |= {f"y_{name}": part.y.numpy() for name, part in parts.items()}
    np.savez(tmp_path / "mine.npz", **arrays)
    for row in range(4):
        (tmp_path / "photos" / str(row % 2)).mkdir(parents=True, exist_ok=True)
        image = torchvision.transforms.functional.to_pil_image(data.test.x[row])
        image.save(tmp_path / "photos" / str(row % 2) / f"{row}.png")
    params: dict[str, dict[str, Any]] = {
        "image-folder": {"path": str(tmp_path / "photos")},
        "wideresnet-28-10": {"depth": 10, "width": 1},
        "adaptive": {"of": "output_codes"},
        "ensemble_diversity": {"members": 2},
        "art": {"attack": "DeepFool"},
        "arrays": {"path": str(tmp_path / "mine.npz")},
        "carlini_wagner": {"steps": 20, "searches": 6},
        "checkpoint": {"weights": str(tmp_path / "w.safetensors")},
        "foolbox": {"attack": "LInfFMNAttack", "steps": 20},
        "jsma_reference": {"gamma": 0.01},
        "sigma_zero": {"steps": 30},
        "sparse_rs": {"queries": 50},
        "submission": {
            "inputs": str(tmp_path / "adv.safetensors"), "norm": "linf", "budget": 0.11,
        },
        "torchattacks_jsma": {"gamma": 1 / 64},  # it goes over a budget that is no whole pair
    }  # fmt: skip
    for name in importlib.import_module(doors.BUILT_IN[kind]).INDEX:
        if kind == "networks" and name in ZOOS:
            continue  # a package of its own, and images of three channels
        checks = CHECKERS[kind](name, params.get(name))
        failed = [str(check) for check in checks if check.failed]
        if name in WRONG:
            assert len(failed) == 1
            assert WRONG[name] in failed[0]
            continue
        assert failed == []
        skipped = [check for check in checks if check.status == "not checked"]
        downloads = {"mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"}
        allowed = {*downloads, "foolbox", "live", "torchattacks_jsma"}
        assert not skipped or name in allowed, skipped


def invoke(*args: str) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["check", *args])


def test_the_command_prints_one_line_a_check_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "my plugins.py").write_text(
        HEADER + "@bench.defense('good')\n@dataclass(frozen=True)\nclass Good(bench.Defense):\n"
        "    '''It trains \\x1b[31m.'''\n    fit = trained\n"
        "@bench.attack('bad')\n@dataclass(frozen=True)\nclass Bad(Attack):\n    '''Text.'''\n"
        "    def perturb(self, model, x, y, target, context):\n"
        "        raise ValueError('broken \\x1b[31m\\nin two lines')\n"
    )
    done = invoke(str(tmp_path / "my plugins.py"))
    assert done.exit_code == 1, done.stderr
    lines = done.stdout.splitlines()
    assert "ok      defense good: rebuild" in lines
    (failed,) = [line for line in lines if line.startswith("FAILED")]
    assert "attack bad: output: raises ValueError: broken \\x1b[31m in two lines" in failed
    assert lines[-1].endswith("checks, 1 failed")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", "registers nothing"), ("1 +", "SyntaxError"), (None, "does not exist")],
)
def test_nothing_to_check_is_a_mistake(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "nothing.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        check_plugins(str(path))


def test_the_command_exits_2_where_there_is_nothing_to_check(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("x = 1\n")
    done = invoke(str(tmp_path / "nothing.py"))
    assert done.exit_code == 2
    assert "registers nothing" in done.stderr
