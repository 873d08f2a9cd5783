"""AdvGAN: a small generator lowers the accuracy on digits, in one pass, inside ball and box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.advgan import AdvGAN, _excess, learn, within
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Sources, attack_sources
from bench.plugins import registry
from bench.plugins.contracts import LEARNT, AttackContext, DataSettings
from bench.plugins.data import Dataset, Split
from bench.plugins.recipes import RECIPES
from bench.training.datasets import Digits
from bench.training.fit import fit_attack
from bench.training.loop import DivergedError, train
from bench.training.networks import DigitsCnn

SMALL: dict[str, Any] = {"eps": 0.3, "steps": 80, "width": 8, "lr": 5e-3}


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Dataset]:
    data = Digits().load(DataSettings())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsCnn().build(data.info)
        train(model, data.train.x, data.train.y, RECIPES["smoke"], torch.Generator().manual_seed(0))
    return model, data


def fitted(attack: AdvGAN, model: nn.Module, data: Dataset) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return fit_attack(attack, model, data, RECIPES["smoke"], 0, {}, registry.ATTACKS.make)


def test_it_lowers_the_accuracy_on_digits_without_asking(digits: tuple[nn.Module, Dataset]) -> None:
    model, data = digits
    attack = AdvGAN(**SMALL)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    context = AttackContext(data.info, 0, {LEARNT: fitted(attack, model, data)})
    test = data.test.take(slice(0, 100))
    sources = Sources(torch.arange(100), test.x, test.y)
    evidence = attack_sources(model, attack, sources, context)
    attacked = evidence.records[evidence.records["status"] == "attacked"]
    # A generator that knows nothing, as a control: it is the training that does it.
    blank = attack.build(data.info)
    control = attack_sources(model, attack, sources, AttackContext(data.info, 0, {LEARNT: blank}))
    assert attacked["success"].mean() > 0.3
    assert attacked["success"].mean() > control.records["success"].mean() + 0.2
    assert attacked["in_budget"].all()
    assert attacked["in_box"].all()
    assert evidence.forwards == 0
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value)
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1, 28, 28), (20,), (4, 6)])
def test_a_generator_suits_images_and_flat_inputs(shape: tuple[int, ...]) -> None:
    info = DataInfo("any", shape, 3, (0.5,) * shape[0], (0.3,) * shape[0])
    attack = AdvGAN(eps=0.2, steps=2, width=2)
    x = torch.rand(9, *shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3))
    generator = attack.build(info)
    learn(attack, model, Split(x, torch.arange(9) % 3), generator, torch.Generator())
    assert not generator.training
    context = AttackContext(info, 0, {LEARNT: generator})
    x_adv = attack.perturb(model, x, torch.arange(9) % 3, None, context).x_adv
    assert x_adv.shape == x.shape
    assert float((x_adv - x).abs().max()) <= 0.2 + 1e-6
    assert float((x_adv - x).abs().max()) > 0
    # A row's perturbation is its own.
    alone = attack.perturb(model, x[4:5], torch.tensor([1]), None, context).x_adv
    assert torch.allclose(alone, x_adv[4:5], atol=1e-6)


def test_the_hinge_is_what_a_perturbation_is_too_long_by() -> None:
    change = torch.zeros(2, 1, 2, 2)
    change[0] = 0.5  # of length 1
    assert float(_excess(AdvGAN(eps=0.25), change)) == pytest.approx((1 - 0.5) / 2)
    assert float(_excess(AdvGAN(eps=0.25, bound=0.9), change)) == pytest.approx((1 - 0.9) / 2)
    assert float(_excess(AdvGAN(eps=1.0), change)) == 0


def test_the_projection_lets_gradients_through_inside_the_ball_alone() -> None:
    x = torch.full((1, 3), 0.5)
    change = torch.tensor([[0.05, 0.3, -0.9]], requires_grad=True)
    x_adv = within(x, change, 0.1)
    assert torch.allclose(x_adv, torch.tensor([[0.55, 0.6, 0.4]]))
    x_adv.sum().backward()
    assert change.grad is not None
    assert change.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_one_generator_serves_several_budgets_where_asked_to() -> None:
    attack = AdvGAN(eps=0.1, fitted_eps=0.3)
    assert attack.fitted_as() == AdvGAN(eps=0.3, fitted_eps=0.3)
    assert attack.threat((5,)) == ThreatModel("linf", 0.1)
    info = DataInfo("any", (5,), 3, (0.5,), (0.3,))

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, 0.3)

    context = AttackContext(info, 0, {LEARNT: Constant()})
    x = torch.full((2, 5), 0.5)
    moved = attack.perturb(nn.Identity(), x, torch.zeros(2), None, context).x_adv - x
    assert torch.allclose(moved, torch.full((2, 5), 0.1))


def test_a_loss_that_is_not_finite_ends_it() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), torch.nan) * x.sum()

    info = DataInfo("any", (5,), 3, (0.5,), (0.3,))
    attack, split = AdvGAN(steps=3, width=2), Split(torch.rand(9, 5), torch.arange(9) % 3)
    with pytest.raises(DivergedError, match="the attack's fit diverged: its loss at step 1 is nan"):
        learn(attack, Silent(), split, attack.build(info), torch.Generator())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eps": 0.0}, r"eps must be in \(0, 1\], got 0.0"),
        ({"fitted_eps": 2.0}, r"eps must be in \(0, 1\], got 2.0"),
        ({"bound": 0.0}, "bound must be positive and finite"),
        ({"lr": -1.0}, "lr must be positive and finite"),
        ({"gan": -1.0}, "gan must be finite and at least 0"),
        ({"hinge": float("inf")}, "hinge must be finite and at least 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"output": "probs"}, "output must be one of"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdvGAN(**params)
