"""What every student asks of its teacher: answers in the classes of the data, better than chance.

Used by the defenses that learn from another network's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench import nested, registry
from bench.data import Split
from bench.flags import chance
from bench.plugin import Defense, FitContext
from bench.types import DataInfo

ROWS = 1024
"""Rows a query of the teacher: fixed, so that its answers sum in the same order every time."""


class TeacherError(Exception):
    """The teacher cannot teach this data set; the message says why."""


def answers(teacher: nn.Module, x: Tensor, info: DataInfo) -> Tensor:
    """Return the teacher's logits, (n, classes) float32, for ``x`` (n, *shape).

    Raises TeacherError where the teacher does not take inputs of that shape, or answers with other
    classes or with numbers that are not finite.
    """
    parts = []
    with torch.no_grad():
        for rows in torch.split(x, ROWS):
            try:
                parts.append(teacher(rows))
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise TeacherError(
                    f"the teacher does not take inputs of shape {tuple(x.shape[1:])}, "
                    f"as {info.name!r} has them: {reason}"
                ) from error
    logits = torch.cat(parts)
    if logits.shape != (len(x), info.classes):
        raise TeacherError(
            f"the teacher answers with shape {tuple(logits.shape[1:])} an input, "
            f"and {info.name!r} has {info.classes} classes: student and teacher must share them"
        )
    if not torch.isfinite(logits).all():
        raise TeacherError("the teacher's logits are not finite: there is nothing to learn")
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

    ``teacher``: its name, or a table with its name and parameters.
    """

    teacher: Mapping[str, Any] | str = field(default="adversarial_training", hash=False)

    def __post_init__(self) -> None:
        what = f"teacher of defense {registry.DEFENSES.name_of(self)!r}"
        _, table = nested.resolve(registry.DEFENSES, what, self.teacher, "undefended")
        object.__setattr__(self, "teacher", table)

    def requires(self) -> Mapping[str, Defense]:
        """Name the teacher, a fit that the plan shares."""
        assert isinstance(self.teacher, Mapping)
        return {"teacher": registry.DEFENSES.make(nested.as_spec(self.teacher))}

    def taught(self, train: Split, context: FitContext) -> Tensor:
        """Return the teacher's logits (n, classes) for ``train``; raises TeacherError."""
        teacher = context.fitted["teacher"]
        refuse_chance(teacher, context.validation, context.info)
        return answers(teacher, train.x, context.info)
