"""Every figure of the distillation paper beside ours: published, measured, whether they agree.

Papernot et al. 2016, arXiv 1511.04508. Ours are read from the published runs, each training seed
for itself; what is known of a disagreement stands with the published figure, as data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from bench.base.rows import Interval, ModelRow, SensitivityRow
from bench.evidence.finished_run import read_results
from bench.verdict.rates import wilson
from leaderboard.pages.distillation import Report, figure_text, subject_text
from leaderboard.tables.numbers import UNDEFINED, fixed, interval
from leaderboard.tables.papers import Published, Quantity, papers
from leaderboard.tables.sweeps import SWEPT, temperature_of

PAPER = "1511.04508"

RUNS = {
    "mnist": ("papernot-mnist", "papernot-mnist-seeds"),
    "cifar10": ("papernot-cifar10", "papernot-cifar10-short"),
}
"""The published runs of the paper's own protocol, by data set."""

NEAR = 0.1
"""How far, of the published figure, ours may lie from it where it has no interval."""

WORDS: dict[Quantity, str] = {
    "accuracy": "accuracy",
    "accuracy_change": "largest change of accuracy",
    "confidence": "confidence",
    "rho_adv": "ρ_adv",
    "sensitivity_large": "gradients above 1e-2",
    "sensitivity_tiny": "gradients below 1e-40",
    "success_rate": "success",
}
"""What is measured, in words; other quantities of the paper are settings of its protocol."""


COUNTS: dict[Quantity, Literal["large", "tiny"]] = {
    "sensitivity_large": "large",
    "sensitivity_tiny": "tiny",
}


@dataclass(frozen=True)
class Measured:
    """One figure of ours, a fraction, with its 95 % interval (None where there is none)."""

    value: float
    bounds: Interval
    seed: int


def reproduction(published: Path) -> pd.DataFrame:
    """Return a line for every known figure of the paper, in the paper's order.

    ``published``: the folder of published runs. A figure whose data set the text does not name is
    held against every data set of ours.
    """
    reports = {
        data: [Report(read_results(published / run)) for run in runs if (published / run).exists()]
        for data, runs in RUNS.items()
    }
    lines = []
    for figure in _figures():
        for data in [figure.dataset] if figure.dataset else RUNS:
            ours = _by_seed(told for report in reports[data] for told in measured(figure, report))
            verdict = agrees(figure, ours)
            lines.append(
                {
                    "figure": f"{WORDS[figure.quantity]}: {subject_text(figure)}",
                    "data": data,
                    "published": figure_text(figure),
                    "ours, a value a seed": _told(figure, ours),
                    "agrees": verdict,
                    "why": figure.differs if verdict == "no" else "",
                }
            )
    return pd.DataFrame(lines)


def _figures() -> Iterator[Published]:
    for paper in papers():
        if paper.arxiv == PAPER:
            yield from (f for f in paper.figures if f.value is not None and f.quantity in WORDS)


def _by_seed(found: Iterable[Measured]) -> list[Measured]:
    first: dict[int, Measured] = {}
    for told in found:  # a seed that two runs share is one training
        first.setdefault(told.seed, told)
    return list(first.values())


def agrees(figure: Published, ours: Sequence[Measured]) -> str:
    """Return whether the published figure lies between the lowest and the highest end of ours.

    Where ours has no interval, whether a seed comes within a tenth of it; a largest change of
    accuracy is a bound, which no seed may pass.
    """
    known = figure.scaled
    if not ours or known is None:
        return "not measured"
    if figure.quantity == "accuracy_change":
        return "yes" if all(told.value <= known for told in ours) else "no"
    ends = [end for told in ours for end in told.bounds or _near(told, known)]
    return "yes" if min(ends) <= known <= max(ends) else "no"


def _near(told: Measured, known: float) -> tuple[float, float]:
    return told.value - NEAR * known, told.value + NEAR * known


def measured(figure: Published, report: Report) -> Iterator[Measured]:
    """Yield what the run of ``report`` measured of a published figure, a seed at a time."""
    if figure.quantity == "accuracy_change":
        yield from _changes(report)
        return
    for model in report.models:
        of = (model["defense"], temperature_of(model))
        if of == (figure.defense, figure.temperature):
            value, bounds = _value(figure, report, model)
            if value is not None:
                yield Measured(value, bounds, model["seed"])


def _changes(report: Report) -> Iterator[Measured]:
    changes: dict[int, list[float]] = {}
    for model in report.models:
        change = report.change(model) if model["defense"] == SWEPT else None
        if change is not None:
            changes.setdefault(model["seed"], []).append(abs(change))
    for seed, found in changes.items():
        yield Measured(max(found), None, seed)


def _value(figure: Published, report: Report, model: ModelRow) -> tuple[float | None, Interval]:
    if figure.quantity == "accuracy":
        return model.get("accuracy"), model.get("accuracy_ci")
    if figure.quantity == "confidence":
        return model.get("confidence"), None
    if figure.quantity in COUNTS:
        found = model.get("sensitivity")
        return (None, None) if found is None else _share(found, COUNTS[figure.quantity])
    cell = report.cell(model, figure.output or "probs")
    if cell is None:
        return None, None
    success = figure.quantity == "success_rate"
    return (cell["success_rate"], cell["success_ci"]) if success else (cell["rho_adv"], None)


def _share(found: SensitivityRow, key: Literal["large", "tiny"]) -> tuple[float, Interval]:
    return found[key] / found["samples"], wilson(found[key], found["samples"])


def _told(figure: Published, ours: Iterable[Measured]) -> str:
    if figure.unit == "images of 10000":
        return " / ".join(fixed(1e4 * told.value, 0) for told in ours) or UNDEFINED
    return " / ".join(interval(told.value, told.bounds, 2) for told in ours) or UNDEFINED
