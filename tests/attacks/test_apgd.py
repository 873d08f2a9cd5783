"""APGD against closed forms, torchattacks and ART, and models that are hard to ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.apgd import APGD, apgd, checkpoints
from attacks.kit.ball import BallNorm
from attacks.kit.losses import LOSSES, reached
from attacks.peers.art_call import Call, generate
from attacks.pgd import pgd
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Sources, Subject, attack_sources
from bench.plugins.contracts import AttackContext, DataSettings
from bench.plugins.recipes import RECIPES
from bench.training.datasets import Digits
from bench.training.loop import train
from bench.training.networks import DigitsCnn

Task = tuple[nn.Module, Tensor, Tensor]
NORMS: list[BallNorm] = ["linf", "l2"]
BUDGET = {"linf": 0.1, "l2": 0.6}
CONTEXT = AttackContext(DataInfo("linear", (7,), 4, (0.5,), (0.3,)))


class Refusing(nn.Module):
    """A model that cannot answer for no rows, as many with a ``view(len(x), -1)`` cannot."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        assert len(x), "asked about zero rows"
        return self.network(x)


def linear(seed: int, classes: int = 4, room: float = 1.0) -> Task:
    """Return a linear model, inputs in a box of width ``room``, and the classes it predicts."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(7, classes).requires_grad_(False)
    model.weight.copy_(torch.randn(classes, 7, generator=generator))
    model.bias.copy_(torch.randn(classes, generator=generator))
    x = 0.5 + room * (torch.rand(5, 7, generator=generator) - 0.5)
    return Refusing(model), x, model(x).argmax(1)


@pytest.fixture(scope="module")
def digits() -> Task:
    """A network that knows 8 × 8 digits, and 80 images that it gets right."""
    data = Digits().load(DataSettings())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsCnn().build(data.info)
        train(model, data.train.x, data.train.y, RECIPES["smoke"], torch.Generator().manual_seed(0))
    right = model(data.test.x).argmax(1) == data.test.y
    return Refusing(model), data.test.x[right][:80], data.test.y[right][:80]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_breaks_exactly_beyond_its_nearest_adversarial(
    norm: BallNorm, seed: int
) -> None:
    model, x, y = linear(seed, classes=2, room=0.1)  # the box is out of reach
    slope = model.network.weight[1 - y] - model.network.weight[y]
    gap = -(model(x).gather(1, 1 - y[:, None]) - model(x).gather(1, y[:, None])).squeeze(1)
    distance = gap / slope.norm(1 if norm == "linf" else 2, dim=1)
    for row in range(len(x)):
        nearest = float(distance[row])
        if not 1e-3 < nearest < 0.4:
            continue
        for share in (0.99, 1.01):
            found = apgd(model, x[[row]], y[[row]], eps=share * nearest, norm=norm, steps=50)
            assert bool(found.success) == (share > 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("output", LOSSES)
def test_the_point_kept_is_the_nearest_to_the_goal(norm: BallNorm, output: Any) -> None:
    model, x, y = linear(3, classes=2, room=0.1)
    slope = model.network.weight[1 - y] - model.network.weight[y]
    best = slope.sign() if norm == "linf" else slope / slope.norm(dim=1, keepdim=True)
    found = apgd(model, x, y, eps=0.005, norm=norm, output=output, steps=60)
    still = ~found.success
    assert still.any()
    assert torch.allclose(found.x_adv[still], (x + 0.005 * best)[still], atol=1e-4)


def test_the_checkpoints_are_the_papers() -> None:
    # p_1 = 0.22 and p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), section 3
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(1)) == [1]
    assert sum(checkpoints(7).values()) <= 7


def test_a_step_that_overshoots_is_halved_until_it_pays() -> None:
    class Ridge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            short = -(x - 0.537).abs().sum(1)  # a ridge in the ball, that no eps / 2^k hits
            return torch.stack((torch.zeros_like(short), short - 1e-4), 1)

    x, y = torch.full((1, 3), 0.5), torch.zeros(1, dtype=torch.int64)
    found = apgd(Ridge(), x, y, eps=0.1, steps=100, output="margin")
    fixed = pgd(Ridge(), x, y, eps=0.1, steps=100, step_size=0.2, output="margin")
    assert (found.x_adv - 0.537).abs().max() < 2e-3
    assert (fixed.x_adv - 0.537).abs().max() > 1e-2


def no_weaker(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether their wins over ours are within two deviations of a fair coin's."""
    a, b = torch.cat(ours), torch.cat(theirs)
    assert 0.1 < float(b.float().mean()) < 0.95  # the comparison can tell
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    return lost - won <= 2 * (won + lost) ** 0.5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_it_is_no_weaker_than_torchattacks(digits: Task, norm: BallNorm, loss: str) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits
    eps, name = BUDGET[norm], {"linf": "Linf", "l2": "L2"}[norm]
    ours, theirs = [], []
    for seed in range(3):
        peer: dict[str, Any] = {"norm": name, "eps": eps, "steps": 15, "seed": seed}
        params: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 15, "seed": seed}
        with torch.random.fork_rng(devices=[]):
            if loss == "targeted":
                x_adv = torchattacks.APGDT(model, **peer)(x, y)
                found = apgd(model, x, y, **params, runners_up=9)
            else:
                x_adv = torchattacks.APGD(model, **peer, loss=loss)(x, y)
                output = {"ce": "deployed", "dlr": "dlr"}[loss]
                found = apgd(model, x, y, **params, output=output)
        assert torch.equal(found.success, reached(model(found.x_adv), y, None))
        ours.append(found.success)
        theirs.append(reached(model(x_adv).detach(), y, None))
    assert no_weaker(ours, theirs)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_no_weaker_than_arts(digits: Task, norm: BallNorm) -> None:
    model, x, y = digits
    params: dict[str, Any] = {
        "norm": "inf" if norm == "linf" else 2, "eps": BUDGET[norm], "eps_step": 2 * BUDGET[norm],
        "max_iter": 15, "nb_random_init": 1, "batch_size": 128, "loss_type": "cross_entropy",
    }  # fmt: skip
    context = AttackContext(DataInfo("digits", (1, 8, 8), 10, (0.5,), (0.3,)))
    call = Call("AutoProjectedGradientDescent", params)
    theirs = reached(model(generate(call, model, x, y, None, context)), y, None)
    ours = apgd(model, x, y, eps=BUDGET[norm], norm=norm, steps=15, output="deployed")
    assert no_weaker([ours.success], [theirs])


