"""Square against closed forms, ART and torchattacks, on images and on lines of features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.kit.ball import BallNorm
from attacks.kit.losses import reached
from attacks.peers.art_call import Call, generate
from attacks.square import Places, Square, hills, share, square
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Sources, attack_sources
from bench.plugins.contracts import AttackContext, DataSettings
from bench.plugins.recipes import RECIPES
from bench.training.datasets import Digits
from bench.training.loop import train
from bench.training.networks import DigitsCnn

Task = tuple[nn.Module, Tensor, Tensor]
NORMS: list[BallNorm] = ["linf", "l2"]
BUDGET = {"linf": 0.12, "l2": 0.7}
INFO = DataInfo("digits", (1, 8, 8), 10, (0.5,), (0.3,))


class Refusing(nn.Module):
    """A model that cannot answer for no rows, and has no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        assert len(x), "asked about zero rows"
        return self.network(x).detach()


def linear(seed: int, classes: int = 4, shape: tuple[int, ...] = (7,)) -> Task:
    generator = torch.Generator().manual_seed(seed)
    features = int(torch.tensor(shape).prod())
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).requires_grad_(False)
    model[1].weight.copy_(torch.randn(classes, features, generator=generator))
    model[1].bias.copy_(torch.randn(classes, generator=generator))
    x = torch.rand(5, *shape, generator=generator)
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


def test_the_schedule_is_the_papers_rescaled() -> None:
    halved = [10, 50, 200, 1000, 2000, 4000, 6000, 8000]
    for total in (10_000, 1_000_000):
        for count, at in enumerate(halved):
            assert share(at * total // 10_000, total, 0.8) == 0.8 / 2**count
            assert share(at * total // 10_000 + total // 10_000, total, 0.8) == 0.4 / 2**count
    sides = [Places(3, 32, 32).window(p, "linf")[0] for p in (0.8, 0.1, 0.0001)]
    assert sides == [29, 10, 1]
    assert Places(1, 1, 30).window(0.1, "linf") == (1, 3)
    assert Places(1, 8, 8).window(0.001, "l2") == (3, 3)


@pytest.mark.parametrize("size", [(5, 5), (3, 3), (1, 7), (4, 4), (1, 1)])
def test_hills_are_opposite_and_highest_in_the_middle(size: tuple[int, int]) -> None:
    both = hills(size, torch.zeros(1, dtype=torch.float64))
    assert both.shape == size
    assert torch.allclose(both.norm(), torch.ones_like(both.norm()))
    flat = both.flatten()
    if len(flat) > 1:
        assert float(both.max()) > 0 > float(both.min())
    if size == (5, 5):  # by hand: sums of 1 / k^2, ring by ring
        lower = both[2:] / both[2:].min()
        outer, inner, top = 1 / 9, 1 / 4 + 1 / 9, 1 + 1 / 4 + 1 / 9
        middle = torch.tensor([outer, inner, top, inner, outer], dtype=torch.float64) / top
        assert torch.allclose(lower[1, 1:4], torch.tensor([inner, top, inner]).double() / top)
        assert torch.allclose(lower[1], middle)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 3, 3), (2, 2, 3)])
def test_a_linear_model_breaks_exactly_beyond_its_nearest_adversarial(
    shape: tuple[int, ...], seed: int
) -> None:
    # Under linf the best point is a corner of the ball, which a search of few features finds.
    model, x, y = linear(seed, 2, shape)
    x = 0.45 + x / 10  # the box is out of reach
    y = model(x).argmax(1)
    weight = model.network[1].weight
    logits = model(x)
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).squeeze(1)
    distance = gap / (weight[1] - weight[0]).abs().sum()
    for row in range(len(x)):
        nearest = float(distance[row])
        if not 1e-3 < nearest < 0.4:
            continue
        for times in (0.99, 1.01):
            found = square(model, x[[row]], y[[row]], eps=times * nearest, queries=400)
            assert bool(found.success) == (times > 1)


