"""Records in, metrics with intervals out. Every number that is shown is made here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from bench.base.types import Document, ThreatModel
from bench.evidence.records import correct, smallest, within
from bench.verdict.rates import Counts, clustered_wilson, wilson

MEASURED = [
    "sample_id", "success", "misclassified", "l0_features", "l0_pixels", "l2", "linf", "finite",
    "in_box", "in_budget", "adversarial_confidence", "stop_reason", "zero_gradients",
]  # fmt: skip
"""The columns of a record that metrics are made of."""


def summarise(records: pd.DataFrame, threat: ThreatModel, features: int) -> Document:
    """Return the metrics of one cell. Undefined is None, never 0; rates are fractions.

    ``records`` as ``bench.measure.cell`` makes them; ``features``: d, the number of features.
    """
    attacked = records[MEASURED][(records["status"] == "attacked").to_numpy()]
    source, _ = pd.factorize(attacked["sample_id"])
    attempts = np.bincount(source)
    successes = np.bincount(source, weights=attacked["success"])
    broken = np.bincount(source, weights=attacked["misclassified"]) > 0
    sources, robust = records["sample_id"].nunique(), int((~broken).sum())
    return {
        "sources": sources,
        "correct_sources": len(attempts),
        "attempts": len(attacked),
        "successes": int(attacked["success"].sum()),
        "success_rate": mean(attacked["success"]),
        "success_ci": clustered_wilson(successes, attempts),
        "robust_accuracy": robust / sources if sources else None,
        "robust_ci": wilson(robust, sources),
        **_feature_robustness(attacked, source, sources, threat, features),
        **_sizes(attacked[attacked["success"]]),
        **(_WITHOUT_SOURCE if threat.norm == "none" else {}),
        "invalid": count(~(attacked["finite"] & attacked["in_box"] & attacked["in_budget"])),
        "zero_gradients": _total(attacked["zero_gradients"]),
        "no_op": count((attacked["linf"] == 0) & ~attacked["success"]),
        "stop_reasons": _stop_reasons(attacked),
    }


_WITHOUT_SOURCE: dict[str, None] = dict.fromkeys((
    "robust_accuracy", "robust_ci", "features_mean", "pixels_mean", "l2_mean", "linf_mean",
    "l2_success", "linf_success",
))  # fmt: skip
"""What compares an input with its source, and is undefined where it has none."""


def _feature_robustness(
    attacked: pd.DataFrame, source: Counts, sources: int, threat: ThreatModel, features: int
) -> Document:
    names = ("rho_adv", "rho_adv_paper", "rho_censored", "features_all", "features_success")
    if threat.norm != "l0" or threat.unit != "features" or threat.budget is None:
        return dict.fromkeys(names)
    # A failed attempt counts as the whole budget: PAPERS' reading that fits the published figures
    # (minimum over the targets, then the mean over sources).
    reached = attacked["success"].to_numpy()
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


def _sizes(successful: pd.DataFrame) -> Document:
    return {
        "features_mean": mean(successful["l0_features"]),
        "pixels_mean": mean(successful["l0_pixels"]),
        "l2_mean": mean(successful["l2"]),
        "linf_mean": mean(successful["linf"]),
        "l2_success": number(successful["l2"].median()),
        "linf_success": number(successful["linf"].median()),
        "adversarial_confidence": mean(successful["adversarial_confidence"]),
    }


def _stop_reasons(attacked: pd.DataFrame) -> dict[str, int] | None:
    counts = attacked["stop_reason"].value_counts()  # a missing reason is not counted
    return {str(name): int(counts[name]) for name in sorted(counts.index)} or None


def worst_case(cells: list[pd.DataFrame], threat: ThreatModel, shape: tuple[int, ...]) -> Document:
    """Return the robust accuracy against all ``cells`` of one model together.

    Per source: classified correctly, and misclassified by no stored input that keeps to the norm
    and budget of ``threat``, whichever attack made it with whatever goal; inputs of smaller
    budgets count at larger ones. For a minimum-norm threat model there is no budget, hence None;
    nor is there for inputs without a source, whose records never count as misclassified.
    """
    if threat.budget is None or not cells:
        return {"worst_case": None, "worst_case_ci": None}
    ids = np.unique(np.concatenate([cell["sample_id"].to_numpy(np.int64) for cell in cells]))
    left = correct(cells, ids)
    for cell in cells:
        left &= ~within(smallest(cell, ids, threat, shape), threat)
    kept = int(left.sum())
    return {"worst_case": kept / len(ids), "worst_case_ci": wilson(kept, len(ids))}


def disagreement(records: pd.DataFrame, baseline: pd.DataFrame) -> Document:
    """Return how many attempts end otherwise than the same attempts of ``baseline``.

    ``outcomes_differ``: one succeeds and the other does not; ``inputs_differ``: the adversarial
    inputs are not the same to the last bit. All three are None where the attempts (source and
    target) are not the same ones.
    """
    goals = ["sample_id", "target"]
    first, second = (
        frame.loc[frame["status"] == "attacked"].set_index(goals) for frame in (baseline, records)
    )
    if not first.index.equals(second.index):
        return dict.fromkeys(DISAGREEMENT)
    differ = (count(first[name] != second[name]) for name in ("success", "adversarial_hash"))
    return dict(zip(DISAGREEMENT, (len(first), *differ), strict=True))


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
