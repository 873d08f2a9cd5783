"""sigma-zero finds the minimum of a linear model, beats FMN on L0, and keeps its promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.peers import foolbox
from attacks.sigma_zero import SigmaZero, sigma_zero
from bench.base.types import DataInfo, ThreatModel
from bench.plugins.contracts import AttackContext

INFO = DataInfo("digits", (1, 8, 8), 10, (0.3,), (0.37,))
Task = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="session")
def task() -> Task:
    """A small network trained on digits, and 60 test rows that it classifies correctly."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[:1400]), y[:1400]).backward()
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    right = (net(x).argmax(1) == y).nonzero().squeeze(1)
    rows = right[right >= 1400][:60]
    return net.eval(), x[rows], y[rows]


def linear(seed: int, rows: int, features: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A two-class linear model, rows, labels, and the exact fewest features that flip each."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(features, generator=generator)
    x = torch.rand(rows, features, generator=generator)
    net = nn.Linear(features, 2, bias=False).requires_grad_(False)
    net.weight.copy_(torch.stack((weight / 2, -weight / 2)))
    margin = x @ weight
    y = (margin < 0).long()
    # The most that each feature can take off the margin; the largest ones first.
    towards = torch.where(margin > 0, 1.0, -1.0)[:, None] * weight
    gain = torch.where(towards > 0, towards * x, -towards * (1 - x))
    fewest = (gain.sort(1, descending=True).values.cumsum(1) < margin.abs()[:, None]).sum(1) + 1
    return net, x, y, fewest


@pytest.mark.parametrize("targeted", [False, True])
def test_near_the_exact_minimum_of_a_linear_model(targeted: bool) -> None:
    net, x, y, fewest = linear(1, 40, 50)
    result = sigma_zero(net, x, y, 1 - y if targeted else None, steps=300)
    assert result.success.all()
    excess = result.features_changed - fewest
    assert excess.min() >= 0
    assert (excess == 0).float().mean() >= 0.9
    assert fewest.float().mean() > 2


def reference(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Algorithm 1 of the paper with its whole loss differentiated, and torch's own Adam."""
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=0.1)
    tau = torch.full((len(x), 1), 0.3)
    best, fewest = x.clone(), torch.full((len(x),), x.shape[1] + 1)
    for _ in range(steps):
        logits = net(x + delta)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        margin = logits.gather(1, y[:, None]).squeeze(1) - others
        smooth = (delta.square() / (delta.square() + 1e-3)).mean(1)
        changed = (delta != 0).sum(1)
        better = (margin < 0) & (changed < fewest)
        best[better], fewest[better] = (x + delta).detach()[better], changed[better]
        adam.zero_grad()
        (margin.clamp(min=0) + smooth).sum().backward()
        delta.grad /= delta.grad.abs().amax(1, keepdim=True).clamp(min=1e-12)
        rate = annealing.get_last_lr()[0]
        adam.step()
        annealing.step()
        with torch.no_grad():
            delta.copy_((x + delta).clamp(0, 1) - x)
            tau += torch.where(margin < 0, 0.01 * rate, -0.01 * rate)[:, None]
            tau.clamp_(0, 1)
            delta[delta.abs() < tau] = 0
    return best


def test_equals_a_reference_that_differentiates_the_whole_loss() -> None:
    # In float64, for one threshold crossed by rounding sends a row elsewhere.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    x = torch.rand(20, 30).double()
    y = net(x).argmax(1)
    expected = reference(net, x, y, steps=60)
    found = sigma_zero(net, x, y, steps=60)
    assert found.success.float().mean() > 0.9
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=1e-9)


def test_no_larger_than_fmn_at_the_same_steps(task: Task) -> None:
    pytest.importorskip("foolbox")
    net, x, y = task
    ours = sigma_zero(net, x, y, steps=60)
    fmn = foolbox.Foolbox.from_params(attack="L0FMNAttack", steps=60)
    theirs = fmn.perturb(net, x, y, None, AttackContext(INFO)).x_adv
    broken = net(theirs).argmax(1) != y
    features = (theirs != x).sum(1)
    assert broken.float().mean() > 0.9
    assert ours.success.sum() >= broken.sum()
    assert ours.features_changed.median() <= features[broken].median()
    assert ours.features_changed.float().mean() < features[broken].float().mean()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 12),
    budget=st.none() | st.integers(1, 20),
    targeted=st.booleans(),
)
def test_promises(seed: int, steps: int, budget: int | None, targeted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 1, 4, 4, generator=generator)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).requires_grad_(False)
    net[1].weight.copy_(torch.randn(4, 16, generator=generator))
    y = net(x).argmax(1)
    target = (y + 1) % 4 if targeted else None
    calls: list[int] = []
    handle = net.register_forward_hook(lambda _m, i, _o: calls.append(len(i[0])))
    result = sigma_zero(net, x, y, target, steps=steps, max_features=budget)
    handle.remove()
    assert sum(calls) == result.iterations.sum() + 2  # the model is checked on one row, twice
    assert result.iterations.max() <= steps
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    changed = (result.x_adv != x).flatten(1).sum(1)
    assert changed.equal(result.features_changed)
    assert changed.max() <= (budget or 16)
    assert changed[~result.success].eq(0).all()
    prediction = net(result.x_adv).argmax(1)
    assert result.success.equal(prediction == target if targeted else prediction != y)
    again = sigma_zero(net, x, y, target, steps=steps, max_features=budget, chunk=2)
    assert torch.allclose(again.x_adv, result.x_adv, atol=1e-4)


