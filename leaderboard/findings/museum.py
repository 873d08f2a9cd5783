"""Published, believed, broken: whether the verdict finds out without being told how.

``python -m leaderboard.findings.museum > docs/museum.md`` writes the guide to the exhibits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.base.rows import Results, VerdictRow
from bench.evidence.finished_run import read_results
from leaderboard.figures.material import Material
from leaderboard.figures.style import WIDTH, legend, new_figure, styled
from leaderboard.findings.finding import Finding, told, words
from leaderboard.tables.museum import (
    ALLOWANCE,
    NEAR,
    Case,
    case_table,
    cases,
    exhibited,
    exhibits,
    outcome,
    record_table,
)
from leaderboard.tables.numbers import points
from leaderboard.tables.verdicts import verdict_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "published"

PUBLISHED = ("broken-digits", "broken-l2", "broken-mnist")
"""The runs that the guide tells of, where they are."""

DATA = {"mnist": "MNIST"}
"""Data sets whose name is written in another way than they are registered."""

FIGURE = "museum"
"""The name of its file."""

_MARKS: dict[str, dict[str, Any]] = {
    "naive attack": {"color": "#E69F00", "marker": "s", "zorder": 2},
    "panel alone": {"color": "#0072B2", "marker": "o", "zorder": 3},
    "with the way round": {"color": "#000000", "marker": "|", "markersize": 9, "zorder": 4},
}


def museum(results: Results) -> Finding | None:
    """Tell what the panels say of the broken defenses of a run, beside those that hold."""
    shown = [found for found in cases(results) if exhibited(found)]
    if not shown:
        return None
    panels = [
        f"{table.norm_name}, {table.at(table.shown[0])}"
        for table in verdict_tables(results.verdicts)
    ]
    tables = [
        (f"{name}: share of sources that stand, one value a seed.", case_table(found))
        for name, found in zip(panels, cases(results), strict=True)
        if found in shown
    ]
    first = shown[0]
    broken = [case for case in first if case.record is not None]
    far = [case for case in broken if case.far]
    return told(
        "museum",
        [*tables, ("The record.", record_table(first))],
        [FIGURE],
        panel=panels[cases(results).index(first)],
        outcome=outcome(first),
        holding=[case.label for case in broken if case.holds],
        limit=f"{100 * NEAR:g}",
        far=[f"{case.label} ({points(case.gap, digits=1)})" for case in far],
        apart={case.label: case.record.apart for case in far if case.record and case.record.apart},
        flags=_flags(broken),
        measured=sum(case.sound is not None for case in broken),
        sound=sum(bool(case.sound) for case in broken),
        allowance=f"{100 * ALLOWANCE:g}",
        costly=[_lost(case) for case in broken if case.sound is False],
        controls=[f"{case.label}: {case.row['verdict']}" for case in first if case.record is None],
    )


def _flags(broken: Sequence[Case]) -> list[str]:
    """Return how many of the defenses each flag warns of, the most first."""
    counts = Counter(flag for case in broken for flag in case.flags)
    return [f"{name} ({count})" for name, count in counts.most_common()]


def _lost(case: Case) -> str:
    assert case.record is not None
    return f"{case.label} ({points(-(case.lost or 0))}, of which {case.record.cost} are its idea's)"


@styled
def draw_museum(results: Results, _: Material) -> dict[str, Figure]:
    """Draw what naive attack, panel and way round leave of each defense, means over seeds."""
    found = next((found for found in cases(results) if exhibited(found)), None)
    if found is None:
        return {}
    rows = sorted(found, key=lambda case: (case.record is None, _left(case.row, "naive")))
    figure, axis = new_figure(1.8 * WIDTH, 0.22 * (len(rows) + 4))
    for place, case in enumerate(rows):
        naive, alone = (_left(case.row, key) for key in ("naive", "worst_case"))
        axis.plot([alone, naive], [place, place], color="0.75", zorder=1)
        axis.plot(naive, place, linestyle="none", **_MARKS["naive attack"])
        axis.plot(alone, place, linestyle="none", **_MARKS["panel alone"])
        if case.adaptive is not None:
            left = _left(case.adaptive, "worst_case")
            axis.plot(left, place, linestyle="none", **_MARKS["with the way round"])
    for name, mark in _MARKS.items():
        axis.plot([], [], linestyle="none", label=name, **mark)
    axis.set_yticks(range(len(rows)), [case.label for case in rows])
    axis.axhline(sum(case.record is not None for case in rows) - 0.5, color="0.5", linewidth=0.5)
    axis.set_xlim(-2, 102)
    axis.set_xlabel("sources that stand, in %; above the line, controls")
    legend(figure)
    return {FIGURE: figure}


def _left(row: VerdictRow, key: Literal["naive", "worst_case"]) -> float:
    known = [100 * seed[key] for seed in row["seeds"] if seed[key] is not None]  # type: ignore[operator]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Shown:
    """A run of the museum, as the guide tells of it: the cases of its first panel.

    ``name``: of its folder; ``where``: data set and panel; ``size``: sources and training seeds.
    """

    name: str
    where: str
    size: str
    cases: Sequence[Case]

    @classmethod
    def of(cls, name: str, results: Results) -> Shown:
        """Read it from the rows of a run, which has a panel of broken defenses."""
        place = next(place for place, one in enumerate(cases(results)) if exhibited(one))
        table, found = verdict_tables(results.verdicts)[place], cases(results)[place]
        seeds = found[0].row["seeds"]
        data = DATA.get(table.dataset, table.dataset)
        return cls(
            name,
            f"{data}, {table.norm_name}, {table.at(table.shown[0])}",
            f"{seeds[0]['sources']} sources, {len(seeds)} training seed{'s' * (len(seeds) > 1)}",
            found,
        )

    @property
    def outcome(self) -> str:
        """What the panel says of its broken defenses, in a sentence."""
        return outcome(self.cases)

    @property
    def controls(self) -> list[Case]:
        """The defenses beside them that were not broken."""
        return [case for case in self.cases if case.record is None]

    def about(self, defense: str) -> list[Case]:
        """Return what it has of one exhibit, which may have several versions."""
        return [case for case in self.cases if case.row["defense"] == defense]


def published() -> list[Shown]:
    """Return the published runs of the museum, none in a package without them."""
    there = [name for name in PUBLISHED if (FOLDER / name).exists()]
    return [Shown.of(name, read_results(FOLDER / name)) for name in there]


def guide(shown: Sequence[Shown] = ()) -> str:
    """Return ``docs/museum.md``: a section a record, and what runs of the museum say of each."""
    template = words().get_template("museum.md.j2")
    return template.render(exhibits=exhibits(), shown=shown)


if __name__ == "__main__":
    import sys

    sys.stdout.write(guide(published()))
