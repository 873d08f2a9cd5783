"""What a fit's key holds of the models that it learns from."""

import pytest

from bench.conformance import tiny_data
from bench.plan.graph import make_plan
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