@pytest.mark.parametrize("shape", [(9,), (1, 5, 5)])
def test_l2_finds_most_of_what_the_ball_offers(shape: tuple[int, ...]) -> None:
    model, x, y = linear(3, 2, shape)
    x = 0.45 + x / 10
    y = model(x).argmax(1)
    weight, logits = model.network[1].weight, model(x)
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).squeeze(1)
    distance = gap / (weight[1] - weight[0]).norm()
    for row in range(len(x)):
        nearest = float(distance[row])
        if not 1e-3 < nearest < 0.3:
            continue
        for times in (0.99, 1.3):
            found = square(model, x[[row]], y[[row]], eps=times * nearest, norm="l2", queries=400)
            assert bool(found.success) == (times > 1)


@pytest.mark.parametrize(
    # ART's tiles of l2 divide by zero on images of less than 10 pixels a side.
    ("peer", "norm"),
    [("torchattacks", "linf"), ("torchattacks", "l2"), ("art", "linf")],
)
def test_it_is_no_weaker_than_its_peers(digits: Task, peer: str, norm: BallNorm) -> None:
    model, x, y = digits
    eps, queries = BUDGET[norm], 120
    ours = square(model, x, y, eps=eps, norm=norm, queries=queries)
    if peer == "art":
        params = {"eps": eps, "max_iter": queries, "nb_restarts": 1, "batch_size": 128}
        call = Call("SquareAttack", {**params, "norm": "inf"})
        x_adv = generate(call, model, x, y, None, AttackContext(INFO))
    else:
        torchattacks = pytest.importorskip("torchattacks")
        name = {"linf": "Linf", "l2": "L2"}[norm]
        with torch.random.fork_rng(devices=[]):
            x_adv = torchattacks.Square(model, norm=name, eps=eps, n_queries=queries)(x, y)
    theirs = reached(model(x_adv), y, None)
    assert torch.equal(ours.success, reached(model(ours.x_adv), y, None))
    assert 0.1 < float(theirs.float().mean()) < 0.95  # the comparison can tell
    won, lost = int((ours.success & ~theirs).sum()), int((theirs & ~ours.success).sum())
    assert lost - won <= 2 * (won + lost) ** 0.5  # two deviations of a fair coin


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.integers(1, 30))
@pytest.mark.parametrize("shape", [(7,), (1,), (2, 3), (3, 4, 5), (1, 1, 1), (1, 1, 6)])
@pytest.mark.parametrize("norm", NORMS)
def test_ball_and_box(
    norm: BallNorm, shape: tuple[int, ...], seed: int, eps: float, queries: int
) -> None:
    model, x, y = linear(seed, 3, shape)
    found = square(model, x, y, eps=eps, norm=norm, queries=queries, seed=seed)
    change = (found.x_adv.double() - x.double()).flatten(1)
    assert change.norm(torch.inf if norm == "linf" else 2, dim=1).max() <= eps + 1e-6
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    assert torch.equal(found.success, reached(model(found.x_adv), y, None))
    assert found.iterations[~found.success].eq(queries).all()


@pytest.mark.parametrize("norm", NORMS)
def test_neither_batch_nor_chunk_nor_order_matters(digits: Task, norm: BallNorm) -> None:
    model, x, y = digits
    ids = torch.arange(100, 180)

    def attack(rows: Tensor, chunk: int | None = None, seed: int = 3) -> Any:
        return square(
            model, x[rows], y[rows], eps=BUDGET[norm], norm=norm, queries=150, seed=seed,
            streams=ids[rows], chunk=chunk,
        )  # fmt: skip

    whole = attack(torch.arange(80))
    assert 0 < int(whole.success.sum()) < 80
    for rows, chunk in ((torch.arange(80), 7), (torch.tensor([41, 3, 17]), None)):
        part = attack(rows, chunk)
        assert torch.allclose(part.x_adv, whole.x_adv[rows], atol=1e-5)
        assert torch.equal(part.iterations, whole.iterations[rows])
    assert not torch.equal(attack(torch.arange(80), seed=4).x_adv, whole.x_adv)


