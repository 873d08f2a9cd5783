"""What a verdict takes, told before: durations, passes, networks that fall or stand."""

from dataclasses import replace

import pytest
import torch

from attacks.quantised import levels
from bench.base.types import DataInfo, UserError
from bench.judging.cost import (
    CENTRE,
    Cost,
    Line,
    Passes,
    _Count,
    _StandIn,
    cost_table,
    duration,
    seconds_of,
)

INFO = DataInfo("x", (1, 4, 4), 3, (0.5,), (0.5,))


def test_one_stand_in_falls_at_once_and_nothing_moves_the_other() -> None:
    x = torch.full((2, 1, 4, 4), CENTRE)
    generator = torch.Generator().manual_seed(1)
    others = torch.rand((500, 1, 4, 4), generator=generator)
    count = _Count()
    stands, falls = (_StandIn(INFO, lead, slope, count) for lead, slope in ((30.0, 0.6), (1e-3, 1)))
    assert (stands(x).argmax(1) == 0).all()
    assert (falls(x).argmax(1) == 0).all()
    assert (stands(others).argmax(1) == 0).all()
    assert (falls(others).argmax(1) != 0).float().mean() > 0.5
    assert count.forwards == 1004


def test_no_attack_takes_a_stand_in_s_sources_for_a_picture_s_levels() -> None:
    assert levels(torch.full((2, 3, 4, 4), 1 / 2)) is not None
    assert levels(torch.full((2, 3, 4, 4), CENTRE)) is None


def test_passes_are_counted_both_ways() -> None:
    count = _Count()
    model = _StandIn(INFO, 30.0, 0.1, count)
    x = torch.full((3, 1, 4, 4), 0.5, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)
    assert (count.forwards, count.backwards) == (3, 3)


def test_the_whole_is_the_sum_of_its_cells_shared_by_the_workers() -> None:
    line = Line("a", models=3, plain=1, falls=Passes(10, 0, 0), stands=Passes(100, 50, 0))
    again = replace(line, called=True)
    told = Cost([line, again], forward=0.01, backward=0.02, workers=2, fixed=200, trains=1)
    low, high = told.total(10)
    assert low == pytest.approx((4 * 10 * 10 * 0.01 + 200 * 0.01) / 2)
    assert high == pytest.approx((10 * 10 * 0.01 + 3 * 10 * (1 + 1) + 200 * 0.01) / 2)
    frame, words = cost_table(told, 10)
    assert frame["passes a source"].tolist() == ["10 to 150"] * 2
    assert frame["attack"].tolist() == ["a", "a, if called for"]
    assert any("1 networks are trained" in word for word in words)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("7", 7)]
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "-1s", "soon", "1d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="as 90s, 20m or 3h"):
        seconds_of(text)


def test_durations_are_said_shortly() -> None:
    assert [duration(s) for s in (0.04, 7, 59, 61, 3661)] == [
        "0.04 s", "7 s", "59 s", "1 min 1 s", "1 h 1 min",
    ]  # fmt: skip
