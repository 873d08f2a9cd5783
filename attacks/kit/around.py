"""What an attack that hands its work to another one is to everybody else: that other one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.base.types import Targets, ThreatModel
from bench.plugins import parameter, registry
from bench.plugins.contracts import Attack, LearningAttack


@dataclass(frozen=True)
class AroundAttack(Attack):
    """An attack around an ``inner`` one: threat model, goal, targets and files are that one's.

    A subclass sets ``inner`` in ``__post_init__``, by ``inner_attack``.
    """

    inner: Attack = field(init=False, repr=False, compare=False)

    @property
    def targets(self) -> Targets:
        """The inner attack's."""
        return self.inner.targets

    @property
    def targeted(self) -> bool:
        """The inner attack's."""
        return self.inner.targeted

    @property
    def confidence(self) -> float | None:
        """The inner attack's."""
        return self.inner.confidence

    def unavailable(self) -> str | None:
        """Say why the inner attack cannot run here."""
        return self.inner.unavailable()

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the inner attack's threat model."""
        return self.inner.threat(shape)

    def files(self) -> Sequence[Path]:
        """Name the files that the inner attack reads."""
        return self.inner.files()

    def code(self) -> Sequence[Callable[..., Any]]:
        """Name the inner attack: its source is part of the cell's identity."""
        return (type(self.inner), *self.inner.code())


def inner_attack(given: Mapping[str, Any] | str, example: str) -> tuple[Attack, dict[str, Any]]:
    """Return the attack that the parameter ``attack`` describes, and its complete table.

    Raises ValueError for what ``bench.plugins.parameter.resolve`` refuses, and for one that needs
    more than the model before it: another fitted model, or a fit of its own.
    """
    inner, table = parameter.resolve(registry.ATTACKS, "attack", given, example)
    if isinstance(inner, LearningAttack):
        raise ValueError(  # noqa: TRY004 (of a parameter's value)
            f"it needs an attack that can begin at once, got {table['name']!r}, which learns "
            "before it attacks"
        )
    if inner.access == "transfer" or inner.requires():
        raise ValueError(
            f"it needs an attack that looks at its model itself, got {table['name']!r}, which "
            "needs other models"
        )
    return inner, table
