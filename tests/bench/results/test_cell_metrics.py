"""Rates and intervals against hand-counted tables."""

import math

import numpy as np
import pandas as pd
import pytest

from bench.base.types import ThreatModel
from bench.evidence.records import relative_distance
from bench.results.cell_metrics import summarise, worst_case
from bench.results.model_metrics import summarise_model, summarise_probe
from bench.verdict.rates import clustered_wilson, wilson

L0 = ThreatModel("l0", 0.25, "features")


def records(rows: list[dict]) -> pd.DataFrame:
    default = {
        "status": "attacked", "target": 1, "success": False, "misclassified": False,
        "l0_features": 0, "l0_pixels": 0, "l2": 0.0, "linf": 0.0, "finite": True, "in_box": True,
        "in_budget": True, "adversarial_confidence": 0.5, "stop_reason": None,
        "zero_gradients": None,
    }  # fmt: skip
    return pd.DataFrame([{**default, **row} for row in rows])


# Two correct sources with three targets each, one misclassified source; d = 16, budget 4 features.
COUNTED = records(
    [
        {"sample_id": 7, "success": True, "misclassified": True, "l0_features": 2, "linf": 1.0},
        {"sample_id": 7, "success": False, "misclassified": True, "l0_features": 4, "linf": 1.0},
        {"sample_id": 7, "success": True, "misclassified": True, "l0_features": 4, "linf": 1.0},
        {"sample_id": 3, "l0_features": 4, "linf": 1.0},
        {"sample_id": 3, "l0_features": 4, "linf": 1.0},
        {"sample_id": 3, "l0_features": 2, "linf": 1.0},
        {"sample_id": 5, "status": "misclassified", "target": -1},
    ]
)


def test_counts_and_rates_by_hand() -> None:
    found = summarise(COUNTED, L0, features=16)
    assert found["sources"] == 3
    assert found["attempts"] == 6
    assert found["success_rate"] == pytest.approx(2 / 6)
    # Only source 3 is classified correctly and never misclassified.
    assert found["robust_accuracy"] == pytest.approx(1 / 3)
    assert found["robust_ci"] == pytest.approx(wilson(1, 3))


def test_robustness_by_hand() -> None:
    found = summarise(COUNTED, L0, features=16)
    # Source 7: min(2, budget, 4)/16; source 3: the whole budget 4/16.
    assert found["rho_adv"] == pytest.approx((2 / 16 + 4 / 16) / 2)
    assert found["rho_adv_paper"] == pytest.approx((2 / 16 + 4 / 16 + 0) / 3)
    assert found["rho_censored"] == pytest.approx(1 / 2)
    assert found["features_all"] == pytest.approx((2 + 4 + 4 + 4 + 4 + 4) / 6 / 16)
    assert found["features_success"] == pytest.approx((2 + 4) / 2 / 16)


def test_undefined_is_none_and_never_zero() -> None:
    nothing = records([{"sample_id": 1, "status": "misclassified"}])
    found = summarise(nothing, L0, features=16)
    assert found["success_rate"] is None
    assert found["success_ci"] is None
    assert found["rho_adv"] is None
    assert found["rho_adv_paper"] == 0.0
    failed = summarise(records([{"sample_id": 1}]), L0, features=16)
    assert failed["features_success"] is None
    linf = summarise(COUNTED, ThreatModel("linf", 0.1), features=16)
    assert linf["rho_adv"] is None


def test_without_a_source_nothing_is_compared_with_one() -> None:
    found, measured = (summarise(COUNTED, ThreatModel(n), 16) for n in ("none", "linf"))
    same = (
        "sources", "correct_sources", "attempts", "successes", "success_rate", "success_ci",
        "adversarial_confidence", "stop_reasons", "zero_gradients", "invalid",
    )  # fmt: skip
    assert {name: found[name] for name in same} == {name: measured[name] for name in same}
    undefined = (
        "robust_accuracy", "robust_ci", "features_mean", "pixels_mean", "l2_mean", "linf_mean",
        "l2_success", "linf_success", "rho_adv", "rho_adv_paper", "features_all",
    )  # fmt: skip
    assert [found[name] for name in undefined] == [None] * len(undefined)
    assert measured["robust_accuracy"] is not None
    with pytest.raises(ValueError, match="'none' measures no distance"):
        relative_distance(COUNTED, ThreatModel("none"), (1, 4, 4))


def test_wilson_is_the_textbook_interval() -> None:
    # Wilson 1927 at 8 of 10, z = 1.959964: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert wilson(0, 0) is None
    low, high = wilson(0, 100)
    assert low == 0
    assert 0 < high < 0.04


def test_one_attempt_a_source_needs_no_design_effect() -> None:
    ones = np.array([1] * 30 + [0] * 70)
    low, high = clustered_wilson(ones, np.array([1] * 100))
    assert (low, high) == pytest.approx(wilson(30, 100), abs=2e-3)


def test_perfect_clusters_count_as_one_attempt() -> None:
    # All nine targets of a source succeed or fail together: nine attempts say what one says.
    successes, attempts = np.array([9] * 30 + [0] * 70), np.array([9] * 100)
    assert clustered_wilson(successes, attempts) == pytest.approx(wilson(30, 100))
    assert clustered_wilson(np.array([0] * 100), attempts) == pytest.approx(wilson(0, 100))
    assert clustered_wilson(attempts, attempts) == pytest.approx(wilson(100, 100))


