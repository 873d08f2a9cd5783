"""PGD against closed forms, FGSM, ART's trajectories, and models that hide their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.fgsm import FGSM
from attacks.kit.ball import BallNorm
from attacks.kit.losses import LOSSES, Output, reached
from attacks.peers.art_call import Call, generate
from attacks.pgd import PGD, pgd
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Sources, Subject, attack_sources
from bench.plugins.contracts import AttackContext, DataSettings
from bench.plugins.recipes import RECIPES
from bench.training.datasets import Digits
from bench.training.loop import train
from bench.training.networks import DigitsCnn

Task = tuple[nn.Module, Tensor, Tensor]
CONTEXT = AttackContext(DataInfo("linear", (7,), 4, (0.5,), (0.3,)))
NORMS: list[BallNorm] = ["linf", "l2"]


def linear(seed: int, classes: int = 4, scale: float = 1.0) -> Task:
    """Return a linear model, inputs, and the classes that it predicts."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(7, classes)
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(classes, 7, generator=generator))
        model.bias.copy_(scale * torch.randn(classes, generator=generator))
        x = torch.rand(5, 7, generator=generator)
        return model, x, model(x).argmax(1)


@pytest.fixture(scope="module")
def digits() -> Task:
    """A network that knows 8 × 8 digits, and 60 images that it gets right."""
    data = Digits().load(DataSettings())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsCnn().build(data.info)
        train(model, data.train.x, data.train.y, RECIPES["smoke"], torch.Generator().manual_seed(0))
    right = model(data.test.x).argmax(1) == data.test.y
    return model, data.test.x[right][:60], data.test.y[right][:60]


def visited(model: nn.Module, attack: Any) -> list[Tensor]:
    """Return the inputs of every query that ``attack`` makes of ``model``."""
    seen: list[Tensor] = []
    with model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone())):
        attack()
    return seen


def total_loss(output: str, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return LOSSES[output](model(x), y, None)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("output", ["deployed", "log_odds"])
def test_one_step_from_the_input_is_the_fast_gradient_method(
    output: Any, norm: BallNorm, targeted: bool
) -> None:
    model, x, y = linear(1)
    target = (y + 1) % 4 if targeted else None
    fast = FGSM(0.05, norm, output=output).perturb(model, x, y, target, CONTEXT).x_adv
    result = pgd(
        model, x, y, target, eps=0.05, norm=norm, steps=1, output=output, random_start=False,
        early_stop=False,
    )  # fmt: skip
    assert torch.allclose(result.x_adv, fast, atol=1e-6)
    assert not torch.equal(fast, x)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.9))
