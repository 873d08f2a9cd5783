"""What defenses craft with: a network at rest, steps inside the ball and the box."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax

from bench.measure.at_rest import at_rest
from defenses.crafting import ascend, check_eps, check_positive, check_steps, divergence


def test_at_rest_puts_back_every_flag() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    model.train()
    model[1].eval()  # a frozen batch norm stays frozen
    model[0].bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    learning = [weight.requires_grad for weight in model.parameters()]
    with at_rest(model):
        assert not any(module.training for module in model.modules())
        assert not any(weight.requires_grad for weight in model.parameters())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError, match="shapes"), at_rest(model):
        model(torch.zeros(2, 9))
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == learning


def test_a_linear_loss_is_climbed_to_the_corner_of_the_ball_and_the_box() -> None:
    # The maximum of w·x over |x' - x| <= eps, 0 <= x' <= 1 is clip(x + eps sign w).
    x = torch.tensor([[0.05, 0.5, 0.95, 0.4], [0.9, 0.2, 0.0, 1.0]])
    w = torch.tensor([-1.0, 2.0, 3.0, -0.1])
    found = ascend(lambda a: (a @ w).sum(), x, x, eps=0.1, steps=4, step_size=0.03)
    assert torch.allclose(found, (x + 0.1 * w.sign()).clamp(0, 1))
    assert not found.requires_grad
    short = ascend(lambda a: (a @ w).sum(), x, x, eps=0.1, steps=2, step_size=0.03)
    assert torch.allclose(short, (x + 0.06 * w.sign()).clamp(0, 1))


def test_a_start_outside_is_brought_inside() -> None:
    x = torch.tensor([[0.5, 0.02]])
    found = ascend(lambda a: 0 * a.sum(), x, x + 9, eps=0.1, steps=1, step_size=0.1)
    assert torch.allclose(found, torch.tensor([[0.6, 0.12]]))


def test_divergence_is_kl_row_by_row() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(5, 4), torch.randn(5, 4)
    expected = (p.softmax(1) * (p.softmax(1) / q.softmax(1)).log()).sum(1)
    assert torch.allclose(divergence(p, q), expected, atol=1e-6)
    assert divergence(p, p).abs().max() < 1e-6
    sure = torch.tensor([[200.0, 0.0]])  # a probability that underflows is no NaN
    assert divergence(sure, -sure).item() == pytest.approx(200.0)
    moved = q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(p, moved).sum(), moved)
    assert torch.allclose(gradient, softmax(q, 1) - softmax(p, 1), atol=1e-6)


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="beta must be positive and finite, got nan"):
        check_positive(alpha=1.0, beta=float("nan"))
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\], got 1.5"):
        check_eps(1.5)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        check_steps(0)