def test_the_runners_up_are_aimed_at_one_after_another(digits: Task) -> None:
    model, x, y = digits
    away, one, three, more = (
        apgd(model, x, y, eps=0.08, steps=10, runners_up=n) for n in (0, 1, 3, 99)
    )
    assert bool((three.success >= one.success).all())
    assert int(more.success.sum()) >= int(three.success.sum()) > 0
    assert torch.equal(three.x_adv[one.success], one.x_adv[one.success])
    for found, climbs in ((away, 1), (one, 1), (three, 3), (more, 9)):
        assert found.iterations[~found.success].eq(10 * climbs).all()
    assert not torch.equal(away.x_adv, one.x_adv)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("runners_up", [0, 5])
@pytest.mark.parametrize("output", LOSSES)
def test_few_classes(output: Any, runners_up: int, classes: int) -> None:
    model, x, y = linear(1, classes)
    found = apgd(model, x, y, eps=0.9, steps=20, output=output, runners_up=runners_up)
    assert found.success.any()
    assert torch.equal(found.success, reached(model(found.x_adv), y, None))
    target = (y + 1) % classes
    found = apgd(model, x, y, target, eps=0.9, steps=20, output=output)
    assert torch.equal(found.success, reached(model(found.x_adv), y, target))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.integers(1, 30), st.integers(0, 3))