@pytest.mark.parametrize("output", LOSSES)
def test_the_optimum_of_a_linear_model_in_ball_and_box(
    output: Output, seed: int, eps: float
) -> None:
    # With two classes every loss grows along the difference of the weights, feature by feature.
    model, x, y = linear(seed, classes=3 if output == "dlr" else 2)
    if output == "dlr":  # a third class so far behind that the span z_1 - z_3 hardly changes
        with torch.no_grad():
            model.weight[2], model.bias[2] = 0, -1e6
        y = model(x).argmax(1)
    result = pgd(model, x, y, eps=eps, output=output, steps=10, early_stop=False)
    with torch.no_grad():
        slope = model.weight[1 - y] - model.weight[y]
        expected = torch.clamp(x + eps * slope.sign(), 0, 1)
    assert torch.allclose(result.x_adv, expected, atol=1e-6)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_the_l2_optimum_of_a_linear_model(seed: int) -> None:
    model, x, y = linear(seed, classes=2)
    x = 0.4 + 0.2 * x  # the box is out of reach
    y = model(x).argmax(1)
    result = pgd(model, x, y, eps=0.3, norm="l2", steps=30, step_size=0.3, early_stop=False)
    with torch.no_grad():
        slope = model.weight[1 - y] - model.weight[y]
        expected = x + 0.3 * slope / slope.norm(dim=1, keepdim=True)
        odds = LOSSES["log_odds"]
        best, found = (odds(model(points), y, None) for points in (expected, result.x_adv))
    assert torch.allclose(found, best, atol=1e-5)
    assert torch.allclose(result.x_adv, expected, atol=3e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_trajectory_is_arts(digits: Task, targeted: bool, norm: BallNorm) -> None:
    model, x, y = digits
    eps, step = (0.1, 0.02) if norm == "linf" else (0.2, 0.05)
    if norm == "l2":  # how to stay in ball and box at once is ours to choose: out of reach here
        model, x = nn.Sequential(_Stretched(), model), 0.25 + x / 2
    target = (y + 3) % 10 if targeted else None
    call = Call(
        "ProjectedGradientDescentPyTorch",
        {
            "norm": "inf" if norm == "linf" else 2, "eps": eps, "eps_step": step, "max_iter": 8,
            "num_random_init": 0, "batch_size": 128,
        },
    )  # fmt: skip
    context = AttackContext(DataInfo("digits", (1, 8, 8), 10, (0.5,), (0.3,)))
    theirs = generate(call, model, x, y, target, context)
    ours = visited(
        model,
        lambda: pgd(
            model, x, y, target, eps=eps, norm=norm, steps=8, step_size=step, output="deployed",
            random_start=False, early_stop=False,
        ),
    )[-1]  # fmt: skip
    same = (ours - theirs).flatten(1).abs().amax(1) < 1e-5
    assert same.float().mean() > 0.95
    assert (ours - x).abs().max() > 0.05


class _Stretched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x - 0.25)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_no_weaker_than_arts(digits: Task, norm: BallNorm) -> None:
    model, x, y = digits
    eps = 0.12 if norm == "linf" else 0.7
    call = Call(
        "ProjectedGradientDescentPyTorch",
        {
            "norm": "inf" if norm == "linf" else 2, "eps": eps, "eps_step": eps / 4, "max_iter": 15,
            "num_random_init": 1, "batch_size": 128,
        },
    )  # fmt: skip
    context = AttackContext(DataInfo("digits", (1, 8, 8), 10, (0.5,), (0.3,)))
    theirs = reached(model(generate(call, model, x, y, None, context)), y, None)
    ours = pgd(model, x, y, eps=eps, norm=norm, steps=15, step_size=eps / 4, output="deployed")
    assert torch.equal(ours.success, reached(model(ours.x_adv), y, None))
    assert 0.2 < float(theirs.float().mean()) < 0.95  # the comparison can tell
    # A row is one Bernoulli draw: three standard deviations of the rows that only ART breaks.
    assert int((theirs & ~ours.success).sum()) <= 3


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.integers(1, 6), st.integers(1, 3))
@pytest.mark.parametrize("norm", NORMS)
def test_ball_and_box(norm: BallNorm, seed: int, eps: float, steps: int, restarts: int) -> None:
    model, x, y = linear(seed)
    result = pgd(
        model, x, y, (y + 1) % 4, eps=eps, norm=norm, steps=steps, restarts=restarts, seed=seed
    )
    length = (result.x_adv.double() - x.double()).norm(torch.inf if norm == "linf" else 2, dim=1)
    assert length.max() <= eps + 1e-6
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    assert torch.equal(result.success, reached(model(result.x_adv), y, (y + 1) % 4))
    assert bool((result.iterations <= steps * restarts).all())


def test_neither_batch_nor_chunk_nor_order_matters(digits: Task) -> None:
    model, x, y = digits
    ids = torch.arange(100, 160)

    def attack(rows: Tensor, chunk: int | None = None) -> Any:
        return pgd(
            model, x[rows], y[rows], eps=0.12, steps=8, restarts=2, seed=3, streams=ids[rows],
            chunk=chunk,
        )  # fmt: skip

    whole = attack(torch.arange(60))
    assert 0 < int(whole.success.sum()) < 60
    for rows, chunk in ((torch.arange(60), 7), (torch.tensor([41, 3, 17]), None)):
        part = attack(rows, chunk)
        assert torch.allclose(part.x_adv, whole.x_adv[rows], atol=1e-5)
        assert torch.equal(part.iterations, whole.iterations[rows])
    assert torch.equal(attack(torch.arange(60)).x_adv, whole.x_adv)
    other = pgd(model, x, y, eps=0.12, steps=8, restarts=2, seed=4, streams=ids)
    assert not torch.equal(other.x_adv, whole.x_adv)


