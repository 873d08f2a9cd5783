"""The page of distillation: ours beside the papers', from rows alone."""

from dataclasses import replace

import pandas as pd
import pytest

from bench.base.rows import Results
from leaderboard.pages.cost import cost, cost_table, inference
from leaderboard.pages.distillation import Report, distillation, published_table
from tests.leaderboard.rows import ENVIRONMENT, cell, model, sweep_results, who

RESULTS = sweep_results()
REPORT = Report(RESULTS)


def line(frame: pd.DataFrame, defense: str) -> dict[str, str]:
    (found,) = frame[frame["defense"] == defense].to_dict("records")
    return found


def test_success_stands_beside_the_papers_figure_with_its_certainty() -> None:
    found = line(REPORT.success(), "distillation temperature=20")
    assert found["probabilities"] == "0.6 % [0.0, 2.6] 5/900"
    assert found["log-odds against undefended"] == "−3.0 points [−5.0, −1.0]"
    assert found["paper, probabilities"] == "1.34 % (stated)"
    assert line(REPORT.success(), "soft_label")["paper, probabilities"] == "unknown"
    assert line(REPORT.success(), "temperature_only temperature=20")["paper, probabilities"] == "–"


def test_the_headline_pairs_the_hottest_with_the_undefended() -> None:
    on_probs, on_log_odds = REPORT.headline()
    assert "1/900 of the attempts on distillation at T = 100 " in on_probs
    assert "−3.0 points [−5.0, −1.0], paired over the same attempts" in on_log_odds


def test_the_change_of_accuracy_is_held_against_the_papers_bound() -> None:
    (told,) = REPORT.accuracy_change()
    assert "−1.00 points (distillation temperature=100), within the paper's 1.28 points" in told
    worse = [
        {**row, "accuracy": 0.97} if row["defense"] == "distillation" else row
        for row in RESULTS.models
    ]
    (told,) = Report(replace(RESULTS, models=worse)).accuracy_change()
    assert "−2.00 points" in told
    assert "beyond the paper's" in told


def test_the_reading_that_fits_is_computed() -> None:
    assert "What fits: smallest over the targets" in REPORT.fit()[0]
    readings = {"rho_adv": 0.5, "rho_adv_paper": 0.5, "features_success": 0.5}
    plain = cell(who("undefended"), 0.9, features_all=0.0155, **readings)
    other = Report(Results([plain], [model(who("undefended"))], []))
    assert line(other.robustness(), "undefended")["fits best"] == "mean over attempts"
    assert "mean over attempts: 0.00 points" in other.fit()[0]
    assert other.fit()[0].endswith("What fits: mean over attempts.")


def test_counts_are_scaled_to_the_papers_ten_thousand() -> None:
    found = line(REPORT.sensitivity(), "undefended")
    assert found["above 1e-2, per 10,000"] == "4000"
    assert found["zero in float32, per 10,000"] == "20"
    assert found["paper, above 1e-2"] == "4763 (stated)"


def test_a_data_set_of_no_paper_has_no_published_column() -> None:
    digits = Results(*([{**row, "dataset": "digits"} for row in rows]
                       for rows in (RESULTS.cells, RESULTS.models)), [])  # fmt: skip
    report = Report(digits)
    for _, frame, _ in report.blocks():
        assert not [name for name in frame.columns if name.startswith("paper")]
    assert report.fit() == []


def test_minimum_norm_attacks_keep_features_and_pixels_apart() -> None:
    hot = who("distillation", 100)
    row = cell(hot, 1.0, threat={"norm": "l0", "budget": None, "unit": "features"}, attack="art",
               view={"attack": "CarliniL0Method", "temperature": 100.0},
               features_mean=20.0, pixels_mean=18.0)  # fmt: skip
    (found,) = Report(Results([row], [model(hot)], [])).minimum_norm().to_dict("records")
    assert found["features changed, mean"] == "20.00"
    assert found["pixels changed, mean"] == "18.00 (paper 19 (recalled))"
    assert found["logits / T, T"] == "100"


def test_our_attack_stands_beside_the_paper_s_figure_of_its_norm_alone() -> None:
    hot = who("distillation", 100)
    rows = [
        cell(hot, 1.0, threat={"norm": norm, "budget": None, "unit": unit},
             attack="carlini_wagner", view={"norm": norm, "loss": "f6", "temperature": 1.0},
             pixels_mean=18.0, l2_mean=2.5, linf_mean=0.2)
        for norm, unit in (("l0", "pixels"), ("l2", "input"), ("linf", "input"))
    ]  # fmt: skip
    found = Report(Results(rows, [model(hot)], [])).minimum_norm()
    sizes = found[["pixels changed, mean", "L2, mean", "L∞, mean"]]
    by_norm = {line["minimised"]: line for line in found.to_dict("records")}
    assert by_norm["L0"]["pixels changed, mean"] == "18.00 (paper 19 (recalled))"
    assert by_norm["L2"]["L2, mean"] == "2.500 (paper 2.2 (recalled))"
    assert by_norm["L∞"]["L∞, mean"] == "0.2000 (paper 0.18 (recalled))"
    assert sizes.map(lambda text: "paper" in text).to_numpy().sum() == 3
    assert set(found["attack"]) == {"carlini_wagner, f6"}