@pytest.mark.parametrize("norm", NORMS)
def test_ball_and_box(norm: BallNorm, seed: int, eps: float, steps: int, runners_up: int) -> None:
    model, x, y = linear(seed)
    found = apgd(
        model, x, y, eps=eps, norm=norm, steps=steps, restarts=2, runners_up=runners_up, seed=seed
    )
    length = (found.x_adv.double() - x.double()).norm(torch.inf if norm == "linf" else 2, dim=1)
    assert length.max() <= eps + 1e-6
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    assert torch.equal(found.success, reached(model(found.x_adv), y, None))


@pytest.mark.parametrize("norm", NORMS)
def test_neither_batch_nor_chunk_nor_order_matters(digits: Task, norm: BallNorm) -> None:
    model, x, y = digits
    model, x, ids = model.double(), x.double(), torch.arange(100, 180)

    def attack(rows: Tensor, chunk: int | None = None, seed: int = 3) -> Any:
        return apgd(
            model, x[rows], y[rows], eps=BUDGET[norm], norm=norm, steps=12, restarts=2, seed=seed,
            streams=ids[rows], chunk=chunk,
        )  # fmt: skip

    try:
        whole = attack(torch.arange(80))
        assert 0 < int(whole.success.sum()) < 80
        for rows, chunk in ((torch.arange(80), 7), (torch.tensor([41, 3, 17]), None)):
            part = attack(rows, chunk)
            assert torch.allclose(part.x_adv, whole.x_adv[rows], atol=1e-6)
            assert torch.equal(part.iterations, whole.iterations[rows])
        assert torch.equal(attack(torch.arange(80)).x_adv, whole.x_adv)
        assert not torch.equal(attack(torch.arange(80), seed=4).x_adv, whole.x_adv)
    finally:
        model.float()


def test_rows_leave_the_batch_once_they_succeed(digits: Task) -> None:
    model, x, y = digits
    sizes: list[int] = []
    with model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        found = apgd(model, x, y, eps=0.1, steps=8)
    sizes = [size for size in sizes if size > 1]
    assert sum(sizes) == int(found.iterations.sum()) + 80  # a row looks once more than it steps
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] == 80


def test_all_rows_may_leave_and_there_may_be_none() -> None:
    model, x, y = linear(4)
    found = apgd(model, x, (y + 1) % 4, eps=0.01, restarts=3, runners_up=2)  # wrong from the start
    assert found.success.all()
    assert found.iterations.eq(0).all()
    for runners_up in (0, 2):
        empty = apgd(model, x[:0], y[:0], eps=0.1, runners_up=runners_up)
        assert empty.x_adv.shape == (0, 7)
        assert empty.success.shape == empty.iterations.shape == (0,)


class Hidden(nn.Module):
    """A network whose gradient is missing, unrelated, or NaN in some features."""

    def __init__(self, network: nn.Module, how: str) -> None:
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detached":
            return self.network(x).detach()
        if self.how == "unrelated":
            return self.network(x).detach() * torch.ones(1, requires_grad=True)
        first = x[:, :1]  # sqrt(0) has an infinite slope, and times 0 a NaN
        return self.network(x) + 0 * (first - first.detach()).abs().sqrt()


@pytest.mark.parametrize("how", ["detached", "unrelated"])
def test_a_missing_gradient_counts_as_zero_and_the_start_still_acts(how: str) -> None:
    model, x, y = linear(2)
    found = apgd(Hidden(model, how), x, y, eps=0.05, steps=3, restarts=2)
    still = ~found.success
    assert still.any()
    assert torch.equal(found.zero_gradients, found.iterations)
    assert found.zero_gradients[still].eq(6).all()
    assert (found.x_adv != x).any(1).all()


def test_nan_entries_of_a_gradient_are_zero() -> None:
    model, x, y = linear(2)
    found = apgd(Hidden(model, "nan"), x, y, eps=0.4, steps=30)
    assert found.success.any()
    assert found.zero_gradients.eq(0).all()
    assert found.x_adv.isfinite().all()


