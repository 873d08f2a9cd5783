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


def test_a_defense_with_another_network_brings_its_own_reference_where_there_is_a_panel() -> None:
    defense = [{"name": "knowledge_distillation", "network": "mlp"}, {"name": "label_smoothing"}]
    panel = [{"norm": "linf", "budgets": [0.1]}]

    def attacked(**changes: Any) -> list[tuple[str, str | None]]:
        made = plan(defense=defense, **changes)
        fits = {node.id: node.document["defense"] for node in made.of("fit")}
        probed = [fits[node.needs["model"]] for node in made.of("probe")]
        return [(f["name"], (f["params"].get("network") or {}).get("name")) for f in probed]

    assert attacked(panel=panel) == [
        ("undefended", None), ("standard_training", "mlp"), ("knowledge_distillation", "mlp"),
        ("label_smoothing", None),
    ]  # fmt: skip
    assert [name for name, _ in attacked()] == ["knowledge_distillation", "label_smoothing"]


def test_most_passes_are_part_of_what_a_cell_is() -> None:
    found = {most: {n.id for n in plan(**most_passes(most)).of("cell")} for most in (None, 5, 6)}
    assert not found[None] & found[5] | found[5] & found[6]
    assert all("most_passes" not in n.document for n in plan().of("cell"))
    for number in (0, -1, 1.5):
        with pytest.raises(UserError, match="most_passes"):
            plan(most_passes=number)


def most_passes(number: int | None) -> dict[str, int]:
    return {} if number is None else {"most_passes": number}
