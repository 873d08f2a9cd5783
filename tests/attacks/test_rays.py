"""RayS against the paper's algorithm row by row, and against scores that lead away."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.apgd import apgd
from attacks.kit.ball import BallNorm
from attacks.kit.losses import reached
from attacks.rays import RayS, rays
from attacks.square import square
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Sources, attack_sources
from bench.plugins.contracts import AttackContext
from tests.attacks.test_square import linear


def by_the_book(model: nn.Module, x: Tensor, y: int, eps: float, queries: int) -> tuple[Any, int]:
    """Return the first input within ``eps`` that the paper's algorithms ask about, and when.

    Chen and Gu 2020, algorithms 1 to 3, for one row (1, d), up to the end of the finest level.
    """
    features, asked = x.shape[1], 0

    def wrong(radius: float, signs: Tensor) -> tuple[bool, Tensor]:
        nonlocal asked
        asked += 1
        point = (x + radius * signs).clamp(0, 1)
        logits = model(point)[0]
        others = torch.cat([logits[:y], logits[y + 1 :]])
        return bool(others.max() > logits[y]), point

    best, smallest = torch.ones(features, dtype=x.dtype), 1.0
    levels = [(1, None)] + [(2**s, s) for s in range(math.ceil(math.log2(features)) + 1)]
    for blocks, level in levels:
        size = math.ceil(features / blocks)
        for block in range(1 if level is None else math.ceil(features / size)):
            signs = best.clone()
            if level is not None:
                signs[block * size : (block + 1) * size] *= -1
            bad, point = wrong(smallest, signs)
            if not bad:
                continue
            low, high = 0.0, smallest
            while True:
                if high <= eps:
                    return point, asked
                if high - low <= 1e-3:
                    break
                middle = eps if low < eps < high else (low + high) / 2  # ours: ε first
                bad, found = wrong(middle, signs)
                low, high = (low, middle) if bad else (middle, high)
                point = found if bad else point
                if asked >= queries:
                    return None, asked
            best, smallest = signs, high
    return None, asked


@pytest.mark.parametrize("features", [1, 6, 7])
def test_it_is_the_algorithm_of_the_paper(features: int) -> None:
    met = 0
    for seed in range(12):
        model, x, y = linear(seed, shape=(features,))
        model, x = model.double(), x.double()
        for row in range(len(x)):
            book, asked = by_the_book(model, x[row : row + 1], int(y[row]), 0.15, 10_000)
            found = rays(model, x[row : row + 1], y[row : row + 1], eps=0.15, queries=asked)
            assert bool(found.success[0]) is (book is not None)
            if book is not None:
                met += 1
                assert int(found.iterations[0]) == asked
                assert torch.equal(found.x_adv, book)
    assert met > 5


class Misleading(nn.Module):
    """The classes of ``network``, with scores that rise away from its mistakes.

    What the other classes lack is told by how far the inputs are from 1, so that gradients and
    scores lead there; which class wins is the network's alone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        behind = logits - logits.max(dim=1, keepdim=True).values
        lure = (4 * (1 - x.flatten(1)).sum(dim=1, keepdim=True)).exp()
        return torch.where(behind == 0, 0.0, behind.clamp(min=-1e-3) - lure)


def test_scores_that_lead_away_lead_nobody_here() -> None:
    honest, x, y = linear(3, shape=(16,))
    model = Misleading(honest.network)
    assert torch.equal(model(x).argmax(1), y)
    found, plain = (rays(m, x, y, eps=0.2, queries=2000) for m in (model, honest))
    assert torch.equal(found.x_adv, plain.x_adv)
    others = [square(model, x, y, eps=0.2, queries=2000), apgd(model, x, y, eps=0.2)]
    assert found.success.sum() > max(int(other.success.sum()) for other in others)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.6)])
def test_what_is_found_is_within_budget_and_box_and_strictly_wrong(
    norm: BallNorm, eps: float
) -> None:
    model, x, y = linear(5)
    found = rays(model, x, y, eps=eps, norm=norm, queries=500)
    assert torch.equal(found.success, reached(model(found.x_adv), y, None))
    assert found.success.any()
    size = torch.linalg.vector_norm(found.x_adv - x, torch.inf if norm == "linf" else 2, dim=1)
    assert (size <= eps + 1e-6).all()
    assert 0 <= found.x_adv.min() <= found.x_adv.max() <= 1
    assert torch.equal(found.x_adv[~found.success], x[~found.success])


def test_a_row_is_no_other_row_s_neighbour_and_starts_again_from_signs_of_its_own() -> None:
    model, x, y = linear(8)
    whole = rays(model, x, y, eps=0.05, queries=400)
    for row in range(len(x)):
        alone = rays(
            model, x[row : row + 1], y[row : row + 1], eps=0.05, queries=400,
            streams=torch.tensor([row]),
        )  # fmt: skip
        assert torch.equal(alone.x_adv[0], whole.x_adv[row])
        assert alone.iterations[0] == whole.iterations[row]
    assert torch.equal(whole.x_adv, rays(model, x, y, eps=0.05, queries=400, chunk=2).x_adv)
    once = rays(model, x, y, eps=0.05, queries=60)
    assert whole.success.sum() >= once.success.sum()


def test_targets_none_and_answers_that_are_nan() -> None:
    model, x, y = linear(1)
    target = (y + 1) % 4
    found = rays(model, x, y, target, eps=0.9, queries=300)
    assert found.success.any()
    assert torch.equal(found.success, reached(model(found.x_adv), y, target))
    assert rays(model, x[:0], y[:0], eps=0.1).x_adv.shape == (0, 7)

    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x).masked_fill(x[:, :1] > 0.5, torch.nan)

    found = rays(Nan(), x, y, eps=0.3, queries=200)
    assert torch.equal(found.success, reached(Nan()(found.x_adv), y, None))


def test_the_plugin_sees_decisions_and_gives_each_sample_its_own_stream() -> None:
    model, x, y = linear(7)
    context = AttackContext(DataInfo("linear", (7,), 4, (0.5,), (0.3,)))
    twice = Sources(torch.tensor([8, 3, 8]), x[[0, 1, 0]], y[[0, 1, 0]])
    attack = RayS(0.01, queries=90)
    evidence = attack_sources(model, attack, twice, context)
    assert torch.equal(evidence.x_adv[0], evidence.x_adv[2])
    assert evidence.backwards == 0
    assert attack.access == "decisions"
    assert RayS(2.0, "l2").threat((7,)) == ThreatModel("l2", 2.0)
    assert set(evidence.records["stop_reason"]) <= {"reached", "queries"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eps": 1.5}, r"eps must be in \(0, 1\], got 1.5"),
        ({"norm": "l1"}, "norm must be one of .*got 'l1'"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"tolerance": 0.0}, r"tolerance must be in \(0, 1\), got 0.0"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    model, x, y = linear(0)
    with pytest.raises(ValueError, match=message):
        rays(model, x, y, **{"eps": 0.1, **params})


def test_a_boundary_just_within_the_budget_is_found_by_the_direction_that_meets_it() -> None:
    class Plane(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            push = x.sum(dim=1, keepdim=True) - 0.4 - 4 * 0.0998  # crossed at 0.0998 of 0.1
            return torch.cat([-push, push], dim=1)

    x, y = torch.full((1, 4), 0.1), torch.tensor([0])
    found = rays(Plane(), x, y, eps=0.1, queries=20)
    assert found.success.all()
    assert found.iterations.item() == 2