def test_answers_that_are_nan_are_no_success() -> None:
    model, x, y = linear(2)

    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x).masked_fill((x[:, :1] > 0.5), torch.nan)

    found = apgd(Nan(), x, y, eps=0.3, steps=10, restarts=2)
    assert torch.equal(found.success, reached(Nan()(found.x_adv), y, None))
    assert found.x_adv.isfinite().all()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("norm", NORMS)
def test_dlr_is_blind_to_the_scale_of_logits(digits: Task, norm: BallNorm, scale: float) -> None:
    model, x, y = digits

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scale * model(x).double()

    found, plain = (apgd(m, x, y, eps=BUDGET[norm], norm=norm, steps=10) for m in (Scaled(), model))
    if scale > 1:  # below, DLR's 1e-12 flattens it
        assert (found.success == plain.success).float().mean() > 0.95
    assert torch.equal(found.success, reached(Scaled()(found.x_adv), y, None))


def test_nothing_of_the_model_is_left_changed(digits: Task) -> None:
    _, x, y = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    model[1].bias.requires_grad_(False)
    with torch.no_grad():  # as a caller may stand
        found = apgd(model, x, y, eps=0.1, steps=2)
    assert all(module.training for module in model.modules())
    assert [w.requires_grad for w in model.parameters()] == [True, False]
    assert all(w.grad is None for w in model.parameters())
    assert torch.equal(found.x_adv, apgd(model, x, y, eps=0.1, steps=2).x_adv)
    assert not found.x_adv.requires_grad


def test_a_target_is_reached_and_images_keep_shape_and_dtype(digits: Task) -> None:
    model, x, y = digits
    target = (y + 1) % 10
    for output in LOSSES:
        found = apgd(model, x, y, target, eps=0.4, steps=15, output=output)  # type: ignore[arg-type]
        assert found.success.float().mean() > 0.8
        assert found.x_adv.shape == x.shape
        assert torch.equal(found.success, reached(model(found.x_adv), y, target))
    line, inputs, labels = linear(5)
    assert apgd(line.double(), inputs.double(), labels, eps=0.1).x_adv.dtype == torch.float64


@pytest.mark.parametrize("adaptive", [True, False])
def test_adaptive_says_which_model_is_differentiated(adaptive: bool) -> None:
    model, x, y = linear(6)
    attack = APGD(0.6, steps=5, adaptive=adaptive)
    sources = Sources(torch.arange(5), x, y)
    evidence = attack_sources(
        Subject(Hidden(model, "detached"), surrogate=model), attack, sources, CONTEXT
    )
    assert evidence.records["zero_gradients"].eq(0).all() == adaptive
    assert set(evidence.records["stop_reason"]) <= {"reached", "budget"}
    assert APGD(2.0, "l2").threat((7,)) == ThreatModel("l2", 2.0)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"eps": 1.5}, r"eps must be in \(0, 1\], got 1.5"),
    ({"norm": "l1"}, "norm must be one of .*got 'l1'"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ({"output": "probs"}, "output must be one of .*'deployed'.*got 'probs'"),
    ({"runners_up": -1}, "runners_up must be at least 0, got -1"),
    ({"chunk": 0}, "chunk must be at least 1"),
]


@pytest.mark.parametrize(("params", "message"), MISTAKES)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    model, x, y = linear(0)
    with pytest.raises(ValueError, match=message):
        APGD(**params)
    with pytest.raises(ValueError, match=message):
        apgd(model, x, y, **{"eps": 0.1, **params})


def test_targets_and_inputs_are_checked() -> None:
    model, x, y = linear(0)
    with pytest.raises(ValueError, match="targets must be one of"):
        APGD(targets="most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runners_up aims at classes of its own"):
        APGD(runners_up=3, targets="all")
    with pytest.raises(ValueError, match="runners_up aims at classes of its own"):
        apgd(model, x, y, y, eps=0.1, runners_up=1)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        apgd(model, x + 1, y, eps=0.1)
    with pytest.raises(ValueError, match=r"must be in \[0, 3\]"):
        apgd(model, x, y + 9, eps=0.1)
