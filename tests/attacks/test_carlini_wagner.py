"""Carlini and Wagner's attacks: the losses by hand, nearest adversarials, promises a row."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.carlini_wagner import carlini_wagner
from attacks.carlini_wagner.losses import floor, unclipped
from attacks.carlini_wagner.plugin import CarliniWagner
from attacks.kit.losses import behind, reached
from bench.base.types import DataInfo, ThreatModel
from bench.measure.query import distances
from bench.plugins.contracts import AttackContext

NORMS = ["l2", "l0", "linf"]
QUICK: dict[str, Any] = {"steps": 40, "searches": 4, "learning_rate": 0.1, "initial_const": 0.1}
LN = math.log

# softmax of (log 1, log 2, log 5) is (1/8, 2/8, 5/8)
BY_HAND = {
    "f1": (LN(4) - 1, LN(4) - 1),
    "f2": (3 / 8, 3 / 8),
    "f3": (LN(1 + math.exp(3 / 8)) - LN(2), LN(1 + math.exp(3 / 8)) - LN(2)),
    "f4": (1 / 4, 1 / 4),
    "f5": (LN(2), LN(2)),
    "f6": (LN(5 / 2), LN(5 / 2)),
    "f7": (LN(1 + 5 / 2) - LN(2), LN(1 + 5 / 2) - LN(2)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_losses_by_hand(name: Any) -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0]]).double().log()
    towards, away = torch.tensor([1]), torch.tensor([2])
    targeted, untargeted = BY_HAND[name]
    assert float(unclipped(name, logits, towards, towards)) == pytest.approx(targeted)
    # The class nearest to winning against the third is the second: the same gap.
    assert float(unclipped(name, logits, away, None)) == pytest.approx(untargeted)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("targeted", [False, True])
def test_every_loss_falls_towards_its_goal_and_is_at_most_zero_there(
    name: Any, targeted: bool
) -> None:
    y = torch.tensor([0])
    target = torch.tensor([1]) if targeted else None
    goal = [torch.tensor([[4.0 - k, k - 4.0, -9.0]]).double() for k in range(9)]
    least = floor(name, 0)
    values = [float(unclipped(name, logits, y, target).clamp(min=least)) for logits in goal]
    assert all(after <= before for before, after in pairwise(values))
    assert values[0] > values[4] - 1e-9
    assert values[0] > 0
    assert values[-1] <= 0
    leaf = goal[1].requires_grad_()
    (gradient,) = torch.autograd.grad(unclipped(name, leaf, y, target).sum(), leaf)
    assert gradient[0, 1] < 0 < gradient[0, 0]
    check = goal[2].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: unclipped(name, z, y, target), (check,))


def test_where_only_two_losses_stop_by_kappa() -> None:
    assert floor("f6", 3.0) == -3
    assert floor("f2", 0) == floor("f4", 0) == 0
    assert all(floor(name, 0) == -math.inf for name in ("f1", "f3", "f5", "f7"))


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a linear model in float64, inputs well inside the box, and their labels."""
    generator = torch.Generator().manual_seed(classes)
    model = nn.Linear(9, classes).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, 9, generator=generator))
        model.bias.copy_(-model.weight.sum(1) / 2)
        x = 0.5 + 0.8 * (torch.rand(60, 9, generator=generator).double() - 0.5)
        # Those that lie far from the boundary: a step of Adam is small beside the way.
        rows = model(x).topk(2).values.diff().squeeze(1).argsort()[:16]
        return model, x[rows], model(x[rows]).argmax(1)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_nearest_adversarial_of_a_linear_model(norm: Any, classes: int) -> None:
    model, x, y = linear(classes)
    with torch.no_grad():
        weight, logits = model.weight, model(x)
        slope = (weight - weight[y][:, None]).norm(2 if norm == "l2" else 1, dim=2)
        gap = logits.gather(1, y[:, None]) - logits
        nearest = (gap / slope).masked_fill(gap == 0, torch.inf).amin(1)
    found = carlini_wagner(
        model, x, y, norm=norm, steps=100, searches=6, learning_rate=0.05, initial_const=0.1,
        shrink=0.98,
    )  # fmt: skip
    assert found.success.all()
    ratio = found.distance / nearest
    assert ratio.min() >= 1 - 1e-9
    # With several classes the one that is nearest to winning need not be the nearest.
    assert ratio.median() <= {"l2": 1.02, "linf": 1.06}[norm] * (1 if classes == 2 else 1.05)


