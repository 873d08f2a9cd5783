"""Sparse-RS equals brute force where that is possible, and is as strong as a slow reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.sparse_rs import SparseRs, _subset, share, sparse_rs
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


def reference(
    net: nn.Module, x: np.ndarray, label: int, k: int, queries: int, alpha: float, seed: int
) -> tuple[bool, int]:
    """Algorithm 1 of the paper on one row, untargeted, in sets and loops."""
    random = np.random.RandomState(seed)
    divisors = [(0, 1), (50, 2), (200, 4), (500, 5), (1000, 6), (2000, 8), (4000, 10), (6000, 12)]

    def margin(point: np.ndarray) -> float:
        with torch.no_grad():
            z = net(torch.from_numpy(point)[None].float())[0].tolist()
        return z[label] - max(z[:label] + z[label + 1 :])

    chosen = set(random.permutation(len(x))[:k].tolist())
    best = x.copy()
    for i in sorted(chosen):
        best[i] = random.choice([0.0, 1.0])
    loss = margin(best)
    for query in range(1, queries):
        if loss < 0:
            return True, query
        scaled = int(query / queries * 10_000)
        by = next((d for bound, d in divisors if scaled <= bound), 15 if scaled <= 8000 else 20)
        count = max(1, int(alpha / by * k))
        leave = set(random.permutation(sorted(chosen))[:count].tolist())
        outside = [i for i in range(len(x)) if i not in chosen]
        enter = set(random.permutation(outside)[:count].tolist())
        point = best.copy()
        for i in leave:
            point[i] = x[i]
        for i in sorted(enter):
            old, point[i] = best[i], random.choice([0.0, 1.0])
            while count == 1 and point[i] == old:
                point[i] = random.choice([0.0, 1.0])
        if (found := margin(point)) < loss:
            best, loss, chosen = point, found, (chosen - leave) | enter
    return loss < 0, queries


def test_as_strong_as_the_reference(task: Task) -> None:
    net, x, y = task
    x, y = x[:30], y[:30]
    ours = sparse_rs(net, x, y, max_features=3, queries=60)
    theirs = [
        reference(net, row.double().numpy(), int(label), 3, 60, 0.3, seed)
        for seed, (row, label) in enumerate(zip(x, y, strict=True))
    ]
    wins = sum(success for success, _ in theirs)
    assert 5 < wins < 28  # neither could win or lose on every row
    # Two runs of one random search: about 1.5 standard deviations of a paired difference.
    assert int(ours.success.sum()) >= wins - 5
    assert abs(float(ours.queries.float().mean()) - np.mean([n for _, n in theirs])) < 12


def test_one_feature_equals_brute_force(task: Task) -> None:
    net, x, y = task
    x, y = x[:20], y[:20]
    corners = torch.tensor([0.0, 1.0]).repeat_interleave(64)
    every = x[:, None].repeat(1, 128, 1)
    every[:, torch.arange(128), torch.arange(128) % 64] = corners
    with torch.no_grad():
        possible = (net(every).argmax(2) != y[:, None]).any(1)
    assert 0 < possible.sum() < len(x)
    # The chance to miss one of 128 corners in 1,500 draws is below 1e-5.
    result = sparse_rs(net, x, y, max_features=1, queries=1500)
    assert result.success.equal(possible)
    assert result.queries[~possible].eq(1500).all()


def test_targeted_reaches_the_target(task: Task) -> None:
    net, x, y = task
    target = net(x).topk(2).indices[:, 1]
    result = sparse_rs(net, x, y, target, max_features=8, queries=300)
    assert result.success.float().mean() > 0.8
    assert (net(result.x_adv).argmax(1) == target).equal(result.success)


def test_a_failed_row_is_the_best_that_was_tried(task: Task) -> None:
    net, x, y = task
    margins: list[Tensor] = []

    def model(inputs: Tensor) -> Tensor:
        logits = net(inputs)
        logits[:, y[0]] += 1e3  # no search succeeds
        others = logits.scatter(1, y[:1, None].expand(len(logits), 1), -torch.inf).amax(1)
        margins.append((logits[:, y[0]] - others).detach())
        return logits

    result = sparse_rs(model, x[:1], y[:1], max_features=4, queries=50)
    tried = torch.cat(margins[-50:])
    model(result.x_adv)
    assert not result.success.any()
    assert float(margins[-1]) == pytest.approx(float(tried.min()), abs=1e-3)
    assert tried.min() < tried[0]


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 12),
    queries=st.integers(1, 12),
    restarts=st.integers(1, 3),
    pixels=st.booleans(),
    targeted=st.booleans(),
    alpha=st.sampled_from([0.1, 0.3, 1.6]),
    seed=st.integers(0, 2**40),
)
def test_promises(
    k: int, queries: int, restarts: int, pixels: bool, targeted: bool, alpha: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 3, 2, 2, generator=generator)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).requires_grad_(False)
    net[1].weight.copy_(torch.randn(4, 12, generator=generator))
    y = net(x).argmax(1)
    target = (y + 1) % 4 if targeted else None
    mode: dict[str, Any] = {
        "pixels": pixels, "alpha_init": alpha, "seed": seed, "restarts": restarts,
    }  # fmt: skip
    calls: list[int] = []
    handle = net.register_forward_hook(lambda _m, i, _o: calls.append(len(i[0])))
    result = sparse_rs(net, x, y, target, max_features=k, queries=queries, **mode)
    handle.remove()
    assert sum(calls) == result.queries.sum() + 2  # the model is checked on one row, twice
    assert result.queries.max() <= queries * restarts
    moved = result.x_adv != x
    assert ((result.x_adv == 0) | (result.x_adv == 1))[moved].all()
    units = moved.flatten(2).any(1) if pixels else moved.flatten(1)
    assert units.sum(1).equal(result.features_changed)
    assert result.features_changed.max() <= k
    logits = net(result.x_adv)
    prediction = logits.argmax(1)
    assert result.success.equal(prediction == target if targeted else prediction != y)
    again = sparse_rs(net, x, y, target, max_features=k, queries=queries, chunk=2, **mode)
    assert again.x_adv.equal(result.x_adv)
    last = torch.tensor([3])
    alone = sparse_rs(
        net, x[3:4], y[3:4], None if target is None else target[3:4],
        max_features=k, queries=queries, streams=last, **mode,
    )  # fmt: skip
    assert alone.x_adv.equal(result.x_adv[3:4])
    assert alone.queries.equal(result.queries[3:4])


def test_seed_and_stream_choose_the_search(task: Task) -> None:
    net, x, y = task
    rows = x[:1].repeat(4, 1), y[:1].repeat(4)
    same = torch.tensor([7, 7, 8, 7 + 2**32])
    first = sparse_rs(net, *rows, max_features=3, queries=1, streams=same, seed=1).x_adv
    assert first[0].equal(first[1])
    assert len(first.unique(dim=0)) == 3
    other = sparse_rs(net, *rows, max_features=3, queries=1, streams=same, seed=1 + 2**32).x_adv
    assert not other.equal(first)


def test_start_is_uniform_over_features_and_corners(task: Task) -> None:
    x = torch.full((4000, 8), 0.5)
    y = torch.zeros(4000, dtype=torch.int64)
    net = nn.Linear(8, 2).requires_grad_(False)
    start = sparse_rs(net, x, y, max_features=2, queries=1).x_adv
    counts = torch.cat([(start == corner).sum(0) for corner in (0, 1)])
    # 4000 * 2 / 8 / 2 = 500 expected of each, with a standard deviation of about 21.
    assert (counts - 500).abs().max() < 90


@pytest.mark.parametrize("pixels", [False, True])
def test_a_single_exchange_never_tries_the_value_that_is_there(pixels: bool) -> None:
    x = torch.randint(0, 2, (40, 3, 3, 3)).float()
    tried: list[Tensor] = []

    def model(inputs: Tensor) -> Tensor:
        tried.append(inputs.clone())
        score = inputs.sum((1, 2, 3))  # each answer is worse: the start stays the best
        return torch.stack((score * 0 + len(tried), score * 0), 1)

    sparse_rs(
        model, x, torch.zeros(40, dtype=torch.int64), max_features=1, queries=30, pixels=pixels
    )
    for exchange in tried[3:]:  # two looks at the first row, and the start
        moved = exchange != x
        assert moved.flatten(2).any(1).sum(1).eq(1).all() if pixels else True
        assert moved.flatten(1).any(1).all()


def test_restarts_are_searches_of_their_own(task: Task) -> None:
    net, x, y = task
    alone = [
        sparse_rs(net, x, y, max_features=2, queries=60, streams=torch.arange(60) + (place << 40))
        for place in range(3)
    ]
    together = sparse_rs(net, x, y, max_features=2, queries=60, restarts=3)
    assert torch.stack([one.success for one in alone]).any(0).equal(together.success)
    soonest = torch.stack([one.queries for one in alone]).amin(0)
    assert (3 * soonest).equal(together.queries)
    assert together.success.sum() > alone[0].success.sum()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_subsets_are_uniform(count: int) -> None:
    numbers = torch.rand(6000, 1, count, generator=torch.Generator().manual_seed(0)).double()
    found = _subset(numbers, 5)[:, 0].sort(dim=1).values
    assert (found.diff(dim=1) > 0).all()
    sets, times = found.unique(dim=0, return_counts=True)
    expected = 6000 / math.comb(5, count)
    assert len(sets) == math.comb(5, count)
    assert (times - expected).abs().max() < 5 * math.sqrt(expected)


def test_the_schedule_is_the_paper_s() -> None:
    given = [0, 50, 51, 200, 500, 1000, 2000, 4000, 6000, 8000, 8001, 9999]
    expected = [1, 2, 4, 4, 5, 6, 8, 10, 12, 15, 20, 20]
    assert [share(i, 10_000, 0.3) for i in given] == [0.3 / by for by in expected]
    assert share(10, 1000, 0.3) == 0.3 / 4  # rescaled to fewer queries


def test_nan_is_no_success_and_no_improvement() -> None:
    x, y = torch.rand(2, 6), torch.zeros(2, dtype=torch.int64)
    result = sparse_rs(lambda z: z[:, :3] * torch.nan, x, y, max_features=2, queries=5)
    assert not result.success.any()
    assert result.features_changed.max() <= 2


def test_all_features_may_be_chosen(task: Task) -> None:
    net, x, y = task
    result = sparse_rs(net, x[:10], y[:10], gamma=1.0, queries=50)
    assert result.success.all()
    empty = sparse_rs(net, x[:0], y[:0], gamma=1.0)
    assert empty.x_adv.shape == (0, 64)


def test_the_model_is_left_as_it_was(task: Task) -> None:
    net, x, y = task
    net.train()
    sparse_rs(net, x[:3], y[:3], max_features=2, queries=3)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    net.eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"alpha_init": 0.0}, "alpha_init must be positive and finite, got 0.0"),
        ({"gamma": 0.5}, "exactly one of gamma and max_features"),
        ({"max_features": 0}, "max_features must be at least 1, got 0"),
        ({"max_features": None, "gamma": 0.01}, "at least 1 of 64 features"),
        ({"streams": torch.tensor([0])}, r"streams must have shape \(2,\)"),
        ({"pixels": True}, "pixels=True needs"),
    ],
)
def test_mistakes_are_named(task: Task, arguments: dict[str, Any], message: str) -> None:
    net, x, y = task
    with pytest.raises(ValueError, match=message):
        sparse_rs(net, x[:2], y[:2], **{"max_features": 2} | arguments)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        sparse_rs(net, x[:2] * 3, y[:2], max_features=2)


def test_the_plugin(task: Task) -> None:
    net, x, y = task
    attack = SparseRs(max_features=4, queries=40, targets="random")
    assert attack.threat((1, 8, 8)) == ThreatModel("l0", 4 / 64, "features")
    assert SparseRs(pixels=True).threat((3, 8, 8)) == ThreatModel("l0", 0.145, "pixels")
    assert (attack.access, attack.targeted, SparseRs().targeted) == ("scores", True, False)
    ids = torch.arange(60) * 3
    target = (y + 1) % 10
    found = attack.perturb(net, x, y, target, AttackContext(INFO, seed=5, sample_ids=ids))
    part = attack.perturb(
        net, x[9:11], y[9:11], target[9:11], AttackContext(INFO, seed=5, sample_ids=ids[9:11])
    )
    assert part.x_adv.equal(found.x_adv[9:11])
    assert found.stop_reason is not None
    assert set(found.stop_reason) == {"reached", "queries"}
    reached = net(found.x_adv).argmax(1) == target
    assert [reason == "reached" for reason in found.stop_reason] == reached.tolist()
    # The same source towards another target has a stream of its own.
    context = AttackContext(INFO, seed=5, sample_ids=torch.zeros(2, dtype=torch.int64))
    twice = (
        x[:1].repeat(2, 1),
        y[:1].repeat(2),
        torch.tensor([(int(y[0]) + k) % 10 for k in (1, 2)]),
    )
    first = SparseRs(max_features=4, queries=1, targets="all").perturb(net, *twice, context)
    assert not first.x_adv[0].equal(first.x_adv[1])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gamma": 0.1, "max_features": 3}, "one of gamma and max_features"),
        ({"gamma": 0.0}, "gamma must be in"),
        ({"max_features": 0}, "max_features must be at least 1"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"alpha_init": -1.0}, "alpha_init must be positive"),
    ],
)
def test_the_plugin_refuses(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseRs(**params)
