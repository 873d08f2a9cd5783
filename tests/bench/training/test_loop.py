"""The one training loop."""

import dataclasses

import pytest
import torch
from torch import nn

from bench.base.types import UserError
from bench.plugins.recipes import RECIPES, Recipe, find_recipe
from bench.training.loop import DivergedError, train

ADAM = Recipe(epochs=30, batch_size=16, optimizer="adam", lr=0.05)
SGD = Recipe(epochs=30, batch_size=16, optimizer="sgd", lr=0.5, schedule="constant", momentum=0.5)


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    x = (nn.functional.one_hot(y, 3) * 0.6 + torch.rand(90, 3) * 0.4).float()
    return x, y


def fitted(setting: Recipe, temperature: float = 1.0, soft: bool = False) -> nn.Module:
    x, y = blobs()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    targets = nn.functional.one_hot(y, 3) * 0.9 + 0.1 / 3 if soft else y
    train(model, x, targets, setting, torch.Generator().manual_seed(2), temperature=temperature)
    return model


@pytest.mark.parametrize("setting", [ADAM, SGD, dataclasses.replace(SGD, schedule="halving")])
@pytest.mark.parametrize("soft", [False, True])
def test_it_learns_and_ends_in_eval_mode(setting: Recipe, soft: bool) -> None:
    x, y = blobs()
    model = fitted(setting, soft=soft)
    assert (model(x).argmax(1) == y).float().mean() > 0.95
    assert not model.training


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = fitted(ADAM), fitted(ADAM)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_temperature_makes_larger_logits() -> None:
    # Carlini and Wagner 2016: training at T makes logits about T times as large.
    x, _ = blobs()
    cold, hot = fitted(ADAM)(x).abs().mean(), fitted(ADAM, temperature=20.0)(x).abs().mean()
    assert hot > 3 * cold


def test_the_halving_schedule_halves_both() -> None:
    seen = []

    class Spy(nn.Linear):
        pass

    model = Spy(3, 3)
    x, y = blobs()
    setting = Recipe(4, 90, "sgd", lr=0.8, schedule="halving", momentum=0.8, period=2)
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *args: object, **kwargs: object) -> object:
        seen.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
        return original(self, *args, **kwargs)

    torch.optim.SGD.step = step  # type: ignore[method-assign]
    try:
        train(model, x, y, setting, torch.Generator().manual_seed(0))
    finally:
        torch.optim.SGD.step = original  # type: ignore[method-assign]
    assert seen == [(0.8, 0.8), (0.8, 0.8), (0.4, 0.4), (0.4, 0.4)]


def test_a_loss_that_is_not_finite_is_no_network() -> None:
    with pytest.raises(DivergedError, match="the loss of epoch"):
        fitted(dataclasses.replace(SGD, lr=1e30))


def test_an_unknown_recipe_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        find_recipe("smok")
    assert find_recipe("fast") is RECIPES["fast"]
