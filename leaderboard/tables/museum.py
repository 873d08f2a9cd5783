"""Defenses that were published and broken: what was claimed, and what a run says of each.

``papers/broken/NAME.toml`` holds the record of the defense that is registered as NAME.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from bench.base.rows import Results, SeedRow, VerdictRow, warns
from leaderboard.tables.cells import labels
from leaderboard.tables.numbers import UNDEFINED, fixed, given, percent, shares

ADAPTIVE = "adaptive"
"""The defense that is another, attacked by the way round of the literature (``of``)."""

NEAR = 0.05
"""How much more than the way round the panel alone may leave, to have found it by itself."""

ALLOWANCE = 0.02
"""What clean accuracy may lose beyond the paper's cost: two networks that differ in their seed
alone differ by as much on a few hundred images."""

Certainty = Literal["stated", "authors", "listed", "recalled", "unknown"]
"""``stated`` in a text at hand, by the ``authors`` in public, ``listed`` by robust-ml.org,
``recalled`` from the paper."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Accuracy(_Document):
    """A published figure: the share of inputs classified correctly under an attack, in [0, 1].

    ``threat``: attack, norm, budget and data set in the paper's words; ``words``: what was said
    beside the figure, or instead of one.
    """

    certainty: Certainty
    threat: str = ""
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    words: str = ""

    def __str__(self) -> str:
        """Return figure, threat and how sure both are."""
        parts = [
            "" if self.accuracy is None else percent(self.accuracy, 0), self.words, self.threat,
        ]  # fmt: skip
        sure = "" if self.certainty == "stated" else f" ({self.certainty})"
        return ", ".join(part for part in parts if part) + sure


class Fall(Accuracy):
    """What became of a claim, and ``by`` whom."""

    by: str


class Cost(_Document):
    """What the idea costs in clean accuracy by its paper: ``points``, a share of the inputs."""

    certainty: Certainty
    points: Annotated[float, Field(ge=0, le=1)]
    words: str

    def __str__(self) -> str:
        """Return the points, where they were lost, and how sure both are."""
        sure = "" if self.certainty == "stated" else f" ({self.certainty})"
        points = given(round(100 * self.points, 2))
        return f"{points} point{'' if points == '1' else 's'}, {self.words}{sure}"


class Exhibit(_Document):
    """The record of one defense: a sentence each on idea, appearance and what gave it away.

    ``way_round``: the adaptive attack of the literature. ``by_itself``: why the panel's attacks are
    that attack already, so that none stands beside them; empty where it is another. ``apart``: why
    the panel alone may leave much more, and what finds it.
    """

    paper: str
    idea: str
    looked_good: str
    gave_away: str
    way_round: str
    by_itself: str = ""
    apart: str = ""
    cost: Cost
    claim: Accuracy
    broken: Fall


@cache
def exhibits() -> dict[str, Exhibit]:
    """Return every record that comes with the package, by the name of its defense."""
    folder = files("leaderboard") / "papers" / "broken"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".toml")), key=str)
    return {
        item.name.removesuffix(".toml"): Exhibit.model_validate(
            tomllib.loads(item.read_text(encoding="utf-8"))
        )
        for item in found
    }


@dataclass(frozen=True)
class Case:
    """One defense of a run at one budget of a panel.

    ``record``: None of a control. ``adaptive``: the same networks, attacked by the way round.
    ``accuracy`` and ``plain``: clean accuracy, and that of the undefended network, one a seed.
    """

    label: str
    row: VerdictRow
    record: Exhibit | None
    adaptive: VerdictRow | None
    accuracy: Sequence[float | None] = ()
    plain: Sequence[float | None] = ()

    @property
    def gap(self) -> float | None:
        """How much more the panel alone leaves than the way round, the mean over seeds."""
        if self.adaptive is None:
            return None
        found = [
            mine["worst_case"] - theirs["worst_case"]
            for mine, theirs in zip(self.row["seeds"], self.adaptive["seeds"], strict=True)
            if mine["worst_case"] is not None and theirs["worst_case"] is not None
        ]
        # Of shares of some hundred sources: 5 points are 5 points, whatever a sum of floats says.
        return round(sum(found) / len(found), 9) if found else None

    @property
    def far(self) -> bool:
        """Whether the panel did not find by itself what the way round finds."""
        return (self.gap or 0) > NEAR

    @property
    def lost(self) -> float | None:
        """How much less clean accuracy it has than the undefended network, the mean over seeds."""
        found = [
            theirs - mine
            for mine, theirs in zip(self.accuracy, self.plain, strict=False)
            if mine is not None and theirs is not None
        ]
        return sum(found) / len(found) if found else None

    @property
    def sound(self) -> bool | None:
        """Whether that is within what its paper lost and ``ALLOWANCE``; None if unknown."""
        if self.record is None or self.lost is None:
            return None
        return self.lost <= self.record.cost.points + ALLOWANCE

    @property
    def flags(self) -> list[str]:
        """Names of the flags that warn, of any seed."""
        found = (flag for seed in self.row["seeds"] for flag in seed["flags"] if warns(flag))
        return list(dict.fromkeys(flag["id"] for flag in found))

    @property
    def holds(self) -> bool:
        """Whether the verdict is that it holds, or would with more seeds."""
        return self.row["verdict"].startswith("holds")

    def line(self) -> dict[str, str]:
        """Return the row of the table."""
        seeds = self.row["seeds"]
        adaptive = () if self.adaptive is None else self.adaptive["seeds"]
        return {
            "defense": self.label,
            "claimed": UNDEFINED if self.record is None else str(self.record.claim),
            "clean": shares(self.accuracy),
            "naive": shares((seed["naive"] for seed in seeds), 0),
            "panel alone": _worst(seeds),
            "with the way round": _worst(adaptive) if adaptive else self._instead(),
            "difference": UNDEFINED if self.gap is None else fixed(100 * self.gap, 0, "+"),
            "verdict": self.row["verdict"],
            "flags": ", ".join(self.flags) or UNDEFINED,
            "passes": f"{_passes(seeds):,}",
        }

    def _instead(self) -> str:
        """Return what stands in the place of a figure with the way round."""
        return "the panel's own" if self.record and self.record.by_itself else UNDEFINED