def test_the_fewest_features_of_a_linear_model() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 + torch.rand(12, generator=generator).double()
    x = 0.4 * torch.rand(16, 12, generator=generator).double()

    def model(z: Tensor) -> Tensor:
        """Class 0 wins while the weighted mean of the features is below one half."""
        score = (z - 0.5) @ weight
        return torch.stack((-score, score), 1)

    gained = (weight * (1 - x)).sort(1, descending=True).values.cumsum(1)
    fewest = (gained <= (0.5 - x) @ weight[:, None]).sum(1) + 1
    found = carlini_wagner(model, x, torch.zeros(16, dtype=torch.int64), norm="l0", **QUICK)
    assert found.success.all()
    excess = found.distance - fewest
    assert excess.min() >= 0
    assert excess.mean() <= 0.5
    assert fewest.double().mean() > 3


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    norm=st.sampled_from(NORMS),
    loss=st.sampled_from(sorted(BY_HAND)),
    targeted=st.booleans(),
    kappa=st.sampled_from([0.0, 0.5]),
    pixels=st.booleans(),
)
def test_promises(
    seed: int, norm: Any, loss: str, targeted: bool, kappa: float, pixels: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 2, 3, 3, generator=generator).round(decimals=1)  # 0 and 1 among them
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 4)).requires_grad_(False)
    net[1].weight.copy_(torch.randn(4, 18, generator=generator))
    y = net(x).argmax(1)
    target = (y + 1) % 4 if targeted else None
    kappa, pixels = kappa if loss == "f6" else 0.0, pixels and norm == "l0"
    calls: list[int] = []
    handle = net.register_forward_hook(lambda _m, i, _o: calls.append(len(i[0])))
    found = carlini_wagner(
        net, x, y, target, norm=norm, loss=loss, kappa=kappa, pixels=pixels,
        steps=12, searches=2, learning_rate=0.2, initial_const=1.0,
    )  # fmt: skip
    handle.remove()
    assert sum(calls) == found.iterations.sum() + 2  # the model is checked on one row, twice
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    logits = net(found.x_adv)
    margin = behind(logits, y) if target is None else -behind(logits, target)
    assert (margin[found.success] > 0).all()
    assert (margin[found.success] >= kappa - 1e-5).all()
    assert torch.equal(found.x_adv[~found.success], x[~found.success])
    assert torch.equal(found.success, found.distance.isfinite())
    change = (found.x_adv - x).flatten(1)[found.success]
    changed = (found.x_adv != x)[found.success]
    expected = {
        "l2": change.norm(dim=1),
        "linf": change.abs().amax(1),
        "l0": (changed.any(1) if pixels else changed).flatten(1).sum(1).to(x.dtype),
    }[norm]
    torch.testing.assert_close(found.distance[found.success], expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_neither_batch_nor_chunk_nor_order_matters(norm: Any, targeted: bool) -> None:
    model, x, y = linear(4)
    target = (y + 1) % 4 if targeted else None
    whole = carlini_wagner(model, x, y, target, norm=norm, **QUICK)
    assert whole.success.double().mean() > 0.9
    assert whole.x_adv.dtype == torch.float64
    for rows, chunk in ((torch.arange(16), 5), (torch.tensor([11, 3, 7]), None)):
        goal = None if target is None else target[rows]
        part = carlini_wagner(model, x[rows], y[rows], goal, norm=norm, chunk=chunk, **QUICK)
        torch.testing.assert_close(part.x_adv, whole.x_adv[rows], rtol=0, atol=1e-9)
        assert torch.equal(part.iterations, whole.iterations[rows])


def test_kappa_moves_further() -> None:
    model, x, y = linear(3)
    near, far = (carlini_wagner(model, x, y, kappa=kappa, **QUICK) for kappa in (0.0, 1.0))
    assert far.success.all()
    assert (behind(model(far.x_adv), y) >= 1).all()
    assert (far.distance > near.distance).all()
    # Within float64 a c exists at which f6 ends on its own floor: hardly more than was asked for.
    assert behind(model(far.x_adv), y).median() < 1.1


def test_each_norm_is_best_by_its_own_measure() -> None:
    model, x, y = linear(3)
    found = {norm: carlini_wagner(model, x, y, norm=norm, **QUICK) for norm in NORMS}
    for norm, measure in (("l2", "l2"), ("l0", "l0_features"), ("linf", "linf")):
        means = {
            other: float(getattr(distances(x, result.x_adv), measure).double().mean())
            for other, result in found.items()
        }
        assert min(means, key=lambda name: means[name]) == norm, means


def test_tau_shrinks_to_what_the_goal_needs() -> None:
    model, x, y = linear(3)
    slow, fast = (
        carlini_wagner(model, x, y, norm="linf", shrink=shrink, **QUICK) for shrink in (0.95, 0.1)
    )
    assert slow.success.all()
    assert slow.distance.mean() < fast.distance.mean()


def test_features_at_the_edge_of_the_box_move() -> None:
    net = nn.Linear(4, 2, bias=False).requires_grad_(False)
    net.weight.copy_(torch.tensor([[-1.0, -1.0, 1.0, 1.0], [1.0, 1.0, -1.0, -1.0]]))
    x, y = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0])
    for norm in NORMS:
        found = carlini_wagner(net, x, y, norm=norm, **QUICK)
        assert found.success.all(), norm
        assert found.distance < {"l2": 1.02, "l0": 3.5, "linf": 0.53}[norm]


