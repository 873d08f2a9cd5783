"""What a teacher may answer, what is said where it cannot teach, and what names it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from bench.base.types import DataInfo, Spec, UserError
from bench.conformance import check_defense
from bench.plan.graph import make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import registry
from bench.plugins.contracts import FitContext
from bench.plugins.data import Split
from defenses.adversarial_training import AdversarialTraining
from defenses.distillation import TemperatureOnly
from defenses.knowledge_distillation import KnowledgeDistillation
from defenses.robust_distillation import RobustDistillation
from defenses.teachers import ROWS, Student, TeacherError, answers, refuse_chance
from tests.bench.conftest import in_process
from tests.defenses.conftest import SHORT, seeded

INFO = DataInfo("flat", (4,), 4, (0.5,), (0.3,))
STUDENTS = ["robust_distillation", "knowledge_distillation"]


class Teacher(nn.Module):
    """Answers by a function of its input, and remembers how many rows it was asked at a time."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.asked.append(len(x))
        return self.answer(x)


def test_the_answers_are_the_teachers_logits_a_fixed_number_of_rows_at_a_time() -> None:
    x = torch.rand(2 * ROWS + 5, 4, generator=seeded())
    linear = nn.Linear(4, 4)
    teacher = Teacher(linear)
    found = answers(teacher, x, INFO)
    assert teacher.asked == [ROWS, ROWS, 5]
    assert torch.equal(found, torch.cat([linear(rows) for rows in x.split(ROWS)]))
    assert not found.requires_grad
    double = answers(Teacher(lambda x: x.double() / 3), x, INFO)
    assert double.dtype == torch.float32
    assert torch.equal(double, (x.double() / 3).float())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:, :3], r"answers 5 inputs with \(5, 3\), expected \(5, 4\): .*4 classes of"),
        (lambda x: x.flatten(), r"answers 5 inputs with \(20,\), expected \(5, 4\)"),
        (lambda x: x.sum(), r"answers 5 inputs with \(\), expected"),
        (lambda x: (x, x), "answers 5 inputs with tuple, expected"),
        (nn.Linear(7, 4), r"does not take inputs of shape \(4,\), as 'flat' has them: .*mat1"),
        (nn.BatchNorm2d(4), r"does not take inputs of shape \(4,\), .*: expected 4D input"),
        (lambda x: x.log() - x.log(), "logits are not finite"),
        (lambda x: x / 0, "logits are not finite"),
        (lambda x: x.double() + 1e300, "logits are not finite"),  # in float32
    ],
)
def test_a_teacher_that_cannot_teach_says_why(answer, message: str) -> None:
    x = torch.rand(5, 4, generator=seeded())
    x[2, 1] = 0
    with pytest.raises(TeacherError, match=f"^the teacher.*{message}"):
        answers(Teacher(answer), x, INFO)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyError("key")])
def test_an_error_that_is_not_about_the_inputs_is_left_as_it_is(error: Exception) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as raised:
        answers(Teacher(fail), torch.zeros(2, 4), INFO)
    assert raised.value is error


def right_on(count: int, y: Tensor) -> Teacher:
    """Return a teacher that is right on the first ``count`` of the inputs with labels ``y``."""
    said = torch.where(torch.arange(len(y)) < count, y, (y + 1) % 4)
    return Teacher(lambda x: nn.functional.one_hot(said, 4))


def test_chance_is_refused_up_to_the_threshold() -> None:
    # Four classes: twice 1/4 (bench.verdict.flags.chance).
    held_out = Split(torch.zeros(40, 4), torch.arange(40) % 4)
    refuse_chance(right_on(21, held_out.y), held_out, INFO)
    message = r"at chance: 50.0% of 40 validation images, more than 50.0% expected"
    with pytest.raises(TeacherError, match=message):
        refuse_chance(right_on(20, held_out.y), held_out, INFO)


@pytest.mark.parametrize("name", STUDENTS)
def test_no_student_trains_with_a_teacher_at_chance(data, name: str) -> None:
    def train(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing to train on")

    constant = Teacher(lambda x: torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3))
    context = FitContext(
        data.info, {"teacher": constant}, data.validation, SHORT, seeded(), train,
        registry.ATTACKS.make,
    )  # fmt: skip
    student = registry.DEFENSES.make(Spec(name))
    with pytest.raises(TeacherError, match="the teacher is at chance"):
        student.fit(nn.Identity(), data.train, context)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_teacher_is_a_name_or_a_table_complete_in_the_document(name: str) -> None:
    def make(teacher: Any) -> Student:
        student = registry.DEFENSES.make(Spec(name, {"teacher": teacher}))
        assert isinstance(student, Student)
        return student

    table = {"name": "temperature_only", "temperature": 20.0}
    student = make("temperature_only")
    assert student == make({"name": "temperature_only"}) == make(table)
    assert hash(student) == hash(make(table))
    assert registry.parameters(student)["teacher"] == table
    assert student.requires() == {"teacher": TemperatureOnly(20.0)}
    assert student != make({**table, "temperature": 5.0})


