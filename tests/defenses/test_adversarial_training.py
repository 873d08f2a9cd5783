"""Adversarial training: what it crafts, when, and what it learns from that."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.base.types import DataInfo, Spec
from bench.plugins import registry
from bench.plugins.contracts import AttackContext, FitContext, Perturbation
from defenses.adversarial_training import AdversarialTraining
from tests.defenses.conftest import SHORT, seeded


class Asked:
    """Stands for the registry of attacks: remembers what was asked for, and moves nothing."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []
        self.seeds: list[int] = []

    def __call__(self, spec: Spec) -> SimpleNamespace:
        self.specs.append(spec)
        return SimpleNamespace(perturb=self.perturb)

    def perturb(self, model, x, y, target, context: AttackContext) -> Perturbation:
        assert target is None
        self.seeds.append(context.seed)
        return Perturbation(x)


def trained(defense: AdversarialTraining, data, model: nn.Module, seed: int = 0) -> Asked:
    """Run through the batches of the training without a step."""
    asked = Asked()

    def train(_, x, y, *, objective) -> None:
        for _ in range(SHORT.epochs):
            for rows in torch.arange(len(x)).split(SHORT.batch_size):
                objective(model, x[rows], y[rows])

    context = FitContext(data.info, {}, data.validation, SHORT, seeded(seed), train, asked)
    defense.fit(model, data.train, context)
    return asked


def linear(shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    features = math.prod(shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, 2))
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    return model, w


def context_of(shape: tuple[int, ...], seed: int = 0) -> FitContext:
    info = DataInfo("toy", shape, 2, (0.5,), (0.5,))
    return FitContext(info, {}, None, SHORT, seeded(seed), None, registry.ATTACKS.make)


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_a_linear_model_is_attacked_at_the_worst_corner_by_rows_that_fail_at_once_too(
    method: str,
) -> None:
    # The worst input of a linear model is clip(x - eps sign(w_y - w_other)); half of the labels
    # are wrong from the start, and those rows must go there like the others.
    shape = (1, 3, 3)
    model, w = linear(shape)
    x = torch.rand(40, *shape)
    predicted = model(x).argmax(1)
    y = torch.where(torch.arange(40) < 20, predicted, 1 - predicted)
    defense = AdversarialTraining(method, eps=0.2)
    if method == "fgsm":
        found = defense.step(model, x, y, 1.0)
    else:
        found = defense.climb(model, x, y, 1.0, context_of(shape))
    away = torch.where(y == 1, -1.0, 1.0)[:, None] * w.sign()
    assert torch.allclose(found, (x + 0.2 * away.view_as(x)).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_crafting_sees_the_deployed_network_and_leaves_it_training(
    method: str, data, network, objective_of
) -> None:
    x, y = data.train.x[:8], data.train.y[:8]
    seen = []
    network[3].register_forward_hook(lambda layer, inputs, out: seen.append(layer.training))
    loss = objective_of(AdversarialTraining(method))(network, x, y)
    learning = 2 if method == "fgsm" else 1
    assert seen[-learning:] == [True] * learning
    assert not any(seen[:-learning])
    assert network.training
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_every_weight_learns_in_bfloat16_too(method: str, data, network, objective_of) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective_of(AdversarialTraining(method))(
            network, data.train.x[:8], data.train.y[:8]
        )
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_fgsm_averages_clean_and_crafted(data, network, objective_of) -> None:
    network[3].p = 0.0
    x, y = data.train.x[:8], data.train.y[:8]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(network(leaf), y), leaf)
    moved = (x + 0.05 * gradient.sign()).clamp(0, 1)
    expected = (cross_entropy(network(x), y) + cross_entropy(network(moved), y)) / 2
    loss = objective_of(AdversarialTraining("fgsm", eps=0.05))(network, x, y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_pgd_learns_from_the_attack_s_inputs_alone(data, network, objective_of) -> None:
    network[3].p = 0.0
    x, y = data.train.x[:8], data.train.y[:8]
    loss = objective_of(AdversarialTraining(eps=0.1))(network, x, y)
    clean = cross_entropy(network(x), y)
    assert loss > clean + 0.05
    tiny = objective_of(AdversarialTraining(eps=1e-6))(network, x, y)
    assert tiny.item() == pytest.approx(clean.item(), abs=1e-3)


def test_the_attack_runs_to_the_end_from_another_seed_each_batch(data, network) -> None:
    asked = trained(AdversarialTraining(eps=0.1, steps=3, step_size=0.04), data, network)
    assert len(asked.seeds) == 16
    assert len(set(asked.seeds)) == 16
    assert {spec.name for spec in asked.specs} == {"pgd"}
    wanted = {"eps": 0.1, "steps": 3, "step_size": 0.04, "output": "log_odds", "early_stop": False}
    assert all(spec.params == wanted for spec in asked.specs)
    assert trained(AdversarialTraining(eps=0.1), data, network).seeds == asked.seeds
    assert trained(AdversarialTraining(eps=0.1), data, network, seed=1).seeds != asked.seeds


def test_warmup_grows_eps_and_step_together(data, network) -> None:
    asked = trained(AdversarialTraining(eps=0.2, steps=4, warmup=0.5), data, network)
    grown = [spec.params["eps"] / 0.2 for spec in asked.specs]
    assert grown == pytest.approx([*(k / 8 for k in range(1, 9)), *[1.0] * 8])
    steps = [spec.params["step_size"] / spec.params["eps"] for spec in asked.specs]
    assert steps == pytest.approx([2.5 / 4] * 16)
    assert AdversarialTraining("fgsm", warmup=0.25).grown(0.05) == pytest.approx(0.2)
    assert AdversarialTraining().grown(1e-9) == 1.0


def test_the_attack_s_code_is_part_of_the_identity() -> None:
    assert AdversarialTraining().code() == (registry.ATTACKS.get("pgd"),)
    assert AdversarialTraining("fgsm").code() == ()


def test_the_steps_follow_from_the_method_unless_given() -> None:
    assert dataclasses.astuple(AdversarialTraining(eps=0.1)) == ("pgd", 0.1, 5, 0.05, 0.0)
    assert dataclasses.astuple(AdversarialTraining("fgsm", 0.1)) == ("fgsm", 0.1, 1, 0.1, 0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "fgms"}, "method must be 'fgsm' or 'pgd', got 'fgms'"),
        ({"eps": 0.0}, r"eps must be in \(0, 1\], got 0.0"),
        ({"eps": math.nan}, r"eps must be in \(0, 1\], got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
        ({"method": "fgsm", "steps": 5}, "takes one step of length eps, got steps 5"),
    ],
)
def test_wrong_parameters_are_named(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(**wrong)