class Refusing(nn.Module):
    """A linear model that cannot answer for no rows, and whose gradient may be missing."""

    def __init__(self, *, detached: bool = False) -> None:
        super().__init__()
        self.network, self.detached = linear(3)[0], detached

    def forward(self, x: Tensor) -> Tensor:
        assert len(x), "asked about zero rows"
        logits: Tensor = self.network(x)
        return logits.detach() if self.detached else logits


@pytest.mark.parametrize("norm", NORMS)
def test_no_rows_missing_gradients_and_rows_at_their_goal(norm: Any) -> None:
    _, x, y = linear(3)
    assert carlini_wagner(Refusing(), x[:0], y[:0], norm=norm).x_adv.shape == (0, 9)
    hidden = carlini_wagner(Refusing(detached=True), x, y, norm=norm, **QUICK)
    assert not hidden.success.any()
    assert torch.equal(hidden.x_adv, x)
    assert torch.equal(hidden.zero_gradients, hidden.iterations)
    there = carlini_wagner(Refusing(), x, (y + 1) % 3, norm=norm, **QUICK)
    assert there.success.all()
    assert torch.equal(there.x_adv, x)
    assert (there.distance == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_an_answer_that_is_none_is_returned_and_no_success(norm: Any) -> None:
    def silent(x: Tensor) -> Tensor:
        logits = torch.stack((10 - x.sum(1), x.sum(1), 0 * x.sum(1)), 1)
        return torch.where(x[:, :1] > 0.55, torch.nan, logits)

    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    found = carlini_wagner(silent, x, y, norm=norm, **QUICK)
    assert silent(found.x_adv).isnan().any(1).all()
    assert not found.success.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(norm: Any, dtype: torch.dtype) -> None:
    model, x, _ = linear(3)
    half, x = model.to(dtype), x.to(dtype)
    found = carlini_wagner(half, x, half(x).argmax(1), norm=norm, **QUICK)
    assert found.x_adv.dtype == dtype
    assert found.x_adv.isfinite().all()
    assert found.success.double().mean() > 0.8


def test_large_logits_do_not_hide_the_way() -> None:
    # Training at T = 100 makes logits a hundred times larger: probabilities round to 0 and 1.
    model, x, y = linear(3)
    plain = carlini_wagner(model, x, y, **QUICK)
    large = carlini_wagner(lambda z: 1e3 * model(z), x, y, **{**QUICK, "initial_const": 1e-4})
    torch.testing.assert_close(large.x_adv, plain.x_adv, rtol=0, atol=1e-6)
    with_f4 = carlini_wagner(lambda z: 1e4 * model(z), x, y, loss="f4", **QUICK)
    assert with_f4.success.double().mean() < 0.5


@pytest.mark.parametrize("norm", NORMS)
def test_c_never_overflows(norm: Any) -> None:
    _, x, y = linear(3)

    def stubborn(z: Tensor) -> Tensor:
        """Class 0 always wins, and there is a gradient."""
        return torch.stack((1 + z.sum(1).tanh(), z.sum(1).tanh() - 1), 1)

    many = {"steps": 1, "searches": 60, "initial_const": 1e3}
    found = carlini_wagner(stubborn, x, 0 * y, norm=norm, **many)
    assert not found.success.any()
    assert (found.iterations == 120).all()
    assert torch.equal(found.x_adv, x)


def test_the_model_is_left_as_it_was() -> None:
    _, x, y = linear(3)
    model = nn.Sequential(nn.Linear(9, 3), nn.Dropout(0.5)).double().train()
    model[0].bias.requires_grad_(False)
    before = x.clone()
    with torch.inference_mode():
        carlini_wagner(model, x, y, steps=2, searches=1)
    assert all(module.training for module in model.modules())
    assert [w.requires_grad for w in model.parameters()] == [True, False]
    assert all(w.grad is None for w in model.parameters())
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"norm": "l1"}, "norm must be one of .*got 'l1'"),
        ({"loss": "f8"}, "loss must be one of .*got 'f8'"),
        ({"kappa": -1.0}, "kappa must be at least 0 and finite, got -1.0"),
        ({"kappa": 1.0, "loss": "f7"}, "kappa is defined for the loss f6 alone"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"searches": 0}, "searches must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"initial_const": math.inf}, "initial_const must be positive and finite, got inf"),
        ({"shrink": 1.0, "norm": "linf"}, r"shrink must be in \(0, 1\), got 1.0"),
        ({"pixels": True}, "pixels are counted under norm l0 alone, got norm 'l2'"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    model, x, y = linear(3)
    with pytest.raises(ValueError, match=message):
        CarliniWagner(**params)
    with pytest.raises(ValueError, match=message):
        carlini_wagner(model, x, y, **params)


def test_mistakes_of_the_plugin_and_of_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="targets must be one of"):
        CarliniWagner(targets="most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision must be one of"):
        CarliniWagner(precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be positive"):
        CarliniWagner(temperature=0)
    model, x, y = linear(3)
    with pytest.raises(ValueError, match="pixels=True needs x of shape"):
        carlini_wagner(model, x, y, norm="l0", pixels=True)
    with pytest.raises(ValueError, match=r"target must be in \[0, 2\]"):
        carlini_wagner(model, x, y, y + 5)


def test_the_plugin() -> None:
    assert CarliniWagner().threat((1, 8, 8)) == ThreatModel("l2")
    assert CarliniWagner(norm="linf").threat((1, 8, 8)) == ThreatModel("linf")
    assert CarliniWagner(norm="l0").threat((1, 8, 8)) == ThreatModel("l0", None, "features")
    pixels = CarliniWagner(norm="l0", pixels=True)
    assert pixels.threat((3, 8, 8)) == ThreatModel("l0", None, "pixels")
    assert CarliniWagner(kappa=5.0).confidence is None  # a contract's is a probability
    model, x, y = linear(3)
    model, x = model.float(), x.float()
    info = DataInfo("nine", (9,), 3, (0.5,), (0.3,))
    target = (y + 1) % 3
    for extra in ({}, {"precision": "float64"}, {"temperature": 100.0, "initial_const": 10.0}):
        attack = CarliniWagner(targets="random", **{**QUICK, **extra})
        found = attack.perturb(model, x, y, target, AttackContext(info))
        there = reached(model(found.x_adv), y, target)
        assert there.double().mean() > 0.9, extra
        assert found.x_adv.dtype == torch.float32
        assert found.stop_reason == ["reached" if done else "steps" for done in there.tolist()]
        again = attack.perturb(model, x, y, target, AttackContext(info, seed=9))
        assert torch.equal(again.x_adv, found.x_adv)  # nothing in it is random
