"""``figures/``: each figure of defensive distillation from a run's rows, as PDF and PNG.

At a column's width, in colours that colour-blind readers tell apart (Okabe and Ito 2008), each
series with a marker and a line of its own for readers in grey. The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.base.rows import Results
from leaderboard.figures.style import PUBLISHED, STYLES, legend, new_figure, styled
from leaderboard.tables.cells import Row, model_key
from leaderboard.tables.papers import Quantity, published
from leaderboard.tables.sweeps import (
    OUTPUTS,
    PLAIN,
    SWEPT,
    Point,
    jsma_cells,
    sweep,
    temperature_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DODGE = 1.05
"""By how much series stand apart on the logarithmic axis."""

NONE = 0.5
"""Where a model without a temperature stands on the logarithmic axis."""

SHORT = {
    "rho_adv": "smallest over targets",
    "rho_adv_paper": "smallest, all sources",
    "features_all": "mean over attempts",
    "features_success": "mean over successes",
}

TICKS = (1, 2, 5, 10, 20, 50, 100)


@styled
def draw(results: Results) -> dict[str, Figure]:
    """Return every figure that the rows of a run allow, by name."""
    made = {
        "success": success(results),
        "accuracy": accuracy(results),
        "robustness": robustness(results),
        "confidence": confidence(results),
        "sensitivity": sensitivity(results),
        "logits": logits(results),
        "scale": scale({"": results}),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


@styled
def success(results: Results) -> Figure | None:
    """Success of JSMA against temperature, by what it differentiates, beside the paper's."""
    series = {
        f"on {words}": _both(jsma_cells(results.cells, output), "success_rate", "success_ci")
        for output, words in OUTPUTS.items()
    }
    return _against_temperature(results, series, "success rate, %", "success_rate", output="probs")


@styled
def accuracy(results: Results) -> Figure | None:
    """Accuracy on the test set against temperature, with a teacher and without."""
    return _against_temperature(
        results, _families(results, "accuracy", "accuracy_ci"), "accuracy, %", "accuracy"
    )


@styled
def confidence(results: Results) -> Figure | None:
    """Confidence C(X) against temperature, with a teacher and without."""
    return _against_temperature(
        results, _families(results, "confidence"), "confidence C(X), %", "confidence"
    )


@styled
def robustness(results: Results) -> Figure | None:
    """Every reading of rho_adv on probabilities, and on log-odds, against temperature."""
    rows = jsma_cells(results.cells, "probs")
    series = {words: _both(rows, key) for key, words in SHORT.items()}
    series["smallest, on log-odds"] = _both(jsma_cells(results.cells, "log_odds"), "rho_adv")
    return _against_temperature(
        results, series, "features changed, % of all", "rho_adv", columns=2, output="probs"
    )


def _families(results: Results, value: str, bounds: str = "") -> dict[str, list[Point]]:
    return {
        "distillation": _both(results.models, value, bounds),
        "temperature alone": sweep(results.models, "temperature_only", value, bounds),
        "soft labels": sweep(results.models, "soft_label", value, bounds),
    }


def _both(rows: Iterable[Row], value: str, bounds: str = "") -> list[Point]:
    rows = list(rows)
    return sweep(rows, PLAIN, value, bounds) + sweep(rows, SWEPT, value, bounds)


def _against_temperature(
    results: Results,
    series: Mapping[str, Sequence[Point]],
    label: str,
    quantity: Quantity,
    columns: int = 3,
    **wanted: object,
) -> Figure | None:
    swept = {p.temperature for points in series.values() for p in points} - {None}
    if len(swept) < 2:
        return None  # beside what was published at other temperatures, it would compare nothing
    figure, axes = new_figure()
    _plot_all(axes, series, 100)
    _plot_published(axes, results, quantity, 100, **wanted)
    _temperature_axis(axes)
    axes.set_ylabel(label)
    legend(figure, columns)
    return figure


LINE = 3
"""Points that a line takes: two say nothing of what is between them."""


def _plot_all(axes: Axes, series: Mapping[str, Sequence[Point]], scale: float) -> None:
    drawn = [(name, points) for name, points in series.items() if points]
    for number, (name, points) in enumerate(drawn):
        # Beside one another, or equal series would hide each other.
        shift = DODGE ** (number - (len(drawn) - 1) / 2)
        for part in _parts(points):
            swept = part[0].temperature is not None and len(part) >= LINE
            axes.errorbar(
                [shift * (NONE if p.temperature is None else p.temperature) for p in part],
                [scale * p.value for p in part],
                _whiskers(part, scale),
                color=STYLES[number].color,
                marker=STYLES[number].marker,
                linestyle=STYLES[number].line if swept else "none",
                capsize=1.5,
                elinewidth=0.7,
                label=name,
            )


