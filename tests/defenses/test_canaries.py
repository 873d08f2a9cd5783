"""Canaries: each disturbs what it says, and leaves the decisions as they were."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import defenses
from bench.base.types import Spec
from bench.conformance import check_defense, tiny_data
from bench.conformance.models import fitted
from bench.measure.query import predict
from bench.plugins import registry
from defenses.canaries import Averaged, FalseSurrogate, InputNoiseAdaptive, QuantisedInputsAdaptive
from defenses.undefended import Undefended

NAMES = [name for name in registry.DEFENSES.names() if name.startswith("canary_")]
SILENT = ["canary_quantised_logits", "canary_quantised_inputs", "canary_detached"]
MOVED = ("canary_memory", "canary_companions")


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return fitted(Spec("undefended"), tiny_data())


def made(name: str, **params: object) -> nn.Module:
    return fitted(Spec(name, params), tiny_data())


def gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def test_they_are_a_plugin_and_no_built_in() -> None:
    assert len(NAMES) == 17
    assert not set(NAMES) & set(defenses.INDEX)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"canary_constant", "canary_silent", *MOVED}))
def test_decisions_stay(name: str, data, plain: nn.Module) -> None:
    x = data.test.x
    before, after = predict(plain, x, 3).argmax(1), predict(made(name), x, 3).argmax(1)
    assert (before == after).float().mean() >= (0.9 if "noise" in name or "quant" in name else 1)


def test_the_constant_answers_one_class(data) -> None:
    model = made("canary_constant")
    logits = predict(model, data.test.x, 3)
    assert torch.equal(logits, torch.tensor([[10.0, 0.0, 0.0]]).expand(len(logits), 3))
    assert not gradient(model, data.test.x, data.test.y).any()
    assert model[1].answer.tolist() == [10.0, 0.0, 0.0]


@pytest.mark.parametrize("name", SILENT)
def test_a_silent_gradient_is_exactly_zero(name: str, data, plain: nn.Module) -> None:
    x, y = data.test.x, data.test.y
    assert (gradient(plain, x, y).flatten(1).abs().amax(1) > 0).all()
    assert not gradient(made(name), x, y).any()
    failed = [check.name for check in check_defense(name) if check.failed]
    assert failed == ["gradients"]


def test_scaled_logits(data, plain: nn.Module) -> None:
    x = data.test.x
    scaled = predict(made("canary_scaled_logits", factor=30.0), x, 3)
    assert torch.allclose(scaled, 30 * predict(plain, x, 3))


def test_quantised_logits_are_multiples_of_the_step(data) -> None:
    logits = predict(made("canary_quantised_logits", step=0.25), data.test.x, 3)
    assert torch.equal(logits, (4 * logits).round() / 4)


def test_quantised_inputs_see_few_levels(data) -> None:
    model = made("canary_quantised_inputs", levels=5)
    seen = model[0](data.test.x).unique()
    assert set(seen.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_misleading_gradient_is_turned(data, plain: nn.Module) -> None:
    x, y = data.test.x, data.test.y
    assert torch.equal(gradient(made("canary_misleading"), x, y), -gradient(plain, x, y))


def test_a_memory_keeps_its_first_batch_and_companions_move_one_another(data) -> None:
    x = data.test.x
    for name, remembers in (("canary_memory", True), ("canary_companions", False)):
        model = made(name)
        first, rest = x[:3], x[3:]
        before = predict(model, first, 3)
        assert not torch.allclose(predict(made(name), x, 3)[:3], before)
        predict(model, rest, 3)
        assert torch.equal(predict(model, first, 3), before)
        alone = torch.cat([predict(model, row, 3) for row in first.split(1)])
        assert torch.allclose(alone, before) == remembers


def test_the_silent_one_says_nothing_where_two_classes_are_near(data) -> None:
    sure = predict(made("canary_silent", gap=1e-6), data.test.x, 3)
    assert sure.isfinite().all()
    gap = sure.topk(2, dim=1).values.diff(dim=1).abs().median()
    answers = predict(made("canary_silent", gap=float(gap)), data.test.x, 3)
    assert 0 < answers.isnan().all(dim=1).sum() < len(answers)


def test_the_false_surrogate_answers_the_next_class(data) -> None:
    model = made("canary_false_surrogate")
    surrogate = FalseSurrogate().surrogate(model)
    x = data.test.x
    assert torch.equal(predict(surrogate, x, 3), predict(model, x, 3).roll(1, dims=1))


def test_the_watched_one_sees_the_harness_and_not_its_user(data, plain: nn.Module) -> None:
    model, x = made("canary_watched"), data.test.x[:5]
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert torch.allclose(predict(model, x, 3) - predict(plain, x, 3), torch.tensor([0.1, 0, 0]))


def test_the_crash_is_on_the_way_back(data) -> None:
    with pytest.raises(RuntimeError, match="canary_crash"):
        gradient(made("canary_crash"), data.test.x, data.test.y)


def test_without_a_graph_there_is_nothing_to_differentiate(data) -> None:
    assert not made("canary_no_graph")(data.test.x.clone().requires_grad_()).requires_grad


def test_probabilities_sum_to_one(data) -> None:
    answers = predict(made("canary_probabilities"), data.test.x, 3)
    assert torch.allclose(answers.sum(1), torch.ones(len(answers)))


def test_the_quantiser_s_surrogate_answers_alike_and_has_the_network_s_gradient(data) -> None:
    x, y = data.test.x, data.test.y
    model = made("canary_quantised_inputs_adaptive")
    surrogate = QuantisedInputsAdaptive().surrogate(model)
    assert torch.allclose(predict(surrogate, x, 3), predict(model, x, 3), atol=1e-5)
    assert torch.allclose(gradient(surrogate, x, y), gradient(model[1], model[0](x), y), atol=1e-6)


def test_the_noisy_network_s_surrogate_is_the_mean_of_its_draws(data) -> None:
    x = data.test.x[:3]
    model = made("canary_input_noise_adaptive")
    assert not torch.equal(predict(model, x, 3), predict(model, x, 3))
    surrogate = InputNoiseAdaptive(draws=2000).surrogate(model)
    assert isinstance(surrogate, Averaged)
    torch.manual_seed(0)
    mean = torch.stack([predict(model, x, 3) for _ in range(2000)]).mean(0)
    assert torch.allclose(predict(surrogate, x, 3), mean, atol=0.1)
    rows = Averaged(nn.Flatten(), 20)(x)  # each row's mean is its own
    assert torch.allclose(rows, x.flatten(1), atol=1e-6)
    assert predict(surrogate, x[:0], 3).shape == (0, 3)


def test_noise_is_declared_and_of_the_stated_size() -> None:
    assert InputNoiseAdaptive.stochastic
    model = made("canary_input_noise", sigma=0.2)
    moved = model[0](torch.zeros(50, 1, 16, 16))
    assert moved.std().item() == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("canary_scaled_logits", {"factor": 0.0}, "factor must be positive and finite, got 0.0"),
        ("canary_quantised_logits", {"step": -1.0}, "step must be positive and finite"),
        ("canary_quantised_inputs", {"levels": 1}, "levels must be at least 2, got 1"),
        ("canary_input_noise", {"sigma": float("inf")}, "sigma must be positive and finite"),
        ("canary_input_noise_adaptive", {"draws": 19}, "draws must be at least 20, got 19"),
    ],
)
def test_wrong_parameters_are_named(name: str, params, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.DEFENSES.get(name)(**params)


def test_each_wraps_the_undefended_network() -> None:
    for name in NAMES:
        assert registry.DEFENSES.make(Spec(name)).requires() == {"undefended": Undefended()}
