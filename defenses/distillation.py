"""Defensive distillation: Papernot, McDaniel, Wu, Jha, Swami 2016, arXiv 1511.04508.

A teacher is trained at temperature T on hard labels; a student of the same architecture is
trained at T on the teacher's probabilities at T; the student is deployed at T = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bench.measure.recast import check_temperature
from bench.plugins.contracts import Defense, FitContext
from bench.plugins.data import Split
from defenses.teachers import answers


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / temperature) over the last axis (section III-B of the paper)."""
    return (logits / temperature).softmax(dim=-1)


@dataclass(frozen=True)
class TemperatureOnly(Defense):
    """The teacher itself: trained at ``temperature`` on hard labels, deployed at T = 1.

    A control: does distillation do anything that the temperature alone does not?
    """

    temperature: float = 20.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train at the temperature on hard labels."""
        context.train(model, train.x, train.y, temperature=self.temperature)


@dataclass(frozen=True)
class Distillation(Defense):
    """A student of a teacher of its own architecture, both trained at ``temperature``."""

    temperature: float = 20.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def requires(self) -> Mapping[str, Defense]:
        """Name the teacher, a fit that the plan shares."""
        return {"teacher": TemperatureOnly(self.temperature)}

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train at the temperature on the teacher's probabilities at the temperature."""
        logits = answers(context.fitted["teacher"], train.x, context.info)
        labels = soften(logits, self.temperature)
        context.train(model, train.x, labels, temperature=self.temperature)
