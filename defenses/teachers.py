"""What every student asks of its teacher: answers in the classes of the data, better than chance.

Used by the defenses that learn from another network's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.base.types import DataInfo, UserError
from bench.plugins import parameter, registry
from bench.plugins.contracts import Defense, FitContext
from bench.plugins.data import Split
from bench.plugins.parameter import NameOrTable
from bench.verdict.flags import chance

ROWS = 1024
"""Rows a query of the teacher: fixed, so that its answers sum in the same order every time."""


class TeacherError(UserError):
    """The teacher cannot teach this data set; the message says why."""


def answers(teacher: nn.Module, x: Tensor, info: DataInfo) -> Tensor:
    """Return the teacher's logits, (n, classes) float32, for ``x`` (n, *shape).

    Raises TeacherError where the teacher does not take inputs of that shape, or answers with other
    classes or with numbers that are not finite.
    """
    with torch.no_grad():
        logits = torch.cat([_ask(teacher, rows, info) for rows in torch.split(x, ROWS)])
    if not torch.isfinite(logits).all():
        raise TeacherError("the teacher's logits are not finite: there is nothing to learn")
    return logits


def _ask(teacher: nn.Module, rows: Tensor, info: DataInfo) -> Tensor:
    try:
        logits: Any = teacher(rows)
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, and no word about shapes
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise TeacherError(
            f"the teacher does not take inputs of shape {tuple(rows.shape[1:])}, "
            f"as {info.name!r} has them: {reason}"
        ) from error
    expected = (len(rows), info.classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TeacherError(
            f"the teacher answers {len(rows)} inputs with {got}, expected {expected}: "
            f"student and teacher must share the {info.classes} classes of {info.name!r}"
        )
    return logits.float()


def refuse_chance(teacher: nn.Module, held_out: Split, info: DataInfo) -> None:
    """Raise TeacherError where ``teacher`` is no better than chance on ``held_out``."""
    right = answers(teacher, held_out.x, info).argmax(dim=1) == held_out.y
    accuracy, threshold = float(right.double().mean()), chance(info.classes)
    if accuracy <= threshold:
        raise TeacherError(
            f"the teacher is at chance: {accuracy:.1%} of {len(held_out)} validation images, "
            f"more than {threshold:.1%} expected; its answers carry nothing to learn"
        )


@dataclass(frozen=True)
class Student(Defense):
    """A network that learns from the answers of ``teacher``, a defense of the same run.

    ``teacher``: its name, or a table with its name and parameters. Raises ``ValueError`` for an
    unknown one or a wrong parameter of it.
    """

    teacher: NameOrTable = field(default="adversarial_training", hash=False)

    def __post_init__(self) -> None:
        _, table = parameter.resolve(registry.DEFENSES, "teacher", self.teacher, "undefended")
        object.__setattr__(self, "teacher", table)

    def requires(self) -> Mapping[str, Defense]:
        """Name the teacher, a fit that the plan shares."""
        assert isinstance(self.teacher, Mapping)
        return {"teacher": registry.DEFENSES.make(parameter.as_spec(self.teacher))}

    def taught(self, train: Split, context: FitContext) -> Tensor:
        """Return the teacher's logits (n, classes) for ``train``; raises TeacherError."""
        teacher = context.fitted["teacher"]
        refuse_chance(teacher, context.validation, context.info)
        return answers(teacher, train.x, context.info)
