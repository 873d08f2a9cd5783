"""Every figure of the paper beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.base.files import write_json
from leaderboard.pages.reproduction import Measured, agrees, reproduction
from leaderboard.tables.papers import Published, published
from tests.leaderboard.rows import sweep_results


def figure(value: float, quantity: str = "success_rate", unit: str = "percent") -> Published:
    return Published(
        paper="A", arxiv="1", quantity=quantity, unit=unit, certainty="stated", value=value
    )


@pytest.mark.parametrize(
    ("value", "ours", "told"),
    [
        (50, [Measured(0.4, (0.3, 0.5), 0)], "yes"),
        (51, [Measured(0.4, (0.3, 0.5), 0)], "no"),
        (51, [Measured(0.4, (0.3, 0.5), 0), Measured(0.6, (0.55, 0.7), 1)], "yes"),
        (50, [Measured(0.46, None, 0)], "yes"),
        (50, [Measured(0.44, None, 0)], "no"),
        (50, [], "not measured"),
    ],
)
def test_a_figure_agrees_between_the_ends_of_all_seeds(value, ours, told) -> None:
    assert agrees(figure(value), ours) == told


def test_a_largest_change_is_a_bound_that_no_seed_may_pass() -> None:
    bound = figure(1.28, "accuracy_change", "points")
    assert agrees(bound, [Measured(0.001, None, 0), Measured(0.012, None, 1)]) == "yes"
    assert agrees(bound, [Measured(0.001, None, 0), Measured(0.013, None, 1)]) == "no"


def test_a_reason_stands_only_where_ours_is_another(tmp_path: Path) -> None:
    run = tmp_path / "papernot-mnist"
    for name, document in sweep_results().documents().items():
        write_json(run / name, document)
    table = reproduction(tmp_path)
    known = [f for f in published("success_rate", arxiv="1511.04508") if f.value is not None]
    assert table["figure"].str.startswith("success").sum() == len(known)
    assert set(table[table["data"] == "cifar10"]["agrees"]) == {"not measured"}
    assert (table[table["agrees"] != "no"]["why"] == "").all()
    assert "no" in set(table["agrees"])