@pytest.mark.parametrize("norm", NORMS)
def test_queries_are_counted_and_never_wasted_on_rows_that_are_done(
    digits: Task, norm: BallNorm
) -> None:
    model, x, y = digits
    seen: list[Tensor] = []
    with model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())):
        found = square(model, x, y, eps=BUDGET[norm], norm=norm, queries=100)
    sizes = [len(batch) for batch in seen if len(batch) > 1]
    assert sum(sizes) == int(found.iterations.sum())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] == 80
    alone = square(model, x[:1], y[:1], eps=0.001, norm=norm, queries=9)
    assert int(alone.iterations) == 9


def test_no_query_repeats_the_best_point() -> None:
    model, x, y = linear(2, shape=(1, 4, 4))
    seen: list[Tensor] = []
    with model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())):
        square(model, x[:1], y[:1], eps=0.001, queries=60)
    best, margin = seen[2], torch.inf
    for point in seen[2:]:
        assert point is seen[2] or not torch.equal(point, best)
        logits = model(point)[0]
        behind = logits[y[0]] - logits.scatter(0, y[0], -torch.inf).max()
        if behind < margin:
            best, margin = point, float(behind)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_few_classes_and_targets(norm: BallNorm, classes: int) -> None:
    model, x, y = linear(1, classes)
    target = (y + 1) % classes
    found = square(model, x, y, target, eps=0.9, norm=norm, queries=300)
    assert found.success.any()
    assert torch.equal(found.success, reached(model(found.x_adv), y, target))


def test_all_rows_may_leave_and_there_may_be_none() -> None:
    model, x, y = linear(4)
    found = square(model, x, (y + 1) % 4, eps=0.001)  # wrong from the start
    assert found.success.all()
    assert found.iterations.eq(1).all()
    assert square(model, x[:0], y[:0], eps=0.1).x_adv.shape == (0, 7)
    double = square(model.double(), x.double(), y, eps=0.1, queries=5)
    assert double.x_adv.dtype == torch.float64


def test_answers_that_are_nan_are_no_success() -> None:
    model, x, y = linear(2)

    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x).masked_fill((x[:, :1] > 0.5), torch.nan)

    found = square(Nan(), x, y, eps=0.3, queries=100)
    assert torch.equal(found.success, reached(Nan()(found.x_adv), y, None))
    assert found.success.any()


def test_nothing_of_the_model_is_left_changed(digits: Task) -> None:
    _, x, y = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    model[1].bias.requires_grad_(False)
    found = square(model, x, y, eps=0.1, queries=5)
    assert all(module.training for module in model.modules())
    assert [w.requires_grad for w in model.parameters()] == [True, False]
    assert torch.equal(found.x_adv, square(model, x, y, eps=0.1, queries=5).x_adv)


def test_the_plugin_sees_scores_and_gives_each_sample_its_own_stream() -> None:
    model, x, y = linear(7)
    context = AttackContext(DataInfo("linear", (7,), 4, (0.5,), (0.3,)))
    twice = Sources(torch.tensor([8, 3, 8]), x[[0, 1, 0]], y[[0, 1, 0]])
    attack = Square(0.01, queries=20)
    evidence = attack_sources(model, attack, twice, context)
    assert torch.equal(evidence.x_adv[0], evidence.x_adv[2])
    assert evidence.backwards == 0
    assert attack.access == "scores"
    assert Square(2.0, "l2").threat((7,)) == ThreatModel("l2", 2.0)
    assert set(evidence.records["stop_reason"]) <= {"reached", "queries"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eps": 1.5}, r"eps must be in \(0, 1\], got 1.5"),
        ({"norm": "l1"}, "norm must be one of .*got 'l1'"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"p_init": 0.0}, r"p_init must be in \(0, 1\], got 0.0"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    model, x, y = linear(0)
    with pytest.raises(ValueError, match=message):
        Square(**params)
    with pytest.raises(ValueError, match=message):
        square(model, x, y, **{"eps": 0.1, **params})
    with pytest.raises(ValueError, match="targets must be one of"):
        Square(targets="most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        square(model, x + 1, y, eps=0.1)
