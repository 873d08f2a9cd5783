"""FGSM against its closed form on a linear model, and where float32 cancels."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.fgsm import FGSM, LogOddsLoss
from bench.base.types import DataInfo, ThreatModel
from bench.plugins.contracts import AttackContext

INFO = DataInfo("linear", (7,), 4, (0.5,), (0.3,))
CONTEXT = AttackContext(INFO)


def linear(seed: int, scale: float = 1.0) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """Return a linear softmax model, inputs, the classes it predicts, and other classes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(7, 4)
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(4, 7, generator=generator))
        model.bias.copy_(scale * torch.randn(4, generator=generator))
        x = torch.rand(5, 7, generator=generator)
        y = model(x).argmax(1)
    return model, x, y, (y + 1 + torch.arange(5) % 3) % 4


def step(gradient: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """Return the clipped step of length ``eps`` along ``gradient``."""
    length = gradient.norm(dim=1, keepdim=True)
    direction = gradient.sign() if norm == "linf" else gradient / length
    return (x + eps * direction).clamp(0, 1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1.0))
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_closed_form_on_a_linear_model(
    norm: Literal["linf", "l2"], targeted: bool, seed: int, eps: float
) -> None:
    model, x, y, target = linear(seed)
    wanted = target if targeted else y
    with torch.no_grad():
        # Cross-entropy of class c: the gradient is the sum over j of (F_j - [j = c]) w_j.
        residual = model(x).softmax(1) - nn.functional.one_hot(wanted, 4)
        gradient = residual @ model.weight * (-1 if targeted else 1)
        expected = step(gradient, x, eps, norm)
    result = FGSM(eps, norm).perturb(model, x, y, target if targeted else None, CONTEXT)
    assert torch.allclose(result.x_adv, expected, atol=1e-5)
    assert result.iterations is not None
    assert result.iterations.tolist() == [1] * 5
    lengths = (result.x_adv - x).norm(torch.inf if norm == "linf" else 2, dim=1)
    assert lengths.max() <= eps + 1e-6
    assert result.x_adv.min() >= -1e-6
    assert result.x_adv.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_log_odds_is_the_cross_entropy_step_where_nothing_cancels(
    norm: Literal["linf", "l2"], targeted: bool
) -> None:
    model, x, y, target = linear(1)
    wanted = target if targeted else None
    deployed = FGSM(0.2, norm).perturb(model, x, y, wanted, CONTEXT).x_adv
    log_odds = FGSM(0.2, norm, output="log_odds").perturb(model, x, y, wanted, CONTEXT).x_adv
    assert torch.allclose(deployed, log_odds, atol=1e-5)
    assert not torch.equal(deployed, x)


def test_log_odds_survives_the_cancellation_that_stops_the_deployed_output() -> None:
    model, x, y, _ = linear(2, scale=1000.0)
    plain, _, _, _ = linear(2)
    gap = model(x).topk(2).values
    assert (gap[:, 0] - gap[:, 1]).min() > 40
    assert torch.equal(FGSM(0.2).perturb(model, x, y, None, CONTEXT).x_adv, x)
    x_adv = FGSM(0.2, output="log_odds").perturb(model, x, y, None, CONTEXT).x_adv
    assert (x_adv != x).any(1).all()
    # Scaled up, the other classes' softmax is one-hot: the step is along w_runner-up - w_y.
    runner_up = plain(x).topk(2).indices[:, 1]
    with torch.no_grad():
        expected = step(plain.weight[runner_up] - plain.weight[y], x, 0.2, "linf")
    assert torch.allclose(x_adv, expected, atol=1e-5)


def test_targeted_log_odds_raises_the_target() -> None:
    model, x, y, target = linear(3, scale=1000.0)
    x_adv = FGSM(0.1, output="log_odds").perturb(model, x, y, target, CONTEXT).x_adv

    def odds(inputs: Tensor) -> Tensor:
        loss: Tensor = LogOddsLoss()(model(inputs)[:1], nn.functional.one_hot(target[:1], 4))
        return -loss

    assert odds(x_adv) > odds(x)


