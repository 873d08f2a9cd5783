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
    "sample_id", "success", "misclassified", "l0_features", "l0_pixels", "l2", "linf", "finite",
    "in_box", "in_budget", "adversarial_confidence", "stop_reason", "zero_gradients",
]  # fmt: skip
"""The columns of a record that metrics are made of."""


def wilson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return the two-sided Wilson score interval of a rate, or None without trials.

    Wilson 1927. ``trials`` may be an effective number, so neither need be whole.
    """
    if trials <= 0:
        return None
    from statsmodels.stats.proportion import proportion_confint

    alpha = round(1 - confidence, 12)  # 0.05, not 0.050000000000000044
    low, high = proportion_confint(successes, trials, alpha=alpha, method="wilson")
    # Exact at the ends: rounding must not let nothing in 100 speak against "never".
    return float(low) if successes > 0 else 0.0, float(high) if successes < trials else 1.0


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
    effective = (
        effective_trials(successes, attempts, rate) if 0 < rate < 1 and sources > 1 else sources
    )
    return wilson(rate * effective, effective)


def effective_trials(successes: Counts, attempts: Counts, rate: float) -> float:
    """Return how many independent trials would tell ``rate`` as well as the clustered ones do.

    One value a source, as in ``clustered_wilson``; ``rate`` strictly between 0 and 1.
    """
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
        **(_WITHOUT_SOURCE if threat.norm == "none" else {}),
        "invalid": _count(~(attacked["finite"] & attacked["in_box"] & attacked["in_budget"])),
        "zero_gradients": _total(attacked["zero_gradients"]),
        "no_op": _count((attacked["linf"] == 0) & ~attacked["success"]),
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
        _mean(smallest),
        float(smallest.sum()) / sources if sources else None,
        _mean(never),
        _mean(share),
        _mean(share[reached]),
    )
    return dict(zip(names, values, strict=True))


def _sizes(successful: pd.DataFrame) -> Document:
    return {
        "features_mean": _mean(successful["l0_features"]),
        "pixels_mean": _mean(successful["l0_pixels"]),
        "l2_mean": _mean(successful["l2"]),
        "linf_mean": _mean(successful["linf"]),
        "l2_success": _number(successful["l2"].median()),
        "linf_success": _number(successful["linf"].median()),
        "adversarial_confidence": _mean(successful["adversarial_confidence"]),
    }


def _stop_reasons(attacked: pd.DataFrame) -> dict[str, int] | None:
    counts = attacked["stop_reason"].value_counts()  # a missing reason is not counted
    return {str(name): int(counts[name]) for name in sorted(counts.index)} or None


def relative_distance(
    records: pd.DataFrame, threat: ThreatModel, shape: tuple[int, ...]
) -> pd.Series:
    """Return the distance of every record in the norm of ``threat`` and the unit of its budget.

    Raises ValueError for norm ``none``, under which there is no distance.
    """
    if threat.norm == "none":
        raise ValueError("norm 'none' measures no distance: its inputs have no source")
    column = {"features": "l0_features", "pixels": "l0_pixels", "input": threat.norm}[threat.unit]
    total = {"features": math.prod(shape), "pixels": math.prod(shape[1:]), "input": 1}[threat.unit]
    return records[column] / total


def worst_case(cells: list[pd.DataFrame], threat: ThreatModel, shape: tuple[int, ...]) -> Document:
    """Return the robust accuracy against all ``cells`` of one model together.

    Per source: classified correctly, and misclassified by no stored input that keeps to the norm
    and budget of ``threat``, whichever attack made it with whatever goal; inputs of smaller
    budgets count at larger ones. For a minimum-norm threat model there is no budget, hence None;
    nor is there for inputs without a source, whose records never count as misclassified.
    """
    if threat.budget is None or not cells:
        return {"worst_case": None, "worst_case_ci": None}
    records = pd.concat(cells, ignore_index=True)
    within = relative_distance(records, threat, shape) <= threat.budget + TOLERANCE
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
    otherwise (Papernot et al. 2016, arXiv 1511.04508). All over the test split.
    """
    test = _split(probe, "test")
    correct = test["prediction"] == test["label"]
    return {
        "accuracy": _mean(correct),
        "accuracy_ci": wilson(int(correct.sum()), len(correct)),
        "confidence": _mean(test["confidence"].where(correct, 0.0)),
        "max_logit": _mean(test["max_logit"]),
        "logit_gap": _mean(test["logit_gap"]),
        "test_samples": len(test),
    }


def _split(probe: pd.DataFrame, name: str) -> pd.DataFrame:
    return probe[(probe["split"] == name).to_numpy()]