def _parts(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points by seed, those of models without a temperature apart."""
    keys = sorted({(point.temperature is None, point.seed) for point in points})
    return [[p for p in points if (p.temperature is None, p.seed) == key] for key in keys]


def _whiskers(points: Sequence[Point], scale: float) -> list[list[float]] | None:
    if any(point.bounds is None for point in points):
        return None
    low = [max(0.0, scale * (p.value - p.bounds[0])) for p in points if p.bounds is not None]
    high = [max(0.0, scale * (p.bounds[1] - p.value)) for p in points if p.bounds is not None]
    return [low, high]


def _plot_published(
    axes: Axes, results: Results, quantity: Quantity, scale: float, **wanted: object
) -> None:
    dataset = results.models[0]["dataset"] if results.models else None
    for label, thick in (("published", True), ("published, recalled", False)):
        found = [
            (NONE if figure.temperature is None else figure.temperature, scale * figure.scaled)
            for figure in published(quantity, dataset=dataset, **wanted)
            if figure.scaled is not None
            and figure.defense in (PLAIN, SWEPT)
            and (figure.certainty != "recalled") == thick
        ]
        if found:
            x, y = zip(*found, strict=True)
            drawn = PUBLISHED if thick else {**PUBLISHED, "marker": "+", "markeredgewidth": 0.8}
            axes.plot(x, y, label=label, **drawn)


def _temperature_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlim(NONE / 1.3, 130)
    axes.set_xticks([NONE, *TICKS], ["none", *map(str, TICKS)])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training temperature T")


SHOWN = (5.0, 20.0, 100.0)
"""Temperatures whose sensitivity is drawn, where the run has them; otherwise its highest three."""


@styled
def sensitivity(results: Results) -> Figure | None:
    """Distribution of the mean absolute input gradient: undefended and some temperatures.

    The share of images up to each edge of the bins, which are of unequal width.
    """
    seed = min((row["seed"] for row in results.models), default=0)
    rows = [
        row for row in results.models if row.get("sensitivity") is not None and row["seed"] == seed
    ]
    hot = {temperature_of(row): row for row in rows if row["defense"] == SWEPT}
    known = sorted(t for t in hot if t is not None)
    chosen = [t for t in SHOWN if t in hot] or known[-3:]
    drawn = [("undefended", row) for row in rows if row["defense"] == PLAIN]
    drawn += [(f"T = {t:g}", hot[t]) for t in chosen]
    if not drawn:
        return None
    figure, axes = new_figure()
    for style, (name, row) in zip(STYLES, drawn, strict=False):
        found = row["sensitivity"]
        assert found is not None  # as of every row that is drawn
        below = np.cumsum(found["counts"][:-1]) / found["samples"]
        axes.plot(found["edges_log10"], 100 * below, color=style.color, linestyle=style.line,
                  marker=style.marker, markersize=3, label=name)  # fmt: skip
    axes.set_xlabel("mean absolute input gradient up to here, log10")
    axes.set_ylabel("test images, %")
    # What the distillation paper counts: tiny below, large above.
    for edge, word in ((-40, "tiny"), (-2, "large")):
        axes.axvline(edge, color="0.4", linewidth=0.7, linestyle=":")
        axes.annotate(word, (edge, 1.01), xycoords=("data", "axes fraction"), size=5, ha="center")
    legend(figure, 4)
    return figure


@styled
def logits(results: Results) -> Figure | None:
    """Scale of the logits against temperature."""
    series = {
        "mean |logit|": _both(results.models, "mean_abs_logit"),
        "max logit": _both(results.models, "max_logit", "max_logit_ci"),
        "gap to the runner-up": _both(results.models, "logit_gap", "logit_gap_ci"),
    }
    if not any(series.values()):
        return None
    figure, axes = new_figure()
    _plot_all(axes, series, 1)
    _plot_published(axes, results, "mean_abs_logit", 1)
    _temperature_axis(axes)
    axes.set_yscale("log")
    axes.set_ylabel("logits at T = 1")
    legend(figure)
    return figure


@styled
def scale(runs: Mapping[str, Results]) -> Figure | None:
    """Success against the scale of the logits, every model of every run; ``runs`` by name.

    Filled: on probabilities; open and larger: on log-odds. Raises ValueError for more runs than
    there are styles.
    """
    if len(runs) > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} runs, got {len(runs)}")
    figure, axes = new_figure()
    drawn = 0
    for style, (name, results) in zip(STYLES, runs.items(), strict=False):
        sizes = {
            model_key(row): row["mean_abs_logit"]
            for row in results.models
            if "mean_abs_logit" in row
        }
        for output, fill in (("probs", "full"), ("log_odds", "none")):
            rows = [
                row
                for row in jsma_cells(results.cells, output)
                if row["success_rate"] is not None and sizes.get(model_key(row)) is not None
            ]
            drawn += len(rows)
            label = f"{name}: {OUTPUTS[output]}" if name else f"on {OUTPUTS[output]}"
            # Of a single run, what has no teacher is told apart by its shape.
            alone = [row for row in rows if not name and row["defense"] == "temperature_only"]
            others = [row for row in rows if row not in alone]
            for some, marker, more in ((others, style.marker, ""), (alone, "s", ", no teacher")):
                if some:
                    x = [sizes[model_key(row)] or 0.0 for row in some]
                    y = [100 * (row["success_rate"] or 0) for row in some]
                    # Open and larger: equal points do not hide one another.
                    axes.plot(x, y, color=style.color, marker=marker, linestyle="none",
                              fillstyle=fill, label=label + more,
                              markersize=4 if fill == "full" else 7)  # fmt: skip
    if not drawn:
        return None
    axes.set_xscale("log")
    axes.set_ylim(-3, 103)
    axes.set_xlabel("mean |logit| at T = 1")
    axes.set_ylabel("success rate, %")
    legend(figure, 2)
    return figure
