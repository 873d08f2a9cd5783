"""What every threshold of a flag is made of, measured on networks of known truth.

Each figure is taken from the records of a finished run, so that a threshold can be held against
honest networks and masked ones. ``make calibrate``; docs/verdict.md shows what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bench.base.rows import ModelRow
from bench.base.types import DataInfo, Document, Norm, Suspicions
from bench.evidence.cells import read_trials
from bench.evidence.finished_run import FinishedRun
from bench.plan.panel import REFERENCE, Panel
from bench.verdict.flags import COSINE, ZERO_SHARE, gradient_flags
from bench.verdict.paired import pairs
from bench.verdict.panel_flags import BLACK_BOX_NET, NET, P_VALUE, UNBOUNDED_LEFT, panel_flags
from bench.verdict.rule import MARGIN
from bench.verdict.survivors import Subject
from bench.verdict.verdict_rows import panel_entries, placed

HONEST = (REFERENCE.name, "twin", "label_smoothing", "adversarial_training")
"""Defenses that hide nothing: no threshold may be crossed on any of them."""

TWINS = "twins"
"""No flag, but what the margin of a verdict rests on: how far two equal networks differ."""

QUANTITIES = {
    "zero-gradient": f"share of sources whose gradient is zero, at least {ZERO_SHARE:g}",
    "gradient-direction": f"median cosine, below {COSINE:g}",
    "naive-beaten": f"net gain over the naive attack, at least {NET:g} and p < {P_VALUE:g}",
    "log-odds-beats-probs": f"net gain of JSMA on log-odds, at least {NET:g} and p < {P_VALUE:g}",
    "black-box-beats-gradient": f"net gain of the black box, at least {BLACK_BOX_NET:g}",
    "unbounded-budget": f"accuracy left at ε = 1, above {UNBOUNDED_LEFT:g}",
    TWINS: f"difference of two twins' worst cases, at least {MARGIN:g}",
}
"""By flag: what is measured, and from where on it warns."""


@dataclass(frozen=True)
class Figure:
    """One measured figure, and whether it is beyond its threshold.

    ``flag``: a key of ``QUANTITIES``. ``norm`` and ``at``: the panel and the budget, None where
    the figure is the model's own. ``p``: of the comparison that ``value`` is the net gain of.
    """

    flag: str
    defense: str
    params: Document
    seed: int
    norm: Norm | None
    at: float | None
    value: float
    crossed: bool
    p: float | None = None

    @property
    def honest(self) -> bool:
        """Whether the defense hides nothing."""
        return self.defense in HONEST


def figures(run: FinishedRun, info: DataInfo) -> list[Figure]:
    """Return every figure that the records of ``run`` give; plugins must be loaded."""
    models = {row["id"]: row for row in run.results.models}
    found = [
        figure
        for row in models.values()
        if row["status"] == "done"
        for figure in _measured(row, gradient_flags(row))
    ]
    trials = read_trials(run)
    for panel in run.plan.matrix.panel:
        entries = panel_entries(run.plan.matrix, panel)
        subjects = {}
        for name, cells in trials.items():
            ids = np.unique(
                np.concatenate([_ids(t.records) for t in cells if t.records is not None])
            )
            subjects[name] = Subject(panel, info, ids, [placed(t, entries) for t in cells])
        for name, subject in subjects.items():
            found += _of_panel(panel, models[name], subject)
        found += _twins(panel, models, subjects)
    return found


def _ids(records: object) -> npt.NDArray[np.int64]:
    import pandas as pd

    assert isinstance(records, pd.DataFrame)
    return records["sample_id"].to_numpy(np.int64)


def _figure(
    row: ModelRow, flag: str, value: float, crossed: bool, p: float | None = None
) -> Figure:
    who = (row["defense"], row["defense_params"], row["seed"])
    return Figure(flag, *who, None, None, float(value), bool(crossed), p)


def _measured(row: ModelRow, suspicions: Suspicions) -> Iterator[Figure]:
    for found in suspicions.measured:
        yield _figure(row, found.flag, found.value, found.raised, found.p)


def _of_panel(panel: Panel, row: ModelRow, subject: Subject) -> Iterator[Figure]:
    for budget in panel.budgets:
        if subject.missing(budget):
            continue  # a figure of half a panel would look better than it is
        for figure in _measured(row, panel_flags(subject.siblings(budget), ())):
            at = None if figure.flag == "unbounded-budget" else budget
            if at is not None or budget == panel.budgets[-1]:
                yield replace(figure, norm=panel.norm, at=at)


def _twins(
    panel: Panel, models: Mapping[str, ModelRow], subjects: Mapping[str, Subject]
) -> Iterator[Figure]:
    """Yield by how much the worst cases of a twin and of the undefended network differ."""
    plain = {models[n]["seed"]: s for n, s in subjects.items() if _named(models[n], REFERENCE.name)}
    for name, twin in subjects.items():
        row = models[name]
        other = plain.get(row["seed"])
        if not _named(row, "twin") or other is None:
            continue
        for budget in panel.budgets:
            if not twin.missing(budget) and not other.missing(budget):
                value = abs(pairs(twin.survivors(budget), other.survivors(budget)).delta)
                figure = _figure(row, TWINS, value, value >= MARGIN)
                yield replace(figure, norm=panel.norm, at=budget)


def _named(row: ModelRow, name: str) -> bool:
    return bool(row["defense"] == name)
