"""The plan: shared teachers, stable names."""

from typing import Any

import pytest

from bench.base.types import UserError
from bench.plan.graph import Plan, make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors

doors.load_plugins()


def plan(**changes: Any) -> Plan:
    table = {
        "name": "p",
        "defense": [{"name": "distillation", "temperature": [5, 20]}],
        "attack": [{"name": "jsma", "gamma": 0.25}],
    }
    return make_plan(parse_matrix({**table, **changes}, "here"))


def test_a_teacher_is_one_fit_however_many_name_it() -> None:
    both = plan(
        defense=[
            {"name": "distillation", "temperature": 5},
            {"name": "temperature_only", "temperature": [5, 20]},
        ]
    )
    # The student at 5, the teacher at 5 (which is also a row of its own), the one at 20.
    assert len(both.of("fit")) == 3
    assert len(both.of("cell")) == 3
    student = next(n for n in both.of("fit") if n.document["defense"]["name"] == "distillation")
    assert set(student.needs) == {"teacher"}


def test_a_teacher_that_is_no_row_is_trained_and_not_attacked() -> None:
    found = plan()
    assert len(found.of("fit")) == 4
    assert len(found.of("cell")) == 2
    assert len(found.of("probe")) == 2


def test_nodes_come_after_what_they_need() -> None:
    seen: set[str] = set()
    for node in plan(seeds=[0, 1]).nodes:
        assert set(node.needs.values()) <= seen
        seen.add(node.id)


def test_ids_repeat_and_tell_every_field_apart() -> None:
    def ids(**changes: Any) -> set[str]:
        return {node.id for node in plan(**changes).of("cell")}

    base = ids()
    assert ids() == base
    for change in (
        {"seeds": [1]},
        {"sources": 50},
        {"source_seed": 1},
        {"recipe": "smoke"},
        {"network": "mlp"},
        {"dataset": "mnist"},
        {"attack": [{"name": "jsma", "gamma": 0.5}]},
        {"attack": [{"name": "jsma", "gamma": 0.25, "output": "probs"}]},
    ):
        assert not ids(**change) & base, change


def test_a_default_written_out_is_the_same_plan() -> None:
    written = [{"name": "jsma", "gamma": 0.25, "theta": 1.0, "output": "log_odds"}]
    assert plan(attack=written).nodes == plan().nodes
    assert (
        plan(defense=[{"name": "distillation", "temperature": [5.0, 20.0]}]).nodes == plan().nodes
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"network": "digit-cnn"}, "did you mean 'digits-cnn'"),
        ({"recipe": "slow"}, "unknown recipe 'slow'"),
        ({"defense": [{"name": "distilation"}]}, "did you mean 'distillation'"),
        ({"defense": [{"name": "distillation", "temperature": 0}]}, "temperature must be positive"),
        ({"defense": [{"name": "distillation", "T": 3}]}, "no parameter 'T'"),
        ({"attack": [{"name": "jsma", "gamma": 2.0}]}, "gamma must be in"),
    ],
)
def test_mistakes_are_found_before_anything_runs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**change)