def test_the_clustered_interval_covers() -> None:
    # 100 sources × 9 targets at 0.45 % with some clustering, as in the papers' protocol:
    # nominally 95 %, and the naive interval covers far less.
    random = np.random.RandomState(0)
    attempts, truth, hits = np.array([9] * 100), 0.0045, 0
    draws = 300
    for _ in range(draws):
        fragile = random.random_sample(100) < 0.03
        successes = random.binomial(9, np.where(fragile, truth / 0.03, 0.0))
        low, high = clustered_wilson(successes, attempts)
        hits += low <= truth <= high
    assert hits / draws >= 0.93


def test_worst_case_joins_attacks_and_counts_smaller_budgets() -> None:
    weak = records(
        [
            {"sample_id": 1, "linf": 0.1, "misclassified": True},
            {"sample_id": 2, "linf": 0.1},
            {"sample_id": 3, "linf": 0.1},
            {"sample_id": 4, "status": "misclassified"},
        ]
    )
    strong = records(
        [
            {"sample_id": 1, "linf": 0.3},
            {"sample_id": 2, "linf": 0.3, "misclassified": True},
            {"sample_id": 3, "linf": 0.3},
            {"sample_id": 4, "status": "misclassified"},
        ]
    )
    shape = (1, 4, 4)
    small = worst_case([weak, strong], ThreatModel("linf", 0.1), shape)
    large = worst_case([weak, strong], ThreatModel("linf", 0.3), shape)
    assert small["worst_case"] == pytest.approx(2 / 4)  # the ε = 0.3 input is out of budget
    assert large["worst_case"] == pytest.approx(1 / 4)  # the ε = 0.1 input counts here too
    assert worst_case([weak], ThreatModel("l2", None), shape)["worst_case"] is None


def test_confidence_counts_wrong_predictions_as_zero() -> None:
    probe = pd.DataFrame(
        {
            "split": "test",
            "label": [0, 1, 2, 3],
            "prediction": [0, 1, 2, 0],
            "confidence": [0.9, 0.8, 0.7, 0.99],
            "max_logit": [1.0, 2.0, 3.0, 4.0],
            "logit_gap": [1.0, 1.0, 1.0, 1.0],
        }
    )
    found = summarise_probe(probe)
    assert found["accuracy"] == 0.75
    assert found["confidence"] == pytest.approx((0.9 + 0.8 + 0.7) / 4)
    assert found["max_logit"] == pytest.approx(2.5)


def _probe_rows() -> pd.DataFrame:
    """Four test images and two training images, every figure known by hand."""
    test = pd.DataFrame(
        {
            "split": "test",
            "sample_id": [0, 1, 2, 3],
            "label": [0, 1, 2, 3],
            "prediction": [0, 1, 2, 0],
            "confidence": [0.95, 0.95, 0.62, 0.62],
            "entropy": [0.1, 0.1, 0.5, 0.5],
            "max_logit": [1.0, 2.0, 3.0, 4.0],
            "logit_gap": [1.0, 1.0, 1.0, 1.0],
            "mean_abs_logit": [1.0, 1.0, 2.0, 2.0],
            "sums_to_one": False,
            "sensitivity": [-1.0, -45.0, -400.0, math.nan],
            "float32_zero": [0.0, 0.0, 1.0, math.nan],
            "jacobian": [-1.0, math.nan, math.nan, math.nan],
            "cross_entropy_zero": [0.0, 1.0, math.nan, math.nan],
            "gradient_cosine": [1.0, 0.0, math.nan, math.nan],
            "answer_differs": [0.0, 1.0, 0.0, math.nan],
        }
    )
    train = test.head(2).assign(split="train", prediction=[0, 0], sensitivity=math.nan)
    return pd.concat([test, train], ignore_index=True)


def test_a_models_figures_by_hand() -> None:
    found = summarise_model(_probe_rows(), [0, 1])
    assert found["accuracy"] == 0.75
    assert found["train_accuracy"] == 0.5
    assert found["generalisation_gap"] == -0.25
    # Half of the images at confidence 0.95, all right; half at 0.62, half of them right.
    assert found["ece"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.12)
    assert [item["samples"] for item in found["reliability"]] == [2, 2]
    sensitivity = found["sensitivity"]
    assert (sensitivity["samples"], sensitivity["large"], sensitivity["tiny"]) == (3, 1, 2)
    assert sensitivity["float32_zero"] == 1
    assert sum(sensitivity["counts"]) == 3
    assert sensitivity["counts"][0] == 1  # below the lowest edge
    assert len(sensitivity["counts"]) == len(sensitivity["edges_log10"]) + 1
    assert found["gradients"] == {
        "sources": 2,
        "zero_share": 0.5,
        "zero_samples": [1],
        "cosine_median": 0.5,
        "answers_differ": 0.5,
        "answers_differ_samples": [1],
    }
    low, high = found["max_logit_ci"]
    assert low < 2.5 < high


def test_what_was_not_measured_on_a_model_is_undefined() -> None:
    rows = _probe_rows().assign(sensitivity=math.nan, cross_entropy_zero=math.nan)
    found = summarise_model(rows.assign(gradient_cosine=math.nan), [0, 1])
    assert found["sensitivity"] is None
    assert found["gradients"]["zero_share"] is None
    assert found["gradients"]["cosine_median"] is None
