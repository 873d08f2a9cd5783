"""What a probe's rows come to: the figures of a model that nobody has attacked."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench.base.types import Document
from bench.results.cell_metrics import count, mean, number
from bench.verdict.rates import mean_interval, wilson


def summarise_probe(probe: pd.DataFrame) -> Document:
    """Return accuracy, confidence C(X), max logit and logit gap of a fitted model.

    ``confidence``: the mean of C(X), 0 where the prediction is wrong and the top probability
    otherwise (Papernot et al. 2016, arXiv 1511.04508). All over the test split.
    """
    test = _split(probe, "test")
    correct = test["prediction"] == test["label"]
    return {
        "accuracy": mean(correct),
        "accuracy_ci": wilson(int(correct.sum()), len(correct)),
        "confidence": mean(test["confidence"].where(correct, 0.0)),
        "max_logit": mean(test["max_logit"]),
        "logit_gap": mean(test["logit_gap"]),
        "test_samples": len(test),
    }


def _split(probe: pd.DataFrame, name: str) -> pd.DataFrame:
    return probe[(probe["split"] == name).to_numpy()]


BINS = 15
"""Bins of the reliability curve, of equal width (Guo et al. 2017, arXiv 1706.04599)."""

LARGE, TINY = -2.0, -40.0
"""What (a) calls a large and a vanishing amplitude of the gradient, as base-10 logarithms."""

EDGES = (-300, -200, -150, -100, -70, -50, -40, -35, -30, -25, -20, -15, -10, -5, -3, -2, -1, 0)
"""Edges of the sensitivity histogram, base-10 logarithms: the paper's (docs/papers.md, recalled),
and finer and lower ones; what lies below the first and above the last is counted too."""


def summarise_model(probe: pd.DataFrame, sources: list[int]) -> Document:
    """Return all that is said of one fitted model without an attack.

    ``sources``: the sample ids that are attacked, on which ``gradients`` are judged.
    """
    test, train = _split(probe, "test"), _split(probe, "train")
    accuracy = mean(train["prediction"] == train["label"])
    found = summarise_probe(probe)
    gap = None if accuracy is None or found["accuracy"] is None else accuracy - found["accuracy"]
    return {
        **found,
        "train_accuracy": accuracy,
        "train_samples": len(train),
        "generalisation_gap": gap,
        "mean_abs_logit": mean(test["mean_abs_logit"]),
        "max_logit_ci": mean_interval(test["max_logit"]),
        "logit_gap_ci": mean_interval(test["logit_gap"]),
        "entropy": mean(test["entropy"]),
        "probabilities": mean(test["sums_to_one"]),
        **_calibration(test),
        "sensitivity": _sensitivity(test),
        "gradients": _gradients(test[test["sample_id"].isin(sources)]),
    }


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
                "samples": count(pd.Series(inside)),
                "confidence": number(confidence),
                "accuracy": accuracy,
            }
        )
    return {"ece": number(error) if len(test) else None, "reliability": curve}


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
        "median_log10": number(np.median(values)),
        "edges_log10": list(EDGES),
        "counts": [int(count) for count in counts],
        "large": int((values > LARGE).sum()),
        "tiny": int((values < TINY).sum()),
        "float32_zero": int(measured["float32_zero"].sum()),
        "jacobian_samples": len(norms),
        "jacobian_median_log10": number(norms.median()) if len(norms) else None,
    }


def _gradients(sources: pd.DataFrame) -> Document:
    """Return the figures of the flags on a model, None where one could not be measured."""
    zero, cosine = sources["cross_entropy_zero"].dropna(), sources["gradient_cosine"].dropna()
    return {
        "sources": len(zero),
        "zero_share": mean(zero),
        "zero_samples": _ids(sources, "cross_entropy_zero"),
        "cosine_median": number(cosine.median()) if len(cosine) else None,
        "answers_differ": mean(sources["answer_differs"].dropna()),
        "answers_differ_samples": _ids(sources, "answer_differs"),
    }


def _ids(rows: pd.DataFrame, column: str) -> list[int]:
    return [int(value) for value in rows.loc[rows[column] == 1, "sample_id"]]
