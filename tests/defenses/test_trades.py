"""TRADES: its loss, the inputs it crafts, and what it leaves as it was."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from defenses.crafting import divergence
from defenses.trades import Trades


def test_the_loss_is_cross_entropy_plus_beta_times_the_divergence(
    data, network, objective_of
) -> None:
    network[3].p = 0.0  # so that two passes agree
    x, y = data.train.x[:8], data.train.y[:8]
    defense = Trades(beta=3.0, eps=0.1, steps=2)
    noise = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x_adv = defense.craft(network, x, noise)
    p, q = network(x).softmax(1), network(x_adv).softmax(1)
    expected = cross_entropy(network(x), y) + 3.0 * (p * (p / q).log()).sum(1).mean()
    loss = objective_of(defense)(network, x, y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = list(network.parameters())
    gradients = torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights)
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True))


def test_the_crafted_inputs_diverge_most_at_the_corner_of_a_linear_model() -> None:
    # Two classes, z = (w·x, 0) with x in the middle: the divergence is convex in w·r, so its
    # maximum over the ball lies at x + eps sign(w) or x - eps sign(w).
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    w = torch.tensor([3.0, -2.0, 1.0, 0.5, -0.1, 2.0])
    with torch.no_grad():
        model.weight.copy_(torch.stack([w, torch.zeros(6)]))
        model.bias.copy_(torch.stack([-0.5 * w.sum(), torch.zeros(())]))
    x = torch.full((20, 6), 0.5)
    defense = Trades(eps=0.1, steps=5)
    moved = defense.craft(model, x, 1e-3 * torch.randn(20, 6)) - x
    up, down = torch.allclose, 0.1 * w.sign()
    assert all(up(row, down, atol=1e-6) or up(row, -down, atol=1e-6) for row in moved)


def test_crafting_sees_the_deployed_network_and_leaves_it_training(data, network) -> None:
    x = data.train.x[:8]
    defense, noise = Trades(eps=0.1), 1e-3 * torch.randn_like(x)
    first, second = defense.craft(network, x, noise), defense.craft(network, x, noise)
    assert torch.equal(first, second)  # dropout would make them differ
    assert (first - x).abs().max() <= 0.1 + 1e-6
    assert first.min() >= 0
    assert first.max() <= 1
    assert network.training
    assert network[3].training
    assert all(weight.requires_grad and weight.grad is None for weight in network.parameters())
    with torch.no_grad():
        clean = network.eval()(x)
        corner = (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)
        assert (divergence(clean, network(first)) > divergence(clean, network(corner))).all()


def test_every_weight_learns_in_bfloat16_too(data, network, objective_of) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective_of(Trades(steps=1))(network, data.train.x[:8], data.train.y[:8])
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_each_batch_starts_elsewhere(data, network, objective_of) -> None:
    network.eval()
    objective = objective_of(Trades(steps=1, step_size=1e-4))
    losses = [objective(network, data.train.x[:8], data.train.y[:8]).item() for _ in range(2)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ({"eps": 0.0}, r"eps must be in \(0, 1\], got 0.0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": -0.1}, "step_size must be positive and finite, got -0.1"),
    ],
)
def test_wrong_parameters_are_named(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trades(**wrong)


def test_the_step_follows_from_eps_unless_given() -> None:
    assert Trades(eps=0.3, steps=6).step_size == pytest.approx(0.125)
    assert Trades(eps=0.3, steps=6, step_size=0.02).step_size == 0.02
