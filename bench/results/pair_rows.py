"""``pairs.json``: two defenses held against each other, sample by sample, at every seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.fingerprint import digest
from bench.base.json_changes import ABSENT
from bench.base.types import DataInfo, Document, Spec, UserError
from bench.evidence.cells import waived
from bench.measure.logits import order_agreement, read
from bench.plan.matrix import MatrixConfig
from bench.plan.panel import REFERENCE, Panel
from bench.plugins import registry
from bench.verdict.paired import clustered_difference
from bench.verdict.rates import mean_interval
from bench.verdict.survivors import Subject
from bench.verdict.verdict_rows import Model, defense_name

Array = npt.NDArray[Any]

SHOWN = 6
"""Samples that are named as those on which two models differ most, each way."""

APART = 0.25
"""From this difference of the top probability on, two models disagree about a sample."""


@dataclass(frozen=True)
class Pair:
    """Two defenses, each with a model a seed, and why they are held against each other.

    ``why``: ``undefended``, for the second is the undefended network; ``taught``, for it taught
    the first; or the one parameter in which the two differ.
    """

    first: Mapping[int, Model]
    second: Mapping[int, Model]
    why: str

    @property
    def seeds(self) -> list[int]:
        """The seeds at which both are there."""
        return [seed for seed in self.first if seed in self.second]


def pair_rows(
    matrix: MatrixConfig, info: DataInfo, sources: Sequence[int], models: Sequence[Model]
) -> list[Document]:
    """Return one row a pair: how their logits agree on clean images, and which of them holds more.

    ``seeds`` has, on the whole test split: ``order_tau``, the mean of Kendall's τ between the
    orders of the incorrect classes; ``confidence_difference``, the mean of the first's top
    probability minus the second's; ``confidence_correlation``, Spearman's; ``apart``, the share of
    samples on which the top probabilities differ by a quarter or more; ``first_surer`` and
    ``second_surer``, the samples on which they differ most. ``samples``: how many are counted, for
    where the logits of one are not finite nothing is known.

    ``survival`` has, at each budget, the difference of the worst cases: the share of sources that
    no stored input within the budget breaks. ``delta`` is the mean over seeds, ``ci`` its 95 %
    interval, in which a source counts once however many seeds there are; ``ci_family`` holds for
    all pairs of the same reason and budget together (Bonferroni). The intervals are about these
    networks on other images: whether training anew changes the sign, the seeds show.
    """
    by_name: dict[str, dict[int, Model]] = {}
    for model in models:
        by_name.setdefault(defense_name(model.row), {})[model.row["seed"]] = model
    found = list(pairs_of(list(by_name.values())))
    ids = np.asarray(sources, dtype=np.int64)
    rows: list[Document] = [
        {
            "id": digest([_identity(pair.first), _identity(pair.second), pair.why])[:16],
            "why": pair.why,
            "first": _identity(pair.first),
            "second": _identity(pair.second),
            "seeds": [agreement(pair.first[seed], pair.second[seed]) for seed in pair.seeds],
            "survival": [],
        }
        for pair in found
    ]
    family = Counter(pair.why for pair in found)
    for panel in matrix.panel or ad_hoc_panels(models, info):
        subjects = {
            model.row["id"]: Subject(panel, info, ids, model.trials)
            for model in models
            if complete(model, panel)
        }
        for budget in panel.budgets:
            for row, pair in zip(rows, found, strict=True):
                row["survival"].append(_survival(pair, subjects, panel, budget, family[pair.why]))
    return rows


def pairs_of(defenses: Sequence[Mapping[int, Model]]) -> Iterator[Pair]:
    """Yield the pairs among ``defenses``, in their order, that have something to say.

    Each against the undefended one and against its teacher; and, for each parameter, against the
    defense of the same name that differs in that parameter alone and has its default value, or,
    where none has, the first of them.
    """
    for second in defenses:
        if _identity(second) == {"defense": REFERENCE.name, "defense_params": {}}:
            yield from (Pair(d, second, "undefended") for d in defenses if d is not second)
    for first in defenses:
        teacher = _identity(first)["defense_params"].get("teacher")
        for second in defenses:
            if teacher is not None and _as_table(second) == teacher:
                yield Pair(first, second, "taught")
    for place, first in enumerate(defenses):
        alike: dict[str, list[tuple[int, Mapping[int, Model]]]] = {}
        for other, second in enumerate(defenses):
            why = _single_difference(first, second)
            if why is not None:
                alike.setdefault(why, []).append((other, second))
        for why, others in alike.items():
            at, second = min([(place, first), *others], key=partial(_rank, why))
            if at != place:
                yield Pair(first, second, why)


def _rank(parameter: str, placed: tuple[int, Mapping[int, Model]]) -> tuple[bool, int]:
    """Sort the default value of a parameter first, then by place."""
    place, models = placed
    identity = _identity(models)
    value = identity["defense_params"].get(parameter)
    return value != _defaults(identity["defense"]).get(parameter, ABSENT), place


def _defaults(defense: str) -> Document:
    """Return the parameters of a defense that is given none; empty where it needs some."""
    try:
        return registry.parameters(registry.DEFENSES.make(Spec(defense)))
    except UserError:
        return {}


def _identity(models: Mapping[int, Model]) -> Document:
    row = next(iter(models.values())).row
    return {"defense": row["defense"], "defense_params": row["defense_params"]}


def _as_table(models: Mapping[int, Model]) -> Document:
    identity = _identity(models)
    return {"name": identity["defense"], **identity["defense_params"]}


def _single_difference(first: Mapping[int, Model], second: Mapping[int, Model]) -> str | None:
    a, b = _identity(first), _identity(second)
    if a["defense"] != b["defense"]:
        return None
    names = a["defense_params"].keys() | b["defense_params"].keys()
    differing = [n for n in names if a["defense_params"].get(n) != b["defense_params"].get(n)]
    return str(differing[0]) if len(differing) == 1 else None


def agreement(first: Model, second: Model) -> Document:
    """Return how the logits of two models of one seed agree on the clean test images."""
    identity = {"seed": first.row["seed"], "first": first.row["id"], "second": second.row["id"]}
    if first.probe is None or second.probe is None:
        return identity  # the probe of one failed: nothing is known
    a, b = (probe[(probe["split"] == "test").to_numpy()] for probe in (first.probe, second.probe))
    known = np.flatnonzero(np.isfinite(np.hstack([read(a), read(b)])).all(axis=1))
    if not len(known):
        return identity
    a, b = (rows.iloc[known].reset_index(drop=True) for rows in (a, b))
    tau = pd.Series(order_agreement(read(a), read(b), a["label"].to_numpy())).dropna()
    sure, other = a["confidence"], b["confidence"]
    difference = sure - other
    order = np.argsort(difference.to_numpy(), kind="stable")
    return {
        **identity,
        "samples": len(a),
        "same_prediction": float((a["prediction"].to_numpy() == b["prediction"].to_numpy()).mean()),
        "order_tau": float(tau.mean()) if len(tau) else None,
        "order_tau_ci": mean_interval(tau),
        "confidence_difference": float(difference.mean()),
        "confidence_difference_ci": mean_interval(difference),
        "confidence_correlation": _spearman(sure, other),
        "apart": float((difference.abs() >= APART).mean()),
        "first_surer": _named(a, b, order[::-1], difference > 0),
        "second_surer": _named(a, b, order, difference < 0),
    }


def _spearman(first: pd.Series, second: pd.Series) -> float | None:
    ranks = first.rank(), second.rank()
    if any(rank.nunique() < 2 for rank in ranks):
        return None
    return float(ranks[0].corr(ranks[1]))


def _named(a: pd.DataFrame, b: pd.DataFrame, order: Array, wanted: pd.Series) -> list[Document]:
    chosen = [int(i) for i in order[:SHOWN] if wanted[int(i)]]
    return [
        {
            "sample": int(a["sample_id"].iloc[i]),
            "label": int(a["label"].iloc[i]),
            **{
                who: {
                    "prediction": int(rows["prediction"].iloc[i]),
                    "confidence": float(rows["confidence"].iloc[i]),
                }
                for who, rows in (("first", a), ("second", b))
            },
        }
        for i in chosen
    ]


def ad_hoc_panels(models: Sequence[Model], info: DataInfo) -> list[Panel]:
    """Return the norms and budgets of the cells themselves, for a matrix without a panel.

    A share of the features is as many whole ones as it holds. Budgets in pixels, or without an end
    or a feature to change, are no panel's; nor have minimum-norm attacks and inputs without a
    source any.
    """
    budgets: dict[Any, set[float]] = {}
    for model in models:
        for trial in model.trials:
            threat = trial.row["threat"]
            budget, norm = threat["budget"], threat["norm"]
            if budget is None or threat["unit"] == "pixels" or not math.isfinite(budget):
                continue
            if norm == "l0":
                budget = math.floor(budget * info.features + 1e-9)
            if norm == "linf":
                budget = min(budget, 1.0)  # the whole box
            if budget:
                budgets.setdefault(norm, set()).add(float(budget))
    return [Panel(norm=norm, budgets=sorted(values)) for norm, values in budgets.items()]


def complete(model: Model, panel: Panel) -> bool:
    """Return whether every attack on ``model`` under the norm of ``panel`` was finished.

    A crash must not look like robustness, nor a failed fit like a defense that is broken. Nor must
    attacks of which none changed anything.
    """
    under = [trial for trial in model.trials if trial.row["threat"]["norm"] == panel.norm]
    finished = all(trial.records is not None or waived(trial.row) for trial in under)
    return finished and any(trial.trouble() is None for trial in under)


def _survival(
    pair: Pair, subjects: Mapping[str, Subject], panel: Panel, budget: float, family: int
) -> Document:
    """Return the paired difference of the worst cases of ``pair`` at one budget, over the seeds.

    ``subjects``: by its id, each model whose attacks under ``panel`` were finished.
    """
    ids = {seed: (pair.first[seed].row["id"], pair.second[seed].row["id"]) for seed in pair.seeds}
    seeds = [seed for seed, both in ids.items() if all(name in subjects for name in both)]
    left = [tuple(subjects[name].survivors(budget) for name in ids[seed]) for seed in seeds]
    shares = [(float(a.mean()), float(b.mean())) for a, b in left]
    found: Document = {
        "norm": panel.norm,
        "at": int(budget) if panel.norm == "l0" else budget,
        "seeds": [
            {"seed": seed, "first": a, "second": b, "delta": a - b}
            for seed, (a, b) in zip(seeds, shares, strict=True)
        ],
        "family": family,
    }
    if not left:
        return {**found, "delta": None, "ci": None, "ci_family": None}
    first, second = (np.concatenate(side) for side in zip(*left, strict=True))
    sample = np.tile(np.arange(len(left[0][0])), len(left))
    delta, ci = clustered_difference(first, second, sample)
    together = NormalDist().inv_cdf(1 - 0.025 / family)
    _, wider = clustered_difference(first, second, sample, together)
    return {**found, "delta": delta, "ci": ci, "ci_family": wider}
