"""Robustness from a teacher's answers alone: no input of the student is ever perturbed.

Seguin, Ndirango, Mishra, Chung, Lee 2021, arXiv 2108.12001: a student of an adversarially trained
teacher inherits some of its robustness, and what carries it are the confidence of each sample and
the order of the incorrect classes. The paper's list of manipulations is not at hand: those below
are our own design, made so that each removes one thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bench.measure.recast import check_temperature
from bench.plugins.contracts import FitContext
from bench.plugins.data import Split
from defenses.teachers import Student, TeacherError

Keep = Literal["all", "max", "values", "order", "fixed_order", "confidence", "gap", "label"]

LEAST_CLASSES = 3
"""Below, there is one class beside the largest: nothing to shuffle, order or level."""


@dataclass(frozen=True)
class RobustDistillation(Student):
    """A student trained on clean inputs with the soft labels softmax(z / T) of its ``teacher``.

    ``teacher``: a defense, by name or as a table; adversarial training unless told otherwise, and
    a standard one is the control. ``temperature``: of the labels and of the student while it
    learns, positive. ``keep``: what is left of the teacher's logits z, whose largest is z_m:

    - ``all``: everything;
    - ``max``: z_m; every other logit becomes the mean of the others;
    - ``values``: z_m and the values of the others, shuffled among them, once for each sample;
    - ``order``: z_m is above the others in their order, by the gaps that samples have on average:
      the order is each sample's own, and the confidence the same for all;
    - ``fixed_order``: z_m and the values of the others, largest first by number of the class: the
      order is the same for all samples;
    - ``confidence``: the largest probability at T; every other class has the same share;
    - ``gap``: z_m minus the runner-up; every other class is as good as the runner-up;
    - ``label``: m alone, as a hard label: nothing that the data does not say where m is right.

    The student is deployed at T = 1. Its logits do not grow with T, for the teacher's did not:
    unlike in defensive distillation, the teacher was trained at T = 1.

    Fails where the teacher is at chance or has other classes or inputs, and, for all but ``all``
    and ``label``, where the data has fewer than three classes.
    """

    temperature: float = 1.0
    keep: Keep = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep must be one of {get_args(Keep)}, got {self.keep!r}")

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on what is left of the teacher's answers."""
        check_classes(self.keep, context.info.classes)
        logits = self.taught(train, context)
        labels = manipulate(logits, self.keep, self.temperature, context.generator)
        context.train(model, train.x, labels, temperature=self.temperature)


def check_classes(keep: Keep, classes: int) -> None:
    """Raise TeacherError where ``keep`` says nothing about so few ``classes``."""
    if keep not in ("all", "label") and classes < LEAST_CLASSES:
        raise TeacherError(
            f'keep = "{keep}" changes the classes beside the largest and needs a data set of at '
            f'least {LEAST_CLASSES} classes, got {classes}: use "all" or "label"'
        )


def manipulate(
    logits: Tensor, keep: Keep, temperature: float, generator: torch.Generator
) -> Tensor:
    """Return the soft labels that ``keep`` leaves of ``logits``: both (n, classes), float32.

    The largest class of each row, the first of equals, stays as large as any. ``generator``, on
    the device of ``logits``, shuffles for ``values``.
    """
    order = logits.argsort(dim=1, descending=True, stable=True)
    top, rest = order[:, :1], order[:, 1:]
    if keep == "label":
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(1, top, 1)
    ranked = logits.double().gather(1, order)
    if keep == "order":
        # The gaps below the largest, averaged over samples rank by rank.
        ranked = ranked[:, :1] - (ranked[:, :1] - ranked).mean(dim=0)
    elif keep in LEVELS:
        level = LEVELS[keep](ranked[:, 1:], temperature)
        ranked = torch.cat([ranked[:, :1], level.expand(-1, rest.shape[1])], dim=1)
    elif keep == "values":
        draw = torch.rand(rest.shape, generator=generator, device=logits.device)
        rest = rest.gather(1, draw.argsort(dim=1))
    elif keep == "fixed_order":
        rest = rest.sort(dim=1).values
    left = torch.empty_like(ranked).scatter_(1, torch.cat([top, rest], dim=1), ranked)
    return (left / temperature).softmax(dim=1).float()


LEVELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "max": lambda others, _: others.mean(dim=1, keepdim=True),
    "confidence": lambda others, t: t * _log_mean_exp(others / t),
    "gap": lambda others, _: others.amax(dim=1, keepdim=True),
}
"""The one logit that all but the largest class get: what stays the same when they are levelled."""


def _log_mean_exp(values: Tensor) -> Tensor:
    count = torch.tensor(values.shape[1], dtype=values.dtype, device=values.device)
    return values.logsumexp(dim=1, keepdim=True) - count.log()