BINS = 15
"""Bins of the reliability curve, of equal width (Guo et al. 2017, arXiv 1706.04599)."""

LARGE, TINY = -2.0, -40.0
"""What (a) calls a large and a vanishing amplitude of the gradient, as base-10 logarithms."""

EDGES = (-300, -200, -150, -100, -70, -50, -40, -35, -30, -25, -20, -15, -10, -5, -3, -2, -1, 0)
"""Edges of the sensitivity histogram, base-10 logarithms: the paper's (PAPERS.md: recalled), and
finer and lower ones; what lies below the first and above the last is counted too."""


def summarise_model(probe: pd.DataFrame, sources: list[int]) -> Document:
    """Return all that is said of one fitted model without an attack.

    ``sources``: the sample ids that are attacked, on which ``gradients`` are judged.
    """
    test, train = _split(probe, "test"), _split(probe, "train")
    accuracy = _mean(train["prediction"] == train["label"])
    found = summarise_probe(probe)
    gap = None if accuracy is None or found["accuracy"] is None else accuracy - found["accuracy"]
    return {
        **found,
        "train_accuracy": accuracy,
        "train_samples": len(train),
        "generalisation_gap": gap,
        "mean_abs_logit": _mean(test["mean_abs_logit"]),
        "max_logit_ci": mean_interval(test["max_logit"]),
        "logit_gap_ci": mean_interval(test["logit_gap"]),
        "entropy": _mean(test["entropy"]),
        "probabilities": _mean(test["sums_to_one"]),
        **_calibration(test),
        "sensitivity": _sensitivity(test),
        "gradients": _gradients(test[test["sample_id"].isin(sources)]),
    }


def mean_interval(values: pd.Series) -> Interval:
    """Return the 95 % interval of a mean over independent images (normal approximation)."""
    kept = values[np.isfinite(values)]
    if len(kept) < 2:
        return None
    mean, half = float(kept.mean()), 1.96 * float(kept.std(ddof=1)) / math.sqrt(len(kept))
    return mean - half, mean + half


def _calibration(test: pd.DataFrame) -> Document:
    """Return the reliability curve and the expected calibration error (Guo et al. 2017)."""
    top, correct = test["confidence"], test["prediction"] == test["label"]
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.digitize(top, edges, right=True) - 1, 0, BINS - 1)
    curve, error = [], 0.0
    for index in np.unique(bins):
        inside = bins == index
        confidence, accuracy = float(top[inside].mean()), float(correct[inside].mean())
        error += abs(confidence - accuracy) * float(inside.mean())
        curve.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "samples": _count(pd.Series(inside)),
                "confidence": _number(confidence),
                "accuracy": accuracy,
            }
        )
    return {"ece": _number(error) if len(test) else None, "reliability": curve}


def _sensitivity(test: pd.DataFrame) -> Document | None:
    """Return the histogram of the mean absolute input gradient, and what float32 makes of it."""
    measured = test[test["sensitivity"].notna()]
    if measured.empty:
        return None
    values = measured["sensitivity"].to_numpy()
    edges = (-math.inf, *EDGES, math.inf)
    counts = np.histogram(np.clip(values, -1e300, 1e300), bins=edges)[0]
    norms = test["jacobian"].dropna()
    return {
        "samples": len(values),
        "median_log10": _number(np.median(values)),
        "edges_log10": list(EDGES),
        "counts": [int(count) for count in counts],
        "large": int((values > LARGE).sum()),
        "tiny": int((values < TINY).sum()),
        "float32_zero": int(measured["float32_zero"].sum()),
        "jacobian_samples": len(norms),
        "jacobian_median_log10": _number(norms.median()) if len(norms) else None,
    }


def _gradients(sources: pd.DataFrame) -> Document:
    """Return the figures of VERDICT's flags on a model; None where they could not be measured."""
    zero, cosine = sources["cross_entropy_zero"].dropna(), sources["gradient_cosine"].dropna()
    return {
        "sources": len(zero),
        "zero_share": _mean(zero),
        "zero_samples": _ids(sources, "cross_entropy_zero"),
        "cosine_median": _number(cosine.median()) if len(cosine) else None,
        "answers_differ": _mean(sources["answer_differs"].dropna()),
        "answers_differ_samples": _ids(sources, "answer_differs"),
    }


def _ids(rows: pd.DataFrame, column: str) -> list[int]:
    return [int(value) for value in rows.loc[rows[column] == 1, "sample_id"]]


def _mean(values: pd.Series | Counts) -> float | None:
    return _number(values.mean()) if len(values) else None


def _count(values: pd.Series) -> int:
    return int(values.sum())


def _total(values: pd.Series) -> int | None:
    return int(values.sum()) if values.notna().any() else None


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
