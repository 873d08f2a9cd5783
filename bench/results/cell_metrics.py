"""Records in, metrics with intervals out. Every number that is shown is made here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.types import Document, ThreatModel
from bench.evidence.records import Budgets, correct, smallest, within
from bench.verdict.rates import Counts, clustered_wilson, wilson

Columns = Mapping[str, npt.NDArray[Any]]
"""What a record says, by name: one array a column, for a frame of few rows is slow to ask."""

MEASURED = [
    "sample_id", "success", "misclassified", "l0_features", "l0_pixels", "l2", "linf", "finite",
    "in_box", "in_budget", "adversarial_confidence", "stop_reason",
]  # fmt: skip
"""The columns of a record that metrics are made of."""


def summarise(records: pd.DataFrame, threat: ThreatModel, features: int) -> Document:
    """Return the metrics of one cell. Undefined is None, never 0; rates are fractions.

    ``records`` as ``bench.measure.cell`` makes them; ``features``: d, the number of features.
    """
    rows = (records["status"] == "attacked").to_numpy(bool)
    attacked = {name: records[name].to_numpy()[rows] for name in MEASURED}
    source, _ = pd.factorize(attacked["sample_id"])
    attempts = np.bincount(source)
    successes = np.bincount(source, weights=attacked["success"])
    broken = np.bincount(source, weights=attacked["misclassified"]) > 0
    sources, robust = records["sample_id"].nunique(), int((~broken).sum())
    return {
        "sources": sources,
        "correct_sources": len(attempts),
        "attempts": len(source),
        "successes": int(attacked["success"].sum()),
        "success_rate": mean(attacked["success"]),
        "success_ci": clustered_wilson(successes, attempts),
        "robust_accuracy": robust / sources if sources else None,
        "robust_ci": wilson(robust, sources),
        **_feature_robustness(attacked, source, sources, threat, features),
        **_sizes(attacked),
        **(_WITHOUT_SOURCE if threat.norm == "none" else {}),
        "invalid": count(~(attacked["finite"] & attacked["in_box"] & attacked["in_budget"])),
        "zero_gradients": _total(records["zero_gradients"][rows]),
        "no_op": count((attacked["linf"] == 0) & ~attacked["success"]),
        "stop_reasons": _stop_reasons(attacked["stop_reason"]),
    }


_WITHOUT_SOURCE: dict[str, None] = dict.fromkeys((
    "robust_accuracy", "robust_ci", "features_mean", "pixels_mean", "l2_mean", "linf_mean",
    "l2_success", "linf_success",
))  # fmt: skip
"""What compares an input with its source, and is undefined where it has none."""


def _feature_robustness(
    attacked: Columns, source: Counts, sources: int, threat: ThreatModel, features: int
) -> Document:
    names = ("rho_adv", "rho_adv_paper", "rho_censored", "features_all", "features_success")
    if threat.norm != "l0" or threat.unit != "features" or threat.budget is None:
        return dict.fromkeys(names)
    # A failed attempt counts as the whole budget: PAPERS' reading that fits the published figures
    # (minimum over the targets, then the mean over sources).
    reached = attacked["success"]
    share = np.where(reached, attacked["l0_features"] / features, threat.budget)
    smallest = np.full(source.max(initial=-1) + 1, np.inf)
    np.minimum.at(smallest, source, share)
    never = np.bincount(source, weights=reached) == 0
    values = (
        mean(smallest),
        float(smallest.sum()) / sources if sources else None,
        mean(never),
        mean(share),
        mean(share[reached]),
    )
    return dict(zip(names, values, strict=True))


def _sizes(attacked: Columns) -> Document:
    reached = attacked["success"]
    l2, linf = attacked["l2"][reached], attacked["linf"][reached]
    return {
        "features_mean": mean(attacked["l0_features"][reached]),
        "pixels_mean": mean(attacked["l0_pixels"][reached]),
        "l2_mean": mean(l2),
        "linf_mean": mean(linf),
        "l2_success": number(np.median(l2)) if len(l2) else None,
        "linf_success": number(np.median(linf)) if len(linf) else None,
        "adversarial_confidence": mean(attacked["adversarial_confidence"][reached]),
    }


def _stop_reasons(reasons: npt.NDArray[Any]) -> dict[str, int] | None:
    counts = Counter(reason for reason in reasons.tolist() if isinstance(reason, str))
    return dict(sorted(counts.items())) or None


UNKNOWN: Document = {"worst_case": None, "worst_case_ci": None}
"""The worst case where there is none, or nothing is known of it."""


def worst_case(cells: list[pd.DataFrame], threat: ThreatModel, shape: tuple[int, ...]) -> Document:
    """Return the robust accuracy against all ``cells`` of one model together.

    Per source: classified correctly, and misclassified by no stored input that keeps to the norm
    and budget of ``threat``, whichever attack made it with whatever goal; inputs of smaller
    budgets count at larger ones. For a minimum-norm threat model there is no budget, hence None;
    nor is there for inputs without a source, whose records never count as misclassified.
    """
    return worst_cases(cells, [threat], shape)[threat]


def worst_cases(
    cells: list[pd.DataFrame], threats: Iterable[ThreatModel], shape: tuple[int, ...]
) -> dict[ThreatModel, Document]:
    """Return ``worst_case`` under each of ``threats``: records are looked at once a norm."""
    found: dict[ThreatModel, Document] = {}
    if not cells:
        return dict.fromkeys(threats, UNKNOWN)
    ids = np.unique(np.concatenate([cell["sample_id"].to_numpy(np.int64) for cell in cells]))
    right = correct(cells, ids)
    reach: dict[tuple[str, str], Budgets] = {}
    for threat in threats:
        if threat.budget is None:
            found[threat] = UNKNOWN
            continue
        unit = (threat.norm, threat.unit)
        if unit not in reach:
            every = [smallest(cell, ids, threat, shape) for cell in cells]
            reach[unit] = np.minimum.reduce(every)
        kept = int((right & ~within(reach[unit], threat)).sum())
        found[threat] = {"worst_case": kept / len(ids), "worst_case_ci": wilson(kept, len(ids))}
    return found


def disagreement(records: pd.DataFrame, baseline: pd.DataFrame) -> Document:
    """Return how many attempts end otherwise than the same attempts of ``baseline``.

    ``outcomes_differ``: one succeeds and the other does not; ``inputs_differ``: the adversarial
    inputs are not the same to the last bit. All three are None where the attempts (source and
    target) are not the same ones.
    """
    first, second = (attempted(frame) for frame in (baseline, records))
    if not all(np.array_equal(first[name], second[name]) for name in ("sample_id", "target")):
        return dict.fromkeys(DISAGREEMENT)
    differ = (int((first[name] != second[name]).sum()) for name in ("success", "adversarial_hash"))
    return dict(zip(DISAGREEMENT, (len(first["success"]), *differ), strict=True))


def attempted(records: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Return what is compared of the attempts of a cell, (attempts,) each."""
    rows = (records["status"] == "attacked").to_numpy(bool)
    names = ("sample_id", "target", "success", "adversarial_hash")
    return {name: records[name].to_numpy()[rows] for name in names}


DISAGREEMENT = ("compared", "outcomes_differ", "inputs_differ")


def mean(values: pd.Series | Counts) -> float | None:
    """Return the mean, None where there is none."""
    return number(values.mean()) if len(values) else None


def count(values: pd.Series) -> int:
    """Return how many of ``values`` are true."""
    return int(values.sum())


def _total(values: pd.Series) -> int | None:
    return int(values.sum()) if values.notna().any() else None


def number(value: Any) -> float | None:
    """Return ``value`` as JSON has it: None where it is not finite."""
    found = float(value)
    return found if math.isfinite(found) else None
