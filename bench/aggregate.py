"""Records in, metrics with intervals out. Every number that is shown is made here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.measure import TOLERANCE
from bench.types import Document, ThreatModel

Interval = tuple[float, float] | None
Counts = npt.NDArray[Any]

MEASURED = [
    "sample_id", "success", "misclassified", "l0_features", "l2", "linf", "finite", "in_box",
    "in_budget", "adversarial_confidence", "stop_reason",
]  # fmt: skip
"""The columns of a record that metrics are made of."""


def wilson(successes: float, trials: float) -> Interval:
    """Return the 95 % Wilson score interval of a rate, or None without trials.

    Wilson 1927. ``trials`` may be an effective number, so neither need be whole.
    """
    if trials <= 0:
        return None
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, trials, alpha=0.05, method="wilson")
    return float(low), float(high)


def clustered_wilson(successes: Counts, attempts: Counts) -> Interval:
    """Return the 95 % Wilson interval of a rate whose attempts come in clusters.

    ``successes`` and ``attempts``: one value a source. The design effect (Kish 1965) is the
    ratio of the variance of the rate between sources to the binomial one; the effective number of
    trials lies between the number of sources and that of attempts, and is the number of sources
    where nothing or everything succeeded, for then the data cannot show the effect.
    """
    sources, trials = len(attempts), float(attempts.sum())
    if not trials:
        return None
    rate = float(successes.sum()) / trials
    effective = _effective(successes, attempts, rate) if 0 < rate < 1 and sources > 1 else sources
    return wilson(rate * effective, effective)


def _effective(successes: Counts, attempts: Counts, rate: float) -> float:
    sources, trials = len(attempts), float(attempts.sum())
    residuals = successes - rate * attempts
    variance = sources / (sources - 1) * float((residuals**2).sum()) / trials**2
    binomial = rate * (1 - rate) / trials
    return min(max(trials * binomial / variance if variance else trials, sources), trials)


def summarise(records: pd.DataFrame, threat: ThreatModel, features: int) -> Document:
    """Return the metrics of one cell. Undefined is None, never 0; rates are fractions.

    ``records`` as ``bench.execute`` makes them; ``features``: d, the input's number of features.
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
        "success_rate": _mean(attacked["success"]),
        "success_ci": clustered_wilson(successes, attempts),
        "robust_accuracy": robust / sources if sources else None,
        "robust_ci": wilson(robust, sources),
        **_feature_robustness(attacked, source, sources, threat, features),
        **_sizes(attacked[attacked["success"]]),
        "invalid": _count(~(attacked["finite"] & attacked["in_box"] & attacked["in_budget"])),
        "no_op": _count((attacked["linf"] == 0) & ~attacked["success"]),
        "stop_reasons": _stop_reasons(attacked),
    }


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
        _mean(smallest),
        float(smallest.sum()) / sources if sources else None,
        _mean(never),
        _mean(share),
        _mean(share[reached]),
    )
    return dict(zip(names, values, strict=True))


def _sizes(successful: pd.DataFrame) -> Document:
    return {
        "l2_success": _number(successful["l2"].median()),
        "linf_success": _number(successful["linf"].median()),
        "adversarial_confidence": _mean(successful["adversarial_confidence"]),
    }


def _stop_reasons(attacked: pd.DataFrame) -> dict[str, int] | None:
    counts = attacked["stop_reason"].value_counts()  # a missing reason is not counted
    return {str(name): int(counts[name]) for name in sorted(counts.index)} or None


def worst_case(cells: list[pd.DataFrame], threat: ThreatModel, shape: tuple[int, ...]) -> Document:
    """Return the robust accuracy against all ``cells`` of one model together.

    Per source: classified correctly, and misclassified by no stored input that keeps to the norm
    and budget of ``threat``, whichever attack made it with whatever goal; inputs of smaller
    budgets count at larger ones. For a minimum-norm threat model there is no budget, hence None.
    """
    if threat.budget is None or not cells:
        return {"worst_case": None, "worst_case_ci": None}
    records = pd.concat(cells, ignore_index=True)
    column = {"features": "l0_features", "pixels": "l0_pixels", "input": threat.norm}[threat.unit]
    total = {"features": math.prod(shape), "pixels": math.prod(shape[1:]), "input": 1}[threat.unit]
    within = records[column] / total <= threat.budget + TOLERANCE
    lost = (records["status"] == "misclassified") | (records["misclassified"] & within)
    sources = records["sample_id"].nunique()
    kept = sources - records.loc[lost, "sample_id"].nunique()
    return {"worst_case": kept / sources, "worst_case_ci": wilson(kept, sources)}


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
    differ = (_count(first[name] != second[name]) for name in ("success", "adversarial_hash"))
    return dict(zip(DISAGREEMENT, (len(first), *differ), strict=True))


DISAGREEMENT = ("compared", "outcomes_differ", "inputs_differ")


def summarise_probe(probe: pd.DataFrame) -> Document:
    """Return accuracy, confidence C(X), max logit and logit gap of a fitted model.

    ``confidence``: the mean of C(X), 0 where the prediction is wrong and the top probability
    otherwise (Papernot et al. 2016, arXiv 1511.04508).
    """
    correct = probe["prediction"] == probe["label"]
    return {
        "accuracy": _mean(correct),
        "accuracy_ci": wilson(int(correct.sum()), len(correct)),
        "confidence": _mean(probe["confidence"].where(correct, 0.0)),
        "max_logit": _mean(probe["max_logit"]),
        "logit_gap": _mean(probe["logit_gap"]),
        "test_samples": len(probe),
    }


def _mean(values: pd.Series | Counts) -> float | None:
    return _number(values.mean()) if len(values) else None


def _count(values: pd.Series) -> int:
    return int(values.sum())


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
