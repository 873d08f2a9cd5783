"""Security curves: the accuracy that the worst of all attacks leaves, against its budget.

One figure a data set and norm, from rows of ``verdicts.json``, each defense beside the undefended
network of the same seeds. The same rows give the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.base.rows import VerdictRow
from leaderboard.figures.style import HEIGHT, STYLES, WIDTH, Style, save, styled
from leaderboard.tables.cells import labels
from leaderboard.tables.verdicts import VerdictTable, verdict_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOGETHER = 4
"""Defenses that are legible in one pair of axes; more of them get axes of their own each."""

ACROSS, TALL = 3, 1.05
"""Such axes beside one another, and the inches of each row of them."""

MARKERS = 6
"""About as many markers a line, whatever the number of its points."""

TITLE = 20
"""Letters in a line of a title."""

UNITS = {"l0": "features changed", "l2": "budget, L2 length", "linf": "budget ε, L∞"}

Line = tuple[Sequence[float], Sequence[float]]
"""Budgets, and the accuracy left at each, in %."""


@styled
def curves(rows: Sequence[VerdictRow]) -> dict[str, Figure]:
    """Return one figure a data set and norm, by name: ``curve-digits-linf``."""
    made = {f"curve-{table.dataset}-{table.norm}": _curve(table) for table in verdict_tables(rows)}
    return {name: figure for name, figure in made.items() if figure is not None}


def write_curves(rows: Sequence[VerdictRow], folder: Path) -> list[Path]:
    """Draw the curves of ``rows`` to ``folder`` as PDF and PNG; return the files."""
    return save(curves(rows), folder) if rows else []


def _curve(table: VerdictTable) -> Figure | None:
    rows = [row for row in table.rows if row["curve"] is not None]
    drawn = [row["curve"] for row in rows if row["curve"] is not None]
    named = list(zip(labels(rows, "defense"), rows, drawn, strict=True))
    # The reference row is the undefended network itself, which stands in every curve.
    defenses = {name: curve for name, row, curve in named if row["verdict"] != "reference"}
    measured = {0.0, *(row["at"] for row in table.rows)}
    plain = _lines(drawn[0]["at"], drawn[0]["undefended"], measured) if drawn else []
    lines = {
        name: _lines(curve["at"], curve["worst_case"], measured) for name, curve in defenses.items()
    }
    if not defenses and not plain:
        return None
    if len(defenses) <= TOGETHER:
        return _together(table, plain, lines)
    return _apart(table, plain, lines, _naive(table))


def _under(table: VerdictTable) -> str:
    """Return what stands below the axis: the budget, and what was measured."""
    sources = max(seed["sources"] for row in table.rows for seed in row["seeds"])
    return f"{UNITS[table.norm]}\n({table.dataset}, {sources} sources, a line a training seed)"


def _naive(table: VerdictTable) -> dict[str, list[Line]]:
    """Return what the naive attack alone leaves of each defense, a line a seed."""
    found: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
    for name, row in zip(labels(table.rows, "defense"), table.rows, strict=True):
        for seed in row["seeds"]:
            if seed["naive"] is not None:
                at, left = found.setdefault(name, {}).setdefault(seed["seed"], ([], []))
                at.append(row["at"])
                left.append(100 * seed["naive"])
    return {name: list(seeds.values()) for name, seeds in found.items()}


def _lines(
    at: Sequence[float], seeds: Mapping[str, list[float] | None], measured: set[float]
) -> list[Line]:
    """Return the line of every seed whose panel is complete, at the budgets that were attacked.

    Most attacks spend what they may: just below a budget of the panel nothing was tried, and a
    line there would show robustness that nobody looked for. Under L0 that is so where gradients
    are masked, for then only the black box, which is run at each budget, gets anywhere.
    """
    kept = [i for i, budget in enumerate(at) if budget in measured]
    return [
        ([at[i] for i in kept], [100 * line[i] for i in kept])
        for line in seeds.values()
        if line is not None
    ]


def _together(
    table: VerdictTable, plain: Sequence[Line], defenses: Mapping[str, Sequence[Line]]
) -> Figure:
    """Draw every defense into the same axes."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    if table.compared:
        _plot(axes, plain, STYLES[0], table.reference)
    for style, (name, lines) in zip(STYLES[1:], defenses.items(), strict=False):
        _plot(axes, lines, style, _legible(name))
    _frame(axes, table.norm)
    axes.set_xlabel(_under(table))
    axes.set_ylabel("accuracy left, %")
    figure.legend(loc="outside upper center", ncols=2, handlelength=2.6, columnspacing=1.2)
    return figure


def _apart(
    table: VerdictTable,
    plain: Sequence[Line],
    defenses: Mapping[str, Sequence[Line]],
    naive: Mapping[str, Sequence[Line]],
) -> Figure:
    """Draw each defense into axes of its own, beside the undefended network.

    The title says the verdict at the headline budget; the gap between the two lines of a defense
    is what the naive attack misses.
    """
    from matplotlib.figure import Figure as NewFigure

    verdicts = dict(zip(labels(table.shown, "defense"), table.shown, strict=True))

    down = -(-len(defenses) // ACROSS)
    figure = NewFigure((WIDTH, 0.5 + TALL * down), layout="constrained")
    grid = list(figure.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False).flat)
    for place, (axes, (name, lines)) in enumerate(zip(grid, defenses.items(), strict=False)):
        first = place == 0
        _plot(axes, plain, STYLES[0], f"{table.reference}, all attacks" if first else "")
        if lines and name in naive:
            _plot(axes, naive[name], STYLES[2], "naive attack" if first else "")
        _plot(axes, lines, STYLES[1], "all attacks" if first else "")
        if not lines:
            axes.text(0.55, 0.7, "panel\nincomplete", ha="center", size=6, transform=axes.transAxes)
        _frame(axes, table.norm)
        title = textwrap.fill(_legible(name), TITLE)
        axes.set_title(f"{title}\n{verdicts[name]['verdict']}", size=5.5, pad=2)
    for axes in grid[len(defenses) :]:
        axes.set_axis_off()
    figure.supxlabel(_under(table), size=7)
    figure.supylabel("accuracy left, %", size=7)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, handlelength=2.6)
    return figure


def _plot(axes: Axes, lines: Sequence[Line], style: Style, label: str) -> None:
    """Draw one line a seed; a defense without any is named all the same, never shown as robust."""
    if not lines:
        axes.plot([], [], linestyle="none", label=label and f"{label}: panel incomplete")
    for number, (at, left) in enumerate(lines):
        step = max(1, len(at) // MARKERS)
        # Each style at points of its own, or equal curves would hide each other's markers.
        marked = (STYLES.index(style) % step, step)
        axes.plot(at, left, color=style.color, marker=style.marker, linestyle=style.line,
                  markersize=3, markevery=marked, label=label if number == 0 else "")  # fmt: skip


def _frame(axes: Axes, norm: str) -> None:
    axes.set_ylim(-3, 103)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=4, integer=norm == "l0")


def _legible(name: str) -> str:
    return name.replace("_", " ")