def test_rows_leave_the_batch_once_they_succeed(digits: Task) -> None:
    model, x, y = digits
    found: list[Any] = []
    seen = visited(model, lambda: found.append(pgd(model, x, y, eps=0.12, steps=8)))
    sizes = [len(batch) for batch in seen if len(batch) > 1]
    assert sum(sizes) == int(found[0].iterations.sum()) + 60  # a row looks once more than it steps
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] == 60


def test_restarts_attack_the_rest_and_keep_what_is_won(digits: Task) -> None:
    model, x, y = digits
    once, thrice = (pgd(model, x, y, eps=0.1, steps=4, restarts=n) for n in (1, 3))
    assert torch.equal(once.x_adv[once.success], thrice.x_adv[once.success])
    assert int(thrice.success.sum()) > int(once.success.sum())
    assert thrice.iterations[~thrice.success].eq(12).all()
    still = ~thrice.success
    before, after = (
        total_loss("log_odds", model, r.x_adv[still], y[still]) for r in (once, thrice)
    )
    assert bool((after >= before).all())


def test_the_best_of_all_visited_points_is_kept(digits: Task) -> None:
    model, x, y = digits
    found: list[Any] = []
    # A step so long that the loss goes up and down.
    seen = visited(
        model,
        lambda: found.append(
            pgd(model, x, y, eps=0.1, step_size=0.19, steps=6, early_stop=False, output="margin")
        ),
    )
    losses = torch.stack([total_loss("margin", model, b, y) for b in seen if len(b) == 60])
    kept = total_loss("margin", model, found[0].x_adv, y)
    assert torch.allclose(kept, losses.amax(0), atol=1e-5)
    assert not torch.allclose(kept, losses[-1], atol=1e-5)


def test_without_early_stop_it_climbs_further(digits: Task) -> None:
    model, x, y = digits
    short, full = (pgd(model, x, y, eps=0.2, steps=10, early_stop=stop) for stop in (True, False))
    assert full.iterations.eq(10).all()
    assert torch.equal(full.success, reached(model(full.x_adv), y, None))
    assert bool((full.success >= short.success).all())
    won = short.success
    gain = total_loss("log_odds", model, full.x_adv[won], y[won]) - total_loss(
        "log_odds", model, short.x_adv[won], y[won]
    )
    assert float(gain.median()) > 0.5


class Hidden(nn.Module):
    """A network that offers no gradient, in one of four ways."""

    def __init__(self, network: nn.Module, how: str) -> None:
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detached":
            return self.network(x).detach()
        if self.how == "no_grad":
            with torch.no_grad():
                return self.network(x)
        if self.how == "unrelated":
            return self.network(x).detach() * torch.ones(1, requires_grad=True)
        return self.network(x) + torch.nan * self.network(x).sub(self.network(x)).abs().sqrt()


@pytest.mark.parametrize("how", ["detached", "no_grad", "unrelated"])
def test_a_missing_gradient_counts_as_zero_and_the_start_still_acts(how: str) -> None:
    model, x, y = linear(2)
    hidden = Hidden(model, how)
    result = pgd(hidden, x, y, eps=0.05, steps=3, restarts=2)
    still = ~result.success
    assert still.any()
    assert torch.equal(result.zero_gradients, result.iterations)
    assert result.zero_gradients[still].eq(6).all()
    assert (result.x_adv != x).flatten(1).any(1).all()
    # The start of the worse of two restarts is not kept.
    starts = visited(hidden, lambda: pgd(hidden, x, y, eps=0.05, steps=3, restarts=2))
    best = torch.stack(
        [total_loss("log_odds", model, s, y)[still] for s in starts if len(s) == len(x)]
    ).amax(0)
    kept = total_loss("log_odds", model, result.x_adv, y)[still]
    assert bool((kept >= best - 1e-6).all())


