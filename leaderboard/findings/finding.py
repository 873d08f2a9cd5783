"""The parts of every finding: what it is, and how rows of several seeds become words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from leaderboard.tables.cells import Row, labels
from leaderboard.tables.numbers import each, fixed, given, points, shares, spanned

TRAINED = ("adversarial_training", "trades", "virtual_adversarial_training")
"""Defenses that train on perturbed inputs: what the findings call robust training."""

WHOLE = (-math.inf, math.inf)


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows, made of its rows alone.

    ``sentences``: two, in plain text; ``tables``: each with its caption; ``figures``: names of
    files in ``figures/``, shown where they were drawn; ``notes``: how it was measured, and what it
    does not say.
    """

    title: str
    sentences: tuple[str, str]
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    figures: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Group:
    """The rows of one defense, one a training seed, and its label among its namesakes."""

    label: str
    rows: tuple[Row, ...]

    @property
    def defense(self) -> str:
        """The registered name."""
        return str(self.rows[0]["defense"])

    @property
    def params(self) -> Row:
        """The parameters."""
        params: Row = self.rows[0]["defense_params"]
        return params

    def values(self, key: str) -> list[float]:
        """Return what is known of ``key``, one value a seed."""
        return [float(row[key]) for row in self.rows if row.get(key) is not None]

    def by_seed(self, key: str) -> list[float | None]:
        """Return ``key`` of every seed in order, None where it is not known."""
        return [None if row.get(key) is None else float(row[key]) for row in self.rows]

    def mean(self, key: str) -> float | None:
        """Return the mean over seeds, None where nothing is known."""
        values = self.values(key)
        return sum(values) / len(values) if values else None

    def spanned(self, key: str, digits: int = 3) -> str:
        """Return the mean over seeds, with brackets that span the intervals of all seeds."""
        ends = [row[f"{key}_ci"] for row in self.rows if row.get(f"{key}_ci") is not None]
        bounds = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None
        return spanned(self.mean(key), bounds, digits)


def told(
    name: str,
    tables: Sequence[tuple[str, pd.DataFrame]],
    figures: Sequence[str] = (),
    **numbers: object,
) -> Finding:
    """Return the finding whose words stand in ``templates/finding-NAME.j2``.

    Its blocks ``title``, ``first``, ``second`` and ``notes``, a paragraph each, take ``numbers``.
    """
    template = words().get_template(f"finding-{name}.j2")
    context = template.new_context(dict(numbers))
    title, first, second, notes = (
        "".join(template.blocks[block](context)) for block in ("title", "first", "second", "notes")
    )
    paragraphs = [_prose(text) for text in notes.split("\n\n") if text.strip()]
    return Finding(
        _prose(title), (_prose(first), _prose(second)), tables, figures, tuple(paragraphs)
    )


def _prose(text: str) -> str:
    """Return what a template made as one line, without a blank before a stop."""
    return re.sub(r" ([.,:;])", r"\1", " ".join(text.split()))


@cache
def words() -> Environment:
    """Return the templates of sentences, with their filters."""
    found = Environment(
        loader=PackageLoader("leaderboard"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 (the page escapes what a finding says)
    )
    found.filters.update(
        each=each, fixed=fixed, given=given, listed=listed, points=points, shares=shares
    )
    return found


def groups(rows: Iterable[Row]) -> list[Group]:
    """Return the rows by defense, in their order."""
    rows = list(rows)
    found: dict[str, list[Row]] = {}
    for label, row in zip(labels(rows, "defense"), rows, strict=True):
        found.setdefault(label, []).append(row)
    return [Group(label, tuple(members)) for label, members in found.items()]


def apart(low: Group, high: Group, key: str) -> bool:
    """Return whether every interval of ``key`` in ``low`` ends below every one in ``high``.

    A seed at which nothing is known says nothing; a mean without an interval is never apart.
    """
    sides = [
        # Without an interval it may be anything: no end of it lies below another.
        [row.get(f"{key}_ci") or WHOLE for row in group.rows if row.get(key) is not None]
        for group in (low, high)
    ]
    if not all(sides):
        return False
    return bool(max(high for _, high in sides[0]) < min(low for low, _ in sides[1]))


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence, as ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
