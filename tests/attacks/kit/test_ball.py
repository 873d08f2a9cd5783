"""Balls: points uniform in them, on their edge, never outside, and steps of length one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from attacks.kit.ball import BallNorm, project, random_extreme, random_point, steepest

STREAMS = torch.arange(400)
MIDDLE = torch.full((400, 6), 0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.001, 1.0), st.sampled_from([3, 3072]))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_point_keeps_to_ball_and_box(
    norm: BallNorm, seed: int, eps: float, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, size, generator=generator).mul_(1.2).sub_(0.1).clamp_(0, 1)
    eps = eps if norm == "linf" else 12 * eps
    far = project(x + 3 * eps * torch.randn(4, size, generator=generator), x, eps, norm)
    streams = torch.arange(4)
    for point in (
        far,
        random_point(x, eps, norm, seed, 0, streams),
        random_extreme(x, eps, norm, seed, 0, streams),
    ):
        order = torch.inf if norm == "linf" else 2
        assert (point.double() - x.double()).norm(order, dim=1).max() <= eps + 1e-6
        assert point.min() >= 0
        assert point.max() <= 1


def test_random_points_are_uniform_in_the_ball() -> None:
    linf = (random_point(MIDDLE, 0.2, "linf", 0, 0, STREAMS) - 0.5) / 0.2
    assert stats.kstest(linf.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    l2 = (random_point(MIDDLE, 0.2, "l2", 0, 0, STREAMS) - 0.5) / 0.2
    # The share of a ball's volume within radius r is r^d; each half of an axis holds half of it.
    assert stats.kstest(l2.norm(dim=1).numpy() ** 6, "uniform").pvalue > 0.01
    assert 0.45 < float((l2 > 0).float().mean()) < 0.55


def test_extreme_points_are_corners_and_the_sphere() -> None:
    corners = random_extreme(MIDDLE, 0.25, "linf", 0, 0, STREAMS) - 0.5
    assert corners.abs().eq(0.25).all()
    assert 0.45 < float((corners > 0).float().mean()) < 0.55
    sphere = random_extreme(MIDDLE, 0.25, "l2", 0, 0, STREAMS) - 0.5
    assert torch.allclose(sphere.norm(dim=1), torch.tensor(0.25), atol=1e-6)


def test_the_projection_is_the_nearest_point_where_the_box_is_far() -> None:
    x = torch.full((2, 2), 0.5)
    moved = torch.tensor([[0.8, 0.9], [0.55, 0.5]])
    assert torch.allclose(
        project(moved, x, 0.2, "l2"), torch.tensor([[0.62, 0.66], [0.55, 0.5]]), atol=1e-6
    )
    assert torch.allclose(project(moved, x, 0.2, "linf"), torch.tensor([[0.7, 0.7], [0.55, 0.5]]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.5))
def test_the_l2_projection_meets_its_optimality_condition(seed: int, eps: float) -> None:
    # p is the nearest point of a convex set if no q in it makes (z - p)(q - p) positive.
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.rand(1, 8, generator=generator), 2 * torch.rand(1, 8, generator=generator) - 0.5
    p = project(z, x, eps, "l2")
    directions = nn.functional.normalize(torch.randn(4000, 8, generator=generator))
    q = (x + eps * directions).clamp(0, 1)
    assert ((q - p) @ (z - p).T).amax() < 0.02 * eps


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30])
def test_a_step_has_length_one_whatever_the_gradient(scale: float) -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0]]) * scale
    step = steepest(gradient, "l2")
    assert step[0].norm() == pytest.approx(1, abs=1e-6)
    assert step[0, 1] < 0 < step[0, 0]
    assert step[1].tolist() == [0, 0]
    assert steepest(gradient, "linf").tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize("eps", [0.5, 4.0, 5.0, 1e6])
def test_what_has_not_moved_is_projected_to_itself(eps: float) -> None:
    x = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(project(x, x, eps, "l2"), x)
    assert torch.equal(project(x.double(), x.double(), eps, "l2"), x.double())
