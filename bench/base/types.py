"""The nouns that every part shares: plain frozen data, importable without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Norm = Literal["l0", "l2", "linf"]
Measure = Literal["l0", "l2", "linf", "none"]
Unit = Literal["input", "features", "pixels"]
Access = Literal["gradients", "scores", "decisions", "transfer"]
Targets = Literal["untargeted", "all", "random", "runner-up"]
Status = Literal["done", "skipped", "failed"]
Severity = Literal["info", "warning", "error"]

Document = dict[str, Any]
"""A JSON object: string keys; values that ``json`` writes and reads back unchanged."""


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may change, and by how much.

    ``norm`` is ``l0``, ``l2`` or ``linf``. For ``l0`` the ``unit`` is ``features`` or ``pixels``
    and ``budget`` a fraction of them in (0, 1]; for ``l2`` and ``linf`` the unit is ``input`` and
    the budget a length in input units (inputs lie in [0, 1]). ``budget`` is None for a
    minimum-norm attack. Results of different threat models are never averaged or ranked together.

    ``norm`` is ``none``, without a budget, for inputs that have no source: anything in the box
    goes, nothing is held against a source, and its label says nothing of them. They are no
    adversarial versions of it, and count towards no worst case.
    """

    norm: Measure
    budget: float | None = None
    unit: Unit = "input"

    def __post_init__(self) -> None:
        if (self.norm == "l0") != (self.unit in ("features", "pixels")):
            raise ValueError(
                f"an l0 threat model counts features or pixels and no other does, "
                f"got norm {self.norm!r} with unit {self.unit!r}"
            )
        if self.norm == "none" and self.budget is not None:
            raise ValueError(
                f"norm 'none' holds nothing against a source and takes no budget, "
                f"got {self.budget!r}"
            )
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget must be positive or None, got {self.budget!r}")
        if self.norm == "l0" and self.budget is not None and self.budget > 1:
            raise ValueError(f"an l0 budget is a fraction in (0, 1], got {self.budget!r}")

    def __str__(self) -> str:
        if self.norm == "none":
            return "any input"
        name = {"l0": "L0", "l2": "L2", "linf": "L∞"}[self.norm]
        if self.budget is None:
            return f"{name}, minimum norm" + (f" ({self.unit})" if self.norm == "l0" else "")
        if self.norm == "l0":
            return f"{name} ≤ {100 * self.budget:.4g} % of {self.unit}"
        return f"{name} ≤ {self.budget:.4g}"


@dataclass(frozen=True)
class DataInfo:
    """What a network has to know of a data set: input shape, classes, per-channel statistics.

    ``mean`` and ``std`` are over the training split, one value a channel for images
    (``(channels, height, width)``) and a single value for every other shape.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def features(self) -> int:
        """Number of input features d."""
        return count_features(self.shape)


def count_features(shape: tuple[int, ...]) -> int:
    """Return the product of ``shape``."""
    total = 1
    for size in shape:
        total *= size
    return total


USUAL = 28 * 28
"""Features of an input whose batches are as large as they may be."""


def rows_at_once(shape: tuple[int, ...], most: int, size: int = 4) -> int:
    """Return how many inputs of ``shape`` go through a model at once: ``most`` of MNIST's size.

    Fewer of larger ones: what a network keeps for its gradient grows with them, and networks for
    them are larger too (ResNet-18 on 32 × 32 images keeps 6.7 MB a row). A sixteenth of ``most``
    at least. ``size``: bytes of a number. Inside ``fewer_rows`` a share of that.
    """
    features, share = count_features(shape), _share.get()
    found = most
    if features > USUAL:
        found = max(most // 16, 2 * most * USUAL // (features * size))
    return max(1, found // share)


_share: ContextVar[int] = ContextVar("rows_at_once", default=1)


@contextmanager
def fewer_rows(share: int) -> Iterator[None]:
    """Let ``rows_at_once`` answer a ``share``-th inside: of a device that has no room for more."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


@dataclass(frozen=True)
class Outcome:
    """How a node of the plan ended. A failure is a value, never a number."""

    status: Status
    reason: str | None = None


@dataclass(frozen=True)
class Flag:
    """One suspicion of the evaluation against itself, with the figure that raised it."""

    id: str
    severity: Severity
    value: float
    threshold: float
    evidence: str
    advice: str
    samples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Measured:
    """The figure that a flag looked at, whether it was raised or not; ``p``: of a comparison."""

    flag: str
    value: float
    raised: bool
    p: float | None = None


@dataclass(frozen=True)
class Suspicions:
    """What a set of flags came to: those raised, and by id why others could not be evaluated.

    A flag in neither was evaluated and is clear; one that was not evaluated never counts as clear.
    ``measured``: the figures behind flags with a threshold that is calibrated.
    """

    flags: tuple[Flag, ...] = ()
    not_evaluated: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()

    def __add__(self, other: Suspicions) -> Suspicions:
        """Return both together."""
        return Suspicions(
            (*self.flags, *other.flags),
            {**self.not_evaluated, **other.not_evaluated},
            (*self.measured, *other.measured),
        )

    def document(self) -> Document:
        """Return both as JSON: ``flags`` and ``not_evaluated``."""
        return {
            "flags": [asdict(flag) for flag in self.flags],
            "not_evaluated": dict(self.not_evaluated),
        }


@dataclass(frozen=True)
class Spec:
    """A registered name with parameters: how one plugin names another without importing it."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


def spec_of(document: Document) -> Spec:
    """Return the plugin that a node's document names: its ``name`` and complete ``params``."""
    return Spec(document["name"], document["params"])


_FRACTION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*/\s*(\d+(?:\.\d*)?|\.\d+)\s*")


def as_number(text: str) -> float:
    """Return a number as people write it, ``0.1`` or a fraction as in ``8/255``.

    Raises ValueError that shows how, for anything else and a division by zero.

    >>> as_number("8/255") == 8 / 255
    True
    """
    if match := _FRACTION.fullmatch(text):
        above, below = (float(part) for part in match.groups())
        if not below:
            raise ValueError(f"{text!r} divides by zero")
        return above / below
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"a number is expected, as 0.1 or 8/255, got {text!r}") from error


def with_fractions(value: Any) -> Any:
    """Return ``value`` with every text that is a fraction, as ``"8/255"``, as a number.

    In lists and tables too: TOML has no fractions. Any other text stays text.
    """
    if isinstance(value, str):
        return as_number(value) if _FRACTION.fullmatch(value) else value
    if isinstance(value, Mapping):
        return {key: with_fractions(item) for key, item in value.items()}
    return [with_fractions(item) for item in value] if isinstance(value, list) else value


class UserError(Exception):
    """A mistake in the command line, a matrix, a plugin's name or the data: exit status 2.

    The message says what was given, what was expected, and the nearest valid choice.
    """


class UnwritableError(UserError):
    """A file cannot be written: a full disk, a read-only folder. The message names the file."""


class DamagedError(Exception):
    """A file is missing, cannot be read, or is not what its checksum says."""