def cases(results: Results) -> list[list[Case]]:
    """Return the defenses of a run by panel, at the headline budget, or the largest without one."""
    found = []
    models = {row["id"]: row.get("accuracy") for row in results.models}
    panels: dict[str, list[VerdictRow]] = {}
    for row in results.verdicts:
        panels.setdefault(row["threat"]["norm"], []).append(row)
    for rows in panels.values():
        shown = [row for row in rows if row["headline"]]
        shown = shown or [row for row in rows if row["at"] == rows[-1]["at"]]
        ways = [row for row in shown if row["defense"] == ADAPTIVE]
        others = [row for row in shown if row["defense"] != ADAPTIVE and row["rule"] is not None]
        plain = next((_clean(row, models) for row in shown if row["rule"] is None), ())
        found.append(
            [
                Case(
                    label, row, exhibits().get(row["defense"]),
                    next((way for way in ways if _of(way) == _identity(row)), None),
                    _clean(row, models), plain,
                )
                for label, row in zip(labels(others, "defense"), others, strict=True)
            ]
        )  # fmt: skip
    return found


def case_table(found: Sequence[Case]) -> pd.DataFrame:
    """Return one line a defense."""
    return pd.DataFrame([case.line() for case in found])


def record_table(found: Sequence[Case]) -> pd.DataFrame:
    """Return paper, idea, why it looked good and what gave it away, one line a defense."""
    return pd.DataFrame(
        {
            name: {
                "defense": name,
                "paper": record.paper,
                "idea": record.idea,
                "why it looked good": record.looked_good,
                "what gave it away": record.gave_away,
                "the way round": record.way_round,
                "broken": f"{record.broken.by}: {record.broken}",
                "what it costs": str(record.cost),
            }
            for name, record in exhibits().items()
            if any(case.row["defense"] == name for case in found)
        }.values()
    )


def outcome(found: Sequence[Case]) -> str:
    """Return in a sentence what the panel says of the broken defenses among ``found``."""
    broken = [case for case in found if case.record is not None]
    names = {case.row["defense"] for case in broken}
    holding = {case.row["defense"] for case in broken if case.holds}
    ways = [case for case in broken if case.gap is not None]
    near = sum(not case.far for case in ways)
    own = sum(bool(case.record and case.record.by_itself) for case in broken)
    told = f"{len(holding) or 'none'} of {len(names)} broken defenses is found to hold"
    if ways:
        told += (
            f"; in {near} of {len(ways)} cases the panel alone comes within {100 * NEAR:g} points "
            "of the adaptive attack"
        )
    return told + (f", and in {own} more it is that attack" if own else "")


def exhibited(found: Sequence[Case]) -> bool:
    """Return whether ``found`` is a museum: several broken defenses, and not one in versions."""
    return len({case.row["defense"] for case in found if case.record is not None}) > 1


def _clean(row: VerdictRow, models: Mapping[str, float | None]) -> tuple[float | None, ...]:
    return tuple(models.get(seed["model"]) for seed in row["seeds"])


def _of(row: VerdictRow) -> tuple[str, dict[str, object]]:
    table = dict(row["defense_params"]["of"])
    return str(table.pop("name")), table


def _identity(row: VerdictRow) -> tuple[str, dict[str, object]]:
    return row["defense"], row["defense_params"]


def _worst(seeds: Sequence[SeedRow]) -> str:
    return shares((seed["worst_case"] for seed in seeds), 0)


def _passes(seeds: Sequence[SeedRow]) -> int:
    """Return forward and backward passes of the panel, a source, the mean over seeds."""
    total = sum((seed["forwards"] or 0) + (seed["backwards"] or 0) for seed in seeds)
    return round(total / max(1, sum(seed["sources"] for seed in seeds)))