def test_the_teachers_are_what_the_files_say_unless_told_otherwise() -> None:
    assert RobustDistillation().requires() == {"teacher": AdversarialTraining()}
    assert KnowledgeDistillation().teacher == {"name": "undefended"}


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("undefende", "teacher: unknown defense 'undefende': did you mean 'undefended'"),
        (
            {"name": "adversarial_training", "epz": 0.1},
            "teacher: defense 'adversarial_training' has no parameter 'epz': did you mean 'eps'",
        ),
        ({"name": "distillation", "temperature": -1.0}, "teacher: .*temperature must be positive"),
        (
            {"name": "robust_distillation", "teacher": "twim"},
            "teacher: defense 'robust_distillation': teacher: .*did you mean 'twin'",
        ),
        (
            {"eps": 0.1},
            r"teacher must be a name or a table .*teacher = \{ name = .*, got \{'eps': 0.1\}$",
        ),
        (3, "teacher must be a name or a table with a name, .*, got 3$"),
    ],
)
def test_mistakes_are_named(name: str, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^defense '{name}': {message}"):
        registry.DEFENSES.make(Spec(name, {"teacher": teacher}))


def plan(*teachers: Any) -> list[Any]:
    """Return the fits of a student whose ``teacher`` is swept."""
    defense = {"name": "robust_distillation", "teacher": list(teachers)}
    matrix = {"name": "m", "defense": [defense], "attack": ["fgsm"]}
    return make_plan(parse_matrix(matrix, "test")).of("fit")


def test_a_list_of_teachers_is_a_student_of_each() -> None:
    fits = plan("undefended", {"name": "adversarial_training", "eps": 0.1})
    names = [fit.document["defense"]["name"] for fit in fits]
    student = "robust_distillation"
    assert names == ["undefended", student, "adversarial_training", student]
    assert fits[2].document["defense"]["params"]["eps"] == 0.1
    assert [fit.needs.get("teacher") for fit in fits] == [None, fits[0].id, None, fits[2].id]


def test_a_student_teaches_another() -> None:
    inner = {"name": "knowledge_distillation", "network": "mlp", "teacher": "temperature_only"}
    first, second, third = plan(inner)
    assert (second.needs, third.needs) == ({"teacher": first.id}, {"teacher": second.id})
    assert third.document["defense"]["params"]["teacher"]["teacher"]["temperature"] == 20.0


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("robust_distillation", {"teacher": "undefended", "keep": "order"}),
        ("knowledge_distillation", {}),
        ("standard_training", {"network": "mlp", "half": "first"}),
    ],
)
def test_they_pass_the_conformance_suite(name: str, params: dict[str, Any]) -> None:
    checks = check_defense(name, params)
    assert len(checks) == 14
    assert [str(check) for check in checks if check.status != "ok"] == []


PLUGIN = """
from dataclasses import dataclass

import bench
import torch
from torch import nn

@bench.defense("strange")
@dataclass(frozen=True)
class Strange(bench.Defense):
    '''Learns nothing, and answers as ``how`` says.'''

    how: str

    def build(self, context):
        if self.how == "deep":
            return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))
        if self.how == "narrow":
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
        if self.how == "chance":
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Threshold(9, torch.nan))
"""

STRANGE = {
    "deep": "the teacher does not take inputs of shape (1, 8, 8), as 'digits' has them: ",
    "narrow": "the teacher answers 150 inputs with (150, 7), expected (150, 10): student and",
    "chance": "the teacher is at chance: ",
    "nan": "the teacher's logits are not finite",
}


def run(folder: Path, matrix: str, *options: Any) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit status and the rows of a run of ``matrix``."""
    from bench.cli import app

    (folder / "m.toml").write_text(f'name = "m"\nrecipe = "smoke"\nsources = 2\n{matrix}')
    args = ["run", "--matrix", folder / "m.toml", "--offline", "--device", "cpu", *options]
    args += ["--cache-dir", folder / "cache", "--out", folder / "run"]
    with in_process():
        done = CliRunner().invoke(app, [str(item) for item in args])
    assert done.exit_code < 2, done.output
    assert "Traceback" not in done.output
    return done.exit_code, json.loads((folder / "run" / "results.json").read_text())


def test_a_teacher_that_cannot_teach_is_a_failed_fit(tmp_path: Path) -> None:
    tables = ", ".join(f'{{ name = "strange", how = "{how}" }}' for how in STRANGE)
    students = "".join(f'[[defense]]\nname = "{name}"\nteacher = [{tables}]\n' for name in STUDENTS)
    plugin = tmp_path / "strange.py"
    plugin.write_text(PLUGIN)
    matrix = f'{students}[[attack]]\nname = "fgsm"\n'
    status, rows = run(tmp_path, matrix, "--plugin", plugin)
    assert status == 1
    assert len(rows) == len(STUDENTS) * len(STRANGE)
    for row in rows:
        expected = STRANGE[row["defense_params"]["teacher"]["how"]]
        assert row["status"] == "failed"
        assert row["reason"].startswith("its fit failed: the teacher")
        assert expected in row["reason"]


def test_two_classes_and_flat_inputs(tmp_path: Path) -> None:
    status, rows = run(
        tmp_path,
        """
        dataset = "breast-cancer"
        [[defense]]
        name = "robust_distillation"
        teacher = "undefended"
        keep = ["label", "max"]
        [[defense]]
        name = "knowledge_distillation"
        network = ["softmax-regression", "digits-cnn"]
        [[attack]]
        name = "fgsm"
        """,
    )
    assert status == 1
    assert [row["status"] for row in rows] == ["done", "failed", "done", "failed"]
    assert 'keep = "max" changes the classes beside the largest' in rows[1]["reason"]
    assert rows[3]["reason"].startswith("its fit failed: network 'digits-cnn': DigitsCnn takes")