def test_log_odds_loss_is_the_log_of_the_odds() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    probs = logits.softmax(1)[0]
    loss = LogOddsLoss()(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    assert torch.isclose(-loss, (probs[1] / (1 - probs[1])).log())


def test_two_classes() -> None:
    model, x = nn.Linear(7, 2), torch.rand(5, 7)
    y = torch.zeros(5, dtype=torch.int64)
    context = AttackContext(DataInfo("two", (7,), 2, (0.5,), (0.3,)))
    with torch.no_grad():
        expected = step((model.weight[1] - model.weight[0]).expand(5, 7), x, 0.1, "linf")
    for attack in (FGSM(0.1), FGSM(0.1, output="log_odds")):
        assert torch.allclose(attack.perturb(model, x, y, None, context).x_adv, expected)


def test_threat_and_targets() -> None:
    assert FGSM(0.3).threat((7,)) == ThreatModel("linf", 0.3)
    assert FGSM(3.0, "l2").threat((7,)) == ThreatModel("l2", 3.0)
    assert FGSM(targets="runner-up").targets == "runner-up"
    assert FGSM().access == "gradients"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eps": 0.0}, r"eps must be in \(0, 1\], got 0.0"),
        ({"eps": 1.5}, r"eps must be in \(0, 1\], got 1.5"),
        ({"eps": float("nan")}, "eps must be in"),
        ({"eps": -1.0, "norm": "l2"}, "eps must be positive and finite, got -1.0"),
        ({"norm": "l1"}, "norm must be one of"),
        ({"targets": "most"}, "targets must be one of"),
        ({"output": "logits"}, "output must be one of"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FGSM(**params)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_float64_is_the_same_step_where_float32_suffices(
    norm: Literal["linf", "l2"], targeted: bool
) -> None:
    model, x, y, target = linear(3)
    goal = target if targeted else None
    single, double = (
        FGSM(0.2, norm, precision=precision).perturb(model, x, y, goal, CONTEXT)
        for precision in ("float32", "float64")
    )
    assert double.x_adv.dtype == torch.float32
    assert torch.allclose(single.x_adv, double.x_adv, atol=1e-6)


def led_by(lead: float) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return a linear model whose first class leads by about ``lead``, inputs and labels."""
    model = nn.Linear(7, 4)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 7, generator=torch.Generator().manual_seed(0)))
        model.bias.copy_(torch.tensor([lead, 0.0, 0.0, 0.0]))
    return model, torch.full((3, 7), 0.5), torch.zeros(3, dtype=torch.int64)


def test_float64_keeps_the_direction_that_float32_cancels() -> None:
    # 1 - F_y is 0 in float32 and 1e-11 in float64: without it the label's own weights are lost.
    model, x, y = led_by(25.0)
    single, double, log_odds = (
        attack.perturb(model, x, y, None, CONTEXT).x_adv
        for attack in (FGSM(0.1), FGSM(0.1, precision="float64"), FGSM(0.1, output="log_odds"))
    )
    assert torch.allclose(double, log_odds, atol=1e-6)
    assert not torch.allclose(single, log_odds, atol=1e-6)


def test_a_gradient_of_exactly_zero_is_counted_and_a_temperature_brings_it_back() -> None:
    model, x, y = led_by(120.0)
    lost = FGSM(0.1).perturb(model, x, y, None, CONTEXT)
    warm = FGSM(0.1, temperature=120.0).perturb(model, x, y, None, CONTEXT)
    assert lost.zero_gradients is not None
    assert warm.zero_gradients is not None
    assert lost.zero_gradients.tolist() == [1, 1, 1]
    assert torch.equal(lost.x_adv, x)
    assert warm.zero_gradients.tolist() == [0, 0, 0]
    assert (warm.x_adv != x).all()
    with pytest.raises(ValueError, match="temperature must be positive"):
        FGSM(temperature=0.0)
