"""What is true of each foolbox attack: the table from which the adapter derives everything.

Read off foolbox 3.3.4. Its epsilon is no keyword of a class but of the call, and decides whether
there is a budget: a minimum-norm class is called without one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.base.text import nearest
from bench.base.types import Norm, Unit, UserError


@dataclass(frozen=True)
class Mapped:
    """What is true of one foolbox class.

    ``norm``, ``unit``: its threat model. ``fixed``: its budget is our ``eps``, in input units;
    otherwise it looks for the minimum norm and takes none. ``targeted``: whether it can reach for
    a target. ``defaults``: the keywords that a matrix file may give, with foolbox's defaults.
    """

    norm: Norm
    defaults: Mapping[str, Any]
    unit: Unit = "input"
    fixed: bool = False
    targeted: bool = True


# With min_stepsize None it is a hundredth of max_stepsize.
_FMN = {"steps": 100, "max_stepsize": 1.0, "min_stepsize": None, "gamma": 0.05}
_DEEPFOOL = {"steps": 50, "candidates": 10, "overshoot": 0.02, "loss": "logits"}
# A step is rel_stepsize times eps, or abs_stepsize where that is given.
_PGD = {"rel_stepsize": 0.025, "abs_stepsize": None, "steps": 50, "random_start": True}

MAPPED: dict[str, Mapped] = {
    "DDNAttack": Mapped("l2", {"init_epsilon": 1.0, "steps": 100, "gamma": 0.05}),
    # Its projection indexes one past the last feature once its budget has grown to all of them:
    # on a row that stays unbroken for long it raises IndexError, and the cell fails.
    "L0FMNAttack": Mapped("l0", _FMN, unit="features"),
    # abort_early looks at the loss of the whole batch: a row depends on its neighbours.
    "L2CarliniWagnerAttack": Mapped(
        "l2",
        {
            "binary_search_steps": 9,
            "steps": 10_000,
            "stepsize": 1e-2,
            "confidence": 0.0,
            "initial_const": 1e-3,
            "abort_early": True,
        },
    ),
    # Towards a target DeepFool goes on to the nearest boundary, whatever the class behind it.
    "L2DeepFoolAttack": Mapped("l2", _DEEPFOOL, targeted=False),
    # Its projection divides the norms by themselves, so it never shrinks a perturbation: it
    # finds larger ones than DDNAttack, which is the L2 attack to take.
    "L2FMNAttack": Mapped("l2", _FMN),
    "L2PGD": Mapped("l2", _PGD, fixed=True),
    "LInfFMNAttack": Mapped("linf", _FMN),
    "LinfDeepFoolAttack": Mapped("linf", _DEEPFOOL, targeted=False),
    "LinfPGD": Mapped("linf", _PGD | {"rel_stepsize": 0.01 / 0.3, "steps": 40}, fixed=True),
}

LOSSES = ("logits", "crossentropy")
"""What DeepFool can linearise."""


def row_of(name: object) -> Mapped:
    """Return the row of a foolbox class; raises UserError where it is not mapped."""
    if not isinstance(name, str) or name not in MAPPED:
        raise UserError(f"no foolbox attack {name!r} is mapped: {nearest(str(name), MAPPED)}")
    return MAPPED[name]


def complete(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return all keywords of a class; raises UserError for one that is unknown or out of range."""
    defaults = row_of(name).defaults
    for key, value in params.items():
        if key not in defaults:
            raise UserError(f"foolbox's {name} has no parameter {key!r}: {nearest(key, defaults)}")
        if (expected := _refused(key, value, defaults[key])) is not None:
            raise UserError(f"{key} of foolbox's {name} must be {expected}, got {value!r}")
    given = {**defaults, **params}
    return {key: _as(given[key], defaults[key]) for key in sorted(given)}


def _refused(key: str, value: Any, default: Any) -> str | None:
    """Say what was expected of a keyword, or nothing where ``value`` will do."""
    if key == "loss":
        return None if value in LOSSES else " or ".join(map(repr, LOSSES))
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        least = 2 if key == "candidates" else 1
        good = number and isinstance(value, int) and value >= least
        return None if good else f"an integer of at least {least}"
    if default is None and value is None:
        return None
    return None if number and 0 <= value < math.inf else "a finite number that is not negative"


def _as(value: Any, default: Any) -> Any:
    is_float = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_float and not isinstance(default, int) else value