def test_more_steps_never_hurt_on_average_and_a_budget_stops_early(task: Task) -> None:
    net, x, y = task
    few, many = (sigma_zero(net, x, y, steps=n) for n in (20, 200))
    assert many.features_changed.float().mean() < few.features_changed.float().mean()
    within = sigma_zero(net, x, y, steps=200, max_features=3)
    assert within.success.equal(many.features_changed <= 3)
    assert within.iterations.sum() < many.iterations.sum() / 2
    # One changed feature cannot be improved on.
    assert many.iterations[many.features_changed > 1].eq(200).all()
    assert many.iterations[many.features_changed == 1].lt(200).all()


def test_large_logits_do_not_matter(task: Task) -> None:
    net, x, y = task
    plain = sigma_zero(net, x, y, steps=60)
    scaled = sigma_zero(lambda z: net(z) * 1e4, x, y, steps=60)  # softmax gradients are zero here
    assert scaled.success.all()
    assert scaled.zero_gradients.sum() == 0
    difference = (scaled.features_changed - plain.features_changed).float().mean()
    assert abs(difference) < 0.3


class Blind(nn.Module):
    """Logits of a network without a gradient, or with one that is zero or NaN."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        if self.kind == "detached":
            return logits.detach()
        if self.kind == "unused":
            return logits.detach() + torch.zeros(10, requires_grad=True)
        factor = torch.nan if self.kind == "nan" else 0.0
        hook = logits if logits.requires_grad else None
        if hook is not None:
            hook.register_hook(lambda gradient: gradient * factor)
        return logits


@pytest.mark.parametrize("kind", ["detached", "unused", "zero", "nan"])
def test_a_model_without_gradients_is_counted_and_not_a_crash(task: Task, kind: str) -> None:
    net, x, y = task
    result = sigma_zero(Blind(net, kind), x[:5], y[:5], steps=7)
    assert result.zero_gradients.tolist() == [7] * 5
    assert not result.success.any()
    assert result.x_adv.equal(x[:5])


def test_zero_gradients_are_counted_only_where_the_goal_is_not_reached(task: Task) -> None:
    net, x, y = task
    assert sigma_zero(net, x, y, steps=50).zero_gradients.sum() == 0


def test_rows_at_their_goal_stay_clean(task: Task) -> None:
    net, x, y = task
    labels = torch.where(torch.arange(60) < 30, (y + 1) % 10, y)
    result = sigma_zero(net, x, labels, steps=30)
    assert result.x_adv[:30].equal(x[:30])
    assert result.success[:30].all()
    assert result.iterations[:30].eq(1).all()
    alone = sigma_zero(net, x[30:], y[30:], steps=30)
    assert alone.features_changed.equal(result.features_changed[30:])
    assert sigma_zero(net, x[:0], y[:0]).x_adv.shape == (0, 64)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(task: Task, training: bool) -> None:
    net, x, y = task
    net.train(training)
    before = x.clone()
    with torch.inference_mode():
        sigma_zero(net, x[:3], y[:3], steps=3)
    assert net.training == training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert x.equal(before)
    net.eval()


def test_the_step_size_is_annealed_to_a_tenth() -> None:
    rates = [SigmaZero(steps=100).rate(step) for step in (0, 50, 100)]
    assert rates == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"sigma": -1.0}, "sigma must be positive and finite"),
        ({"tau": 1.5}, r"tau must be in \[0, 1\], got 1.5"),
        ({"tau_step": -0.1}, r"tau_step must be in \[0, 1\]"),
        ({"max_features": 0}, "max_features must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(task: Task, arguments: dict[str, Any], message: str) -> None:
    net, x, y = task
    with pytest.raises(ValueError, match=message):
        sigma_zero(net, x[:2], y[:2], **arguments)
    with pytest.raises(ValueError, match=message):
        SigmaZero(**arguments)


def test_the_plugin(task: Task) -> None:
    net, x, y = task
    attack = SigmaZero(steps=30, targets="runner-up")
    assert attack.threat((1, 8, 8)) == ThreatModel("l0", None, "features")
    assert SigmaZero(max_features=16).threat((1, 8, 8)).budget == 0.25
    assert (attack.access, attack.targeted, attack.adaptive) == ("gradients", True, True)
    target = net(x).topk(2).indices[:, 1]
    found = attack.perturb(net, x, y, target, AttackContext(INFO))
    reached = net(found.x_adv).argmax(1) == target
    assert reached.float().mean() > 0.9
    assert found.stop_reason == ["reached" if done else "steps" for done in reached.tolist()]
    assert found.zero_gradients is not None
    again = attack.perturb(net, x, y, target, AttackContext(INFO, seed=9))
    assert again.x_adv.equal(found.x_adv)  # nothing in it is random