def test_only_rows_without_gradient_are_counted(digits: Task) -> None:
    model, x, y = digits
    saturated = nn.Sequential(model, nn.Flatten(), _Times(100.0))
    naive = pgd(saturated, x, y, eps=0.05, steps=3, output="deployed", random_start=False)
    odds = pgd(saturated, x, y, eps=0.05, steps=3, output="log_odds", random_start=False)
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(saturated(leaf), y, reduction="sum").backward()
    assert leaf.grad is not None
    zero = leaf.grad.flatten(1).eq(0).all(1)
    assert 0 < int(zero.sum()) < 60
    assert torch.equal(naive.zero_gradients == 3, zero)
    assert odds.zero_gradients.eq(0).all()
    assert torch.equal(naive.x_adv[zero], x[zero])


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return z * self.factor


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_gradient_is_no_obstacle(scale: float) -> None:
    model, x, y = linear(3, scale=scale)
    plain, _, _ = linear(3)
    for norm in NORMS:
        found = pgd(model, x, y, eps=0.1, norm=norm, output="margin", steps=5, early_stop=False)
        expected = pgd(plain, x, y, eps=0.1, norm=norm, output="margin", steps=5, early_stop=False)
        assert torch.allclose(found.x_adv, expected.x_adv, atol=1e-5)


class _Crash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("no way back")


