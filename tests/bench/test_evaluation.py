"""Three lines for a researcher with a trained network."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import bench
from bench.results.collect import METRICS


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    """Logits are five times the first four of eight inputs: all is known in closed form."""
    model = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4, 8) * 5)
    return model


X = torch.eye(4, 8).repeat(5, 1) * 0.5 + 0.2
Y = torch.arange(20) % 4
JSMA = bench.Spec("jsma", {"gamma": 0.25})


def test_a_table_with_the_columns_of_a_run(linear: nn.Module) -> None:
    table = bench.evaluate(linear, X, Y, attacks=[JSMA, "fgsm"])
    assert isinstance(table, pd.DataFrame)
    assert table["attack"].tolist() == ["jsma", "fgsm"]
    assert set(METRICS) <= set(table.columns)
    assert table["accuracy"].tolist() == [1.0, 1.0]
    # Raising the target's own input (and an idle one) to 1 makes the target win; FGSM at 0.1
    # closes 0.2 of a gap of 0.5.
    assert table["success_rate"].tolist() == [1.0, 0.0]
    assert table.loc[0, "success_low"] > 0.8
    assert table.loc[1, "robust_accuracy"] == 1.0


def test_an_instance_needs_no_registry(linear: nn.Module) -> None:
    @dataclass(frozen=True)
    class Swap(bench.Attack):
        """Rotates the features that count."""

        def threat(self, shape: tuple[int, ...]) -> bench.ThreatModel:
            return bench.ThreatModel("linf", 1.0)

        def perturb(self, model, x, y, target, context) -> bench.Perturbation:
            return bench.Perturbation(x[:, [3, 0, 1, 2, 4, 5, 6, 7]])

    table = bench.evaluate(linear, X.numpy(), Y.numpy(), attacks=[Swap()])
    assert table["attack"].tolist() == ["Swap"]
    assert table["success_rate"].tolist() == [1.0]


def test_the_model_is_left_as_it_was(linear: nn.Module) -> None:
    linear.train()
    bench.evaluate(linear, X, Y, attacks=[JSMA])
    assert linear.training
    assert linear.weight.requires_grad
    assert linear.weight.grad is None


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 3, Y, r"x must lie in \[0, 1\]"),
        (X * float("nan"), Y, r"x must lie in \[0, 1\]"),
        (X, Y[:3], "y must be"),
        (X, Y.float(), "y must be"),
        (X, Y + 2, "labels in"),
        (X[:0], Y[:0], "no rows"),
        (Y.float() / 9, X, "exchanged"),
    ],
)
def test_inputs_that_cannot_be_used(linear: nn.Module, x, y, message: str) -> None:
    with pytest.raises(bench.UserError, match=message):
        bench.evaluate(linear, x, y)


def test_an_unknown_attack_gets_the_nearest(linear: nn.Module) -> None:
    with pytest.raises(bench.UserError, match="did you mean 'jsma'"):
        bench.evaluate(linear, X, Y, attacks=["jsmaa"])


def test_a_mistake_is_said_before_anything_is_measured(linear: nn.Module) -> None:
    asked = []
    linear.register_forward_hook(lambda *_: asked.append(1))
    with pytest.raises(bench.UserError, match="did you mean 'jsma'"):
        bench.evaluate(linear, X, Y, attacks=["fgsm", "jsmaa"])
    with pytest.raises(bench.UserError, match="must be a name or a table with a name"):
        bench.evaluate(linear, X, Y, attacks=[{"eps": 0.1}])
    wrong: list[dict[str, Any]] = [{"sources": value} for value in (-3, "ten", 10.5, True)]
    for given in [*wrong, {"expect_accuracy": 84}, {"attacks": []}]:
        what = {"sources": "whole number from 1", "expect_accuracy": "0.84 for 84 %"}
        message = what.get(next(iter(given)), "no attack was named")
        with pytest.raises(bench.UserError, match=message):
            bench.evaluate(linear, X, Y, **{"attacks": "fgsm", **given})
    assert not asked


def test_one_attack_needs_no_list(linear: nn.Module) -> None:
    assert list(bench.evaluate(linear, X, Y, attacks="fgsm")["attack"]) == ["fgsm"]
    table = {"name": "fgsm", "eps": 0.07}
    for attacks in (table, [table], [bench.Spec("fgsm", {"eps": 0.07})]):
        (found,) = bench.evaluate(linear, X, Y, attacks=attacks)["attack_params"]
        assert found["eps"] == 0.07


def test_a_model_that_returns_no_logits(linear: nn.Module) -> None:
    with pytest.raises(bench.UserError, match="must return logits"):
        bench.evaluate(nn.Flatten(0), X, Y)


def test_double_arrays_are_taken(linear: nn.Module) -> None:
    table = bench.evaluate(linear, X.numpy().astype(np.float64), list(Y), attacks=["fgsm"])
    assert table.loc[0, "sources"] == 20


def test_a_program_takes_no_hooks_and_is_asked_all_the_same(linear: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript itself is deprecated
        fresh = nn.Linear(8, 4, bias=False)  # without the hooks of others
        fresh.load_state_dict(linear.state_dict())
        program = torch.jit.script(fresh)
    plain, script = (
        bench.evaluate(model, X, Y, "pgd", sources="all") for model in (fresh, program)
    )
    assert plain["success_rate"].tolist() == script["success_rate"].tolist()


def test_numpy_inside_is_no_gradient(linear: nn.Module) -> None:
    class Inside(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return linear(torch.from_numpy(x.numpy()))

    with pytest.raises(bench.UserError, match="the model's answer has none"):
        bench.evaluate(Inside(), X, Y, "pgd")


def test_a_warning_is_located_where_evaluate_was_called(linear: nn.Module) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench.evaluate(linear, (X * 3).round().to(torch.uint8), Y, "fgsm")
    assert {Path(warning.filename).name for warning in caught} == {"test_evaluation.py"}
    assert any("goes up to 2 only" in str(warning.message) for warning in caught)
