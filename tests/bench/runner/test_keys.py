"""What a fit's key holds of the models that it learns from; when a closer need not run."""

from collections.abc import Collection
from typing import Any

import pytest

from bench.conformance import tiny_data
from bench.evidence.cells import NOTHING_LEFT, SETTLED, UNSUSPECTED
from bench.plan.graph import Closes, make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors
from bench.runner.keys import Keys


@pytest.fixture(autouse=True)
def plugins() -> None:
    doors.load_plugins()


def test_a_student_is_known_by_its_teachers_code_and_weights() -> None:
    # Weights alone do not identify a model: a wrapper has the weights of what it wraps.
    matrix = {"name": "m", "defense": [{"name": "distillation"}], "attack": [{"name": "fgsm"}]}
    nodes = make_plan(parse_matrix(matrix, "test")).of("fit")
    teacher, student = (
        next(n for n in nodes if n.document["defense"]["name"] == name)
        for name in ("temperature_only", "distillation")
    )
    weights: dict[str, str] = {}
    keys = Keys(tiny_data(), "cpu", weights)
    source = keys.of(teacher)["source"]
    weights[teacher.id] = "abc"
    key = keys.of(student)
    assert key["required_weights"] == {"teacher": "abc"}
    assert key["required_sources"] == {"teacher": source}
    assert keys.of(teacher)["required_weights"] == {}


class Left:
    """What stands, by how many cells came before, and which probes found something."""

    def __init__(self, by_cells: dict[int, int], suspects: Collection[str] = ()) -> None:
        self.by_cells, self.suspects = by_cells, suspects

    def suspected(self, probe: str) -> bool:
        return probe in self.suspects

    def left(self, closes: Closes, sources: int | None, seed: int) -> tuple[int, ...]:
        return tuple(range(self.by_cells[len(closes.after)]))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [(10, 9, None), (10, 10, SETTLED), (1, 0, NOTHING_LEFT), (2, 1, f"{NOTHING_LEFT}: 1 sources")],
)
def test_a_closer_goes_on_only_with_what_the_round_before_it_began(
    before: int, after: int, reason: str | None
) -> None:
    panel = {"norm": "linf", "budgets": [0.1]}
    matrix = {"name": "m", "defense": [{"name": "undefended"}], "panel": [panel], "sources": 12}
    cells = make_plan(parse_matrix(matrix, "test")).of("cell")
    last = next(n for n in cells if n.closes is not None and n.closes.since)
    assert last.closes is not None
    assert last.closes.since is not None
    rounds = {n.id: n.closes.round if n.closes else 0 for n in cells}
    assert {rounds[cell] for cell in last.closes.since} == {last.closes.round - 1}
    assert {rounds[cell] for cell in last.closes.after} == set(range(last.closes.round))
    earlier = len(last.closes.after) - len(last.closes.since)
    standing: Any = Left({earlier: before, len(last.closes.after): after})
    keys = Keys(tiny_data(), "cpu", {}, standing)
    left = keys.left(last)
    assert left is not None
    found = keys.needless(last, left)
    assert found == reason if reason is None else str(found).startswith(reason)


def test_a_follow_up_comes_after_the_probe_and_runs_where_that_found_something() -> None:
    panel = {"norm": "linf", "budgets": [0.1]}
    matrix = {"name": "m", "defense": [{"name": "undefended"}], "panel": [panel], "sources": 12}
    plan = make_plan(parse_matrix(matrix, "test"))
    follow_ups = [node for node in plan.of("cell") if node.follows]
    probes = {node.needs["model"]: node.id for node in plan.of("probe")}
    assert {node.document["attack"]["name"] for node in follow_ups} == {"surrogate"}
    for node in follow_ups:
        assert node.follows == probes[node.needs["model"]]
        assert node.follows in node.after
        assert node.closes is not None
        stands: Any = {len(node.closes.after): 12}
        honest: Any = Left(stands)
        suspect: Any = Left(stands, [node.follows])
        left = tuple(range(12))
        assert Keys(tiny_data(), "cpu", {}, honest).needless(node, left) == UNSUSPECTED
        assert Keys(tiny_data(), "cpu", {}, suspect).needless(node, left) is None