def test_a_crash_in_the_models_backward_is_not_caught() -> None:
    model, x, y = linear(4)

    class Crashing(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return _Crash.apply(model(x))

    with pytest.raises(RuntimeError, match="no way back"):
        pgd(Crashing(), x, y, eps=0.1)


def test_nothing_of_the_model_is_left_changed(digits: Task) -> None:
    _, x, y = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    model[1].bias.requires_grad_(False)
    kept = [w.clone() for w in model.parameters()]
    with torch.no_grad():  # as a caller may stand
        result = pgd(model, x, y, eps=0.1, steps=2)
    assert all(module.training for module in model.modules())
    assert [w.requires_grad for w in model.parameters()] == [True, False]
    assert all(w.grad is None for w in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    # Dropout is off inside: the same call gives the same result, and a training step goes on.
    again = pgd(model, x, y, eps=0.1, steps=2)
    assert torch.equal(result.x_adv, again.x_adv)
    assert not result.x_adv.requires_grad
    model(again.x_adv).sum().backward()
    assert model[1].weight.grad is not None


def test_a_target_is_reached(digits: Task) -> None:
    model, x, y = digits
    target = (y + 1) % 10
    for output in LOSSES:
        result = pgd(model, x, y, target, eps=0.4, steps=15, output=output)  # type: ignore[arg-type]
        assert result.success.float().mean() > 0.8
        assert torch.equal(result.success, reached(model(result.x_adv), y, target))


def test_no_rows_and_float64() -> None:
    model, x, y = linear(5)
    assert pgd(model, x[:0], y[:0], eps=0.1).x_adv.shape == (0, 7)
    double = pgd(model.double(), x.double(), y, eps=0.1)
    assert double.x_adv.dtype == torch.float64


@pytest.mark.parametrize("adaptive", [True, False])
def test_adaptive_says_which_model_is_differentiated(adaptive: bool) -> None:
    model, x, y = linear(6)
    hidden = Hidden(model, "detached")
    attack = PGD(0.6, steps=5, random_start=False, adaptive=adaptive)
    sources = Sources(torch.arange(5), x, y)
    evidence = attack_sources(Subject(hidden, surrogate=model), attack, sources, CONTEXT)
    assert bool(evidence.records["success"].any()) == adaptive
    attacked = evidence.records[evidence.records["status"] == "attacked"]
    assert set(attacked["stop_reason"]) == ({"reached"} if adaptive else {"budget"})
    assert evidence.records["zero_gradients"].eq(0).all() == adaptive


def test_the_plugin_gives_each_sample_its_own_stream() -> None:
    model, x, y = linear(7)
    twice = Sources(torch.tensor([8, 3, 8]), x[[0, 1, 0]], y[[0, 1, 0]])
    found = attack_sources(Hidden(model, "detached"), PGD(0.01), twice, CONTEXT).x_adv
    alone = Sources(torch.tensor([8]), x[:1], y[:1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(
        attack_sources(Hidden(model, "detached"), PGD(0.01), alone, CONTEXT).x_adv[0], found[0]
    )
    assert PGD(2.0, "l2").threat((7,)) == ThreatModel("l2", 2.0)
    assert PGD(targets="random").targeted


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"eps": 1.5}, r"eps must be in \(0, 1\], got 1.5"),
    ({"norm": "l1"}, "norm must be one of .*got 'l1'"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ({"step_size": -0.1}, "step_size must be positive and finite, got -0.1"),
    ({"step_size": float("inf")}, "step_size must be positive"),
    ({"output": "probs"}, "output must be one of .*'deployed'.*got 'probs'"),
    ({"chunk": 0}, "chunk must be at least 1"),
]


@pytest.mark.parametrize(
    ("params", "message"), [*MISTAKES, ({"targets": "most"}, "targets must be one of")]
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**params)
    if "targets" not in params:
        model, x, y = linear(0)
        with pytest.raises(ValueError, match=message):
            pgd(model, x, y, **{"eps": 0.1, **params})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(5, 7, dtype=torch.int64)}, TypeError, "x must be floating-point"),
        ({"x": torch.full((5, 7), 2.0)}, ValueError, r"x must lie in \[0, 1\].*got values in \[2"),
        ({"x": torch.full((5, 7), torch.nan)}, ValueError, r"x must lie in \[0, 1\], without NaN"),
        ({"x": torch.zeros(5)}, ValueError, r"x must have shape \(batch, \*shape\)"),
        ({"y": torch.zeros(4, dtype=torch.int64)}, ValueError, r"y must have shape \(5,\)"),
        ({"y": torch.zeros(5)}, TypeError, "y must be integers, got torch.float32"),
        ({"target": torch.full((5,), 9)}, ValueError, r"must be in \[0, 3\]"),
        ({"model": nn.Flatten(0)}, ValueError, "model must return logits of shape"),
    ],
)
def test_inputs_are_checked(change: dict[str, Any], error: type[Exception], message: str) -> None:
    names = ("model", "x", "y")
    given = {**dict(zip(names, linear(0), strict=True)), **change}
    with pytest.raises(error, match=message):
        pgd(**given, eps=0.1)


def test_dlr_on_two_classes_names_the_way_out() -> None:
    model, x, y = linear(0, classes=2)
    with pytest.raises(ValueError, match="the model has 2: take 'margin'"):
        pgd(model, x, y, eps=0.1, output="dlr")


def test_a_goal_of_confidence_is_judged_by_the_top_probability() -> None:
    model, x, y = linear(5, classes=3)
    sources = Sources(torch.arange(len(x)), x, y)
    info = DataInfo("linear", tuple(x.shape[1:]), 3, (0.0,), (1.0,))
    attack = PGD(eps=0.3, confidence=0.6)
    found = attack_sources(model, attack, sources, AttackContext(info)).records
    attacked = found[found["status"] == "attacked"]
    assert attacked["success"].any()
    assert (attacked["success"] == (attacked["adversarial_confidence"] < 0.6)).all()
    before = attacked.loc[attacked["success"], "clean_confidence"]
    assert (before > attacked.loc[attacked["success"], "adversarial_confidence"]).any()
    # No class of three can lead with less than a third.
    never = attack_sources(model, PGD(eps=0.3, confidence=0.3), sources, AttackContext(info))
    assert not never.records["success"].any()
    with pytest.raises(ValueError, match="confidence must be in"):
        PGD(confidence=0.0)
    with pytest.raises(ValueError, match="without a target"):
        PGD(confidence=0.5, targets="all")
