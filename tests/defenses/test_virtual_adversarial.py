"""Virtual adversarial training: its direction against the second derivative itself."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from defenses.crafting import divergence
from defenses.virtual_adversarial import VirtualAdversarialTraining


@pytest.fixture(scope="module")
def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).train()


def test_the_direction_is_the_main_curvature_of_the_divergence(smooth: nn.Module) -> None:
    x = torch.rand(4, 6)
    many = VirtualAdversarialTraining(iterations=60, xi=0.01)
    found = many.direction(smooth, x, torch.randn(4, 6))
    for row, direction in zip(x, found, strict=True):
        clean = smooth(row[None]).detach()

        def moved(r: torch.Tensor, row=row, clean=clean) -> torch.Tensor:
            return divergence(clean, smooth((row + r)[None])).sum()

        hessian = torch.autograd.functional.hessian(moved, torch.zeros(6))
        top = torch.linalg.eigh(hessian).eigenvectors[:, -1]
        assert abs(float(top @ direction)) > 0.99
        assert direction.norm().item() == pytest.approx(1.0)


def test_one_iteration_beats_a_random_direction(data, network, objective_of) -> None:
    x, noise = data.train.x[:16], torch.randn(16, 1, 16, 16)
    defense = VirtualAdversarialTraining(eps=2.0)
    found = defense.direction(network, x, noise)
    assert torch.allclose(found.flatten(1).norm(dim=1), torch.ones(16))
    assert network.training
    assert all(weight.requires_grad for weight in network.parameters())
    network.eval()
    clean = network(x)
    chance = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    lds = divergence(clean, network(x + 2 * found))
    assert (lds > divergence(clean, network(x + 2 * chance))).all()


def test_the_loss_holds_the_clean_answer_constant(data, network, objective_of) -> None:
    network[3].p = 0.0
    x, y = data.train.x[:8], data.train.y[:8]
    defense = VirtualAdversarialTraining(eps=1.5, alpha=2.0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    far = x + 1.5 * defense.direction(network, x, noise)
    p = network(x).softmax(1).detach()
    lds = (p * (p.log() - network(far).log_softmax(1))).sum(1).mean()
    expected = cross_entropy(network(x), y) + 2.0 * lds
    loss = objective_of(defense)(network, x, y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = list(network.parameters())
    gradients = torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights)
    pairs = zip(*gradients, strict=True)
    assert all(torch.allclose(got, wanted, atol=1e-6) for got, wanted in pairs)


def test_every_weight_learns_in_bfloat16_too(data, network, objective_of) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective_of(VirtualAdversarialTraining())(
            network, data.train.x[:8], data.train.y[:8]
        )
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_a_network_that_says_the_same_everywhere_gives_no_direction_and_no_nan(
    data, network, objective_of
) -> None:
    nn.init.zeros_(network[4].weight)
    defense = VirtualAdversarialTraining()
    found = defense.direction(network, data.train.x[:4], torch.randn(4, 1, 16, 16))
    assert not found.any()
    loss = objective_of(defense)(network, data.train.x[:4], data.train.y[:4])
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ["eps", "alpha", "xi"])
def test_wrong_parameters_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0.0"):
        VirtualAdversarialTraining(**{name: 0.0})
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        VirtualAdversarialTraining(iterations=0)


def test_moved_inputs_do_not_enter_running_statistics(objective_of) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    x, y = torch.rand(16, 6), torch.arange(16) % 3
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(x)
    once = {name: value.clone() for name, value in model.named_buffers()}
    for name, value in model.named_buffers():
        value.copy_(before[name])
    objective_of(VirtualAdversarialTraining(eps=2.0))(model, x, y).backward()
    assert all(torch.equal(value, once[name]) for name, value in model.named_buffers())
    assert model[0].weight.grad is not None