def test_every_seed_is_a_line_and_a_headline_of_its_own() -> None:
    seeds = [who(name, t, s) for name, t in (("undefended", None), ("distillation", 20))
             for s in (0, 1)]  # fmt: skip
    cells = [cell(of, 0.5, output) for of in seeds for output in ("probs", "log_odds")]
    report = Report(Results(cells, [model(of) for of in seeds], []))
    assert len(report.success()) == 4
    assert len(report.headline()) == 4


def test_failed_cells_and_missing_probes_are_never_a_number() -> None:
    of = who("distillation", 100)
    failed = cell(of, None, status="failed", reason="x")
    bare = {**who("distillation", 100), "id": "a", "status": "failed"}
    page = distillation(Results([failed], [bare], []), ENVIRONMENT)
    assert "FAILED" in page
    assert "nan" not in page.lower().replace("finance", "")


def test_the_page_is_a_function_of_its_rows_and_shows_no_seconds() -> None:
    page = distillation(RESULTS, ENVIRONMENT)
    assert page == distillation(sweep_results(), ENVIRONMENT)
    assert "seconds" not in page
    assert len(published_table("mnist")) > 40
    assert "18.23" not in page
    assert "18.23 % (recalled, table)" in published_table("cifar10")["published"].tolist()


def test_cost_is_a_ratio_to_the_undefended_and_counts_the_teacher() -> None:
    hot, teacher, plain = who("distillation", 20), who("temperature_only", 20), who("undefended")
    rows = [model(of) for of in (plain, hot, teacher)]
    costs = costs_of(rows, (10, 12, 8), {1: 2})
    found = cost_table(rows, costs)
    assert line(found, "distillation")["training"] == "20.0 s (× 2.00)"
    assert line(found, "distillation")["parameters"] == "1000 (× 1.00)"
    assert line(found, "distillation")["inference"] == "2.00 s (no difference: [1.00, 1.00])"
    page = cost(rows, ENVIRONMENT, costs)
    assert "a pass over 1000 test images" in page
    assert "3 rounds" in page
    assert "0.5 to 2.5 processes wanted each core" in page
    assert "on A processor" in page
    del costs["training"][rows[2]["id"]]
    assert line(cost_table(rows, costs), "distillation")["training"] == "–"


def costs_of(rows, training, needs=None) -> dict:
    """Return ``costs.json`` of models that all take two seconds, and so long to train.

    ``needs``: by the index of a row that of its teacher.
    """
    taught = {rows[mine]["id"]: [rows[its]["id"]] for mine, its in (needs or {}).items()}
    common = {"on": "processor", "device": "A processor"}
    loads = (0.5, 2.5, None, None)
    told = [
        {"seconds": 2 * t, "processor": t, "load": load, **common}
        for t, load in zip(training, loads, strict=False)
    ]
    seconds = {row["id"]: [2.0, 2.0, 2.0] for row in rows}
    return {
        "inference": {"rows": 1000, "reason": None, "weights": {}, "seconds": seconds},
        "training": {
            row["id"]: {**told, "needs": taught.get(row["id"], [])}
            for row, told in zip(rows, told, strict=True)
        },
    }


def test_a_ratio_is_that_of_its_rounds_and_is_said_only_where_it_was_measured() -> None:
    # A machine that was twice as slow for a while: the medians lie apart, the rounds do not.
    busy = [1.0, 1.0, 2.0, 2.0]
    assert inference([1.01, 1.0, 1.99, 2.02], busy) == "1.50 s (no difference: [0.99, 1.01])"
    assert inference([1.51, 1.52, 3.0, 3.02], busy) == "2.26 s (× 1.51 [1.50, 1.52])"
    assert inference([1.0, 2.0, 2.0, 2.0], busy) == "2.00 s (ratio not measurable here)"
    assert inference(None, busy) == "–"
    assert inference(busy, None) == "1.50 s"


def test_a_run_that_was_not_timed_says_why_and_shows_no_inference() -> None:
    rows = [model(who("undefended"))]
    costs = {"inference": {"weights": {}, "reason": "timed out after 3 s"}, "training": {}}
    page = cost(rows, ENVIRONMENT, costs)
    assert "Inference was not measured: timed out after 3 s." in page
    assert line(cost_table(rows, costs), "undefended")["inference"] == "–"


def test_the_cost_of_a_student_counts_its_own_teacher() -> None:
    plain, robust, other = (
        who("undefended"),
        who("adversarial_training"),
        who("adversarial_training"),
    )
    robust["defense_params"], other["defense_params"] = {"eps": 0.2}, {"eps": 0.3}
    student = who("robust_distillation")
    student["defense_params"] = {"teacher": {"name": "adversarial_training", "eps": 0.2}}
    rows = [model(of) for of in (plain, other, robust, student)]
    costs = costs_of(rows, (1, 100, 40, 2), {3: 2})
    assert line(cost_table(rows, costs), "robust_distillation")["training"] == "42.0 s (× 42.00)"
    rows.pop(2)  # a teacher need be no model of the run: it may have no attack
    assert line(cost_table(rows, costs), "robust_distillation")["training"] == "42.0 s (× 42.00)"


@pytest.mark.parametrize("name", ["undefended", "distillation temperature=5"])
def test_log_odds_robustness_stands_beside_the_readings(name: str) -> None:
    assert line(REPORT.robustness(), name)["on log-odds, correct sources"] == "2.08 %"
