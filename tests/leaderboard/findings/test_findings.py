"""Findings say what their rows say, whichever way they go, and nothing of what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.base.rows import Results
from leaderboard.findings.disagreement import disagreement, draw_disagreement
from leaderboard.findings.distilled import smaller
from leaderboard.findings.finding import Finding, Group, apart, groups, listed, told
from leaderboard.findings.logits import FIGURE, attack_table, draw_logits, logits, size_table
from leaderboard.findings.students import (
    LEVEL,
    ORDER,
    SURENESS,
    draw_students,
    inheritance,
    ranking,
)
from leaderboard.pages.findings import findings
from tests.leaderboard.rows import ENVIRONMENT, cell

Row = dict[str, Any]

# --- numbers and words


@pytest.mark.parametrize(
    ("words", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_words_are_listed(words: list[str], text: str) -> None:
    assert listed(words) == text


def group(*values: tuple[float, float, float] | None) -> Group:
    rows = [{} if v is None else {"m": v[0], "m_ci": v[1:]} for v in values]
    return Group("g", tuple(rows))


def test_groups_are_apart_where_no_interval_of_one_meets_one_of_the_other() -> None:
    low, high = group((1, 0, 2), (2, 1, 3)), group((5, 4, 6), (6, 5, 7))
    assert apart(low, high, "m")
    assert not apart(high, low, "m")
    assert not apart(low, group((5, 3, 6)), "m")  # they touch
    assert apart(low, group(None, (5, 4, 6)), "m")
    assert not apart(low, group(None, None), "m")
    assert not apart(group(), high, "m")
    known = Group("g", ({"m": 1.0, "m_ci": None},))
    assert not apart(known, high, "m")
    assert not apart(low, known, "m")


def test_a_span_holds_the_intervals_of_all_seeds() -> None:
    assert group((1, 0.5, 2), (3, 1, 4)).spanned("m") == "2.00 [0.500, 4.00]"
    assert group(None).spanned("m") == "–"


# --- the logits

PGD = {"method": "pgd", "eps": 0.2}
SIZE = ("max_logit", "logit_gap")


def models(
    defense: str, means: Sequence[float | None], gaps: Any = None, **params: Any
) -> list[Row]:
    """A model a seed with a mean max logit and gap, and intervals of a tenth either way."""
    found = []
    for seed, (mean, gap) in enumerate(zip(means, gaps or means, strict=True)):
        row = {"id": f"{defense}{params}{seed}", "defense": defense, "defense_params": params,
               "seed": seed, "status": "failed"}  # fmt: skip
        if mean is not None:
            sizes = dict(zip(SIZE, (mean, gap), strict=True))
            row |= {**sizes, **{f"{k}_ci": (0.9 * v, 1.1 * v) for k, v in sizes.items()}}
            row |= {"status": "done", "accuracy": 0.9, "parameters": 1000}
        found.append(row)
    return found


def logit_rows(of: Sequence[Row], *, tau: float | None = 0.5) -> list[Row]:
    """Rows of ``logits.json``: clean ones and those of PGD at two budgets, half as large."""
    found = []
    for model in of:
        if model["status"] == "failed":
            continue
        base = {k: model[k] for k in ("defense", "defense_params", "seed")} | {"model": model["id"]}
        clean = {"confidence": 0.9, "entropy": 0.1, **{name: model[name] for name in SIZE}}
        found.append({**base, **clean, "cell": None, "attack": None, "samples": 10})
        found += [
            {
                **base, **{k: v * eps for k, v in clean.items()}, "order_tau": tau, "samples": 9,
                **{f"{k}_before": 2 * v for k, v in clean.items()}, "cell": f"c{eps}",
                "attack": "pgd", "attack_params": {"eps": eps},
                "threat": {"norm": "linf", "budget": eps, "unit": "input"},
            }
            for eps in (0.1, 0.2)
        ]  # fmt: skip
    return found


def told_logits(*of: list[Row], **more: Any) -> Finding | None:
    every = [row for rows in of for row in rows]
    return logits(Results([], every, logits=logit_rows(every, **more)))


PLAIN = models("undefended", [10.0, 11.0, 10.5])


def sentences(finding: Finding | None) -> tuple[str, str]:
    assert finding is not None
    return finding.sentences


def test_lower_logits_and_growing_ones_are_said_to_be_so() -> None:
    robust = models("adversarial_training", [4.0, 5.0, 4.5], **PGD)
    steps = models("distillation", [500.0] * 3, temperature=50.0) + models(
        "distillation", [100.0] * 3, temperature=10.0
    )
    first, second = sentences(told_logits(PLAIN, robust, steps))
    assert "Undefended, the means over the test images are 10.0 / 11.0 / 10.5 (max logit)" in first
    assert "PGD training, ε = 0.2 the mean max logit is 4.00 / 5.00 / 4.50" in first
    assert "(lower, and the intervals do not meet)" in first
    assert "100 / 100 / 100 at T = 10 and 500 / 500 / 500 at T = 50" in second
    assert "grow at every step of T, and the intervals do not meet: the opposite" in second


def test_higher_logits_are_said_to_be_higher_and_then_growth_is_no_opposite() -> None:
    robust = models("adversarial_training", [40.0] * 3, **PGD)
    first, second = sentences(
        told_logits(PLAIN, robust, models("distillation", [99.0] * 3, temperature=5.0))
    )
    assert "(higher, and the intervals do not meet)" in first
    assert "grow at every step" in second
    assert "opposite" not in second


def test_what_is_not_apart_is_said_so_and_each_size_for_itself() -> None:
    robust = models("adversarial_training", [9.5, 10.0, 10.5], **PGD)
    assert "(not clearly apart)" in sentences(told_logits(PLAIN, robust))[0]
    robust = models("adversarial_training", [4.0] * 3, [99.0] * 3, **PGD)
    assert (
        "(the max logit lower and the logit gap higher)" in sentences(told_logits(PLAIN, robust))[0]
    )
    robust = models("adversarial_training", [4.0] * 3, [10.0] * 3, **PGD)
    found = sentences(told_logits(PLAIN, robust))[0]
    assert "(the max logit lower and the logit gap not clearly apart)" in found


def test_distillation_that_does_not_grow_is_said_not_to() -> None:
    robust = models("adversarial_training", [4.0] * 3, **PGD)
    flat = models("distillation", [100.0] * 3, temperature=10.0) + models(
        "distillation", [101.0] * 3, temperature=50.0
    )
    second = sentences(told_logits(PLAIN, robust, flat))[1]
    assert "do not both grow beyond the intervals at every step" in second
    assert "opposite" not in second
    assert sentences(told_logits(PLAIN, robust))[1].startswith("No distilled network")


def test_one_seed_and_a_failed_one() -> None:
    robust = models("adversarial_training", [4.0, None, 4.5], **PGD)
    found = told_logits(PLAIN, robust)
    assert "is 4.00 / – / 4.50" in sentences(found)[0]
    assert "(lower, and" in sentences(found)[0]
    assert found is not None
    assert found.tables[0][1]["defense"].tolist() == [
        "undefended", "adversarial_training (2 of 3 seeds)",
    ]  # fmt: skip
    single = told_logits(PLAIN[:1], models("adversarial_training", [4.0], **PGD))
    assert "is 4.00 and the mean logit gap is 4.00 (lower" in sentences(single)[0]


def test_without_an_undefended_or_a_trained_network_nothing_is_said() -> None:
    robust = models("adversarial_training", [4.0], **PGD)
    assert told_logits(PLAIN) is told_logits(robust) is told_logits() is None
    assert told_logits(models("undefended", [None]), robust) is None
    assert told_logits(PLAIN, models("adversarial_training", [None], **PGD)) is None


def test_trades_is_a_training_on_perturbed_inputs_and_label_smoothing_is_none() -> None:
    first, _ = sentences(told_logits(PLAIN, models("trades", [4.0, 4.1, 4.2], eps=0.2)))
    assert "with trades the mean max logit is 4.00 / 4.10 / 4.20" in first
    assert told_logits(PLAIN, models("label_smoothing", [4.0, 4.1, 4.2])) is None


def test_before_and_after_are_of_the_same_sources_under_pgd_at_its_largest() -> None:
    rows = logit_rows(PLAIN[:1])
    other = {
        **rows[2],
        "attack": "fgsm",
        "attack_params": rows[2]["attack_params"],
        "max_logit": 99,
    }
    none = {**rows[2], "threat": {"norm": "none", "budget": None, "unit": "input"}, "cell": "f"}
    found = attack_table(Results([], PLAIN[:1], logits=[none, other, *rows]))
    assert found is not None
    caption, table = found
    assert "after pgd, L∞ ≤ 0.2" in caption
    assert len(table) == 1
    assert table["max logit"][0] == "20.0 → 2.00"  # not from 10.0, the mean of all sources
    assert table["τ"][0] == "0.50"
    assert attack_table(Results([], [], logits=[])) is None
    assert attack_table(Results([], [], logits=[none, rows[0]])) is None
    empty = {**rows[2], "samples": 0, "max_logit": None}
    assert attack_table(Results([], [], logits=[empty])) is None


def test_two_classes_have_no_tau() -> None:
    found = attack_table(Results([], PLAIN, logits=logit_rows(PLAIN, tau=None)))
    assert found is not None
    assert found[1]["τ"].tolist() == ["–"]
    assert size_table(Results([], PLAIN, logits=logit_rows(PLAIN)))["max logit"].tolist() == [
        "10.5"
    ]


class FakeMaterial(SimpleNamespace):
    """Rows of probes by model, as ``Material`` reads them."""

    def test_rows(self, model: str) -> pd.DataFrame:
        return self.frame


def material(shape: tuple[int, ...] = (30,)) -> Any:
    frame = pd.DataFrame({name: np.linspace(1, 2, 5) for name in (*SIZE, "confidence")})
    return FakeMaterial(frame=frame, data=SimpleNamespace(info=SimpleNamespace(shape=shape)))


def test_a_student_has_the_colour_of_its_teacher_and_no_failed_model_is_drawn() -> None:
    robust = models("adversarial_training", [4.0], **PGD)
    teacher = {"eps": 0.2, "name": "adversarial_training", "method": "pgd"}
    taught = models("robust_distillation", [5.0], teacher=teacher, keep="all")
    broken = models("label_smoothing", [None])
    every = PLAIN[:1] + robust + taught + broken
    lines = draw_logits(Results([], every), material())[FIGURE].axes[0].get_lines()
    assert [line.get_label() for line in lines] == [
        "undefended", "PGD training, ε = 0.2", "student of adversarial training",
    ]  # fmt: skip
    assert lines[1].get_color() == lines[2].get_color() != lines[0].get_color()
    assert draw_logits(Results([], PLAIN), material()) == {}
    assert draw_logits(Results([], []), material()) == {}


# --- pairs


def who(defense: str, **params: Any) -> Row:
    return {"defense": defense, "defense_params": params}


def at(
    place: float | None, *seeds: tuple[float, float] | None, norm: str = "linf", half: float = 0.05
) -> Row:
    """A budget of a pair: both worst cases a seed, and an interval of ``half`` either way."""
    known = [
        {"seed": n, "first": s[0], "second": s[1], "delta": s[0] - s[1]}
        for n, s in enumerate(seeds)
        if s is not None
    ]
    delta = sum(seed["delta"] for seed in known) / len(known) if known else None
    bounds = None if delta is None else (delta - half, delta + half)
    return {"norm": norm, "at": place, "seeds": known, "family": 1, "delta": delta, "ci": bounds,
            "ci_family": bounds}  # fmt: skip


def pair(why: str, first: Row, second: Row, *survival: Row, seeds: int = 3, **agreed: Any) -> Row:
    return {
        "id": f"{why}{first}{second}", "why": why, "first": first, "second": second,
        "seeds": [{"seed": n, "first": "a", "second": "b"} | {k: v[n] for k, v in agreed.items()}
                  for n in range(seeds)],
        "survival": list(survival),
    }  # fmt: skip


def results(*pairs: Row, of: Sequence[Row] = ()) -> Results:
    return Results([], list(of), pairs=list(pairs))


SCHOOL, ORDINARY = {"name": "adversarial_training", **PGD}, {"name": "undefended"}


def student(teacher: Row = SCHOOL, keep: str = "all", name: str = "robust_distillation") -> Row:
    return who(name, teacher=teacher, keep=keep)


def inherited(first: Row, second: Row, *survival: Row, seeds: int = 3) -> tuple[str, str]:
    return sentences(inheritance(results(pair("teacher", first, second, *survival, seeds=seeds))))


GAIN = ((0.2, 0.7), (0.2, 0.6), (0.3, 0.7))
"""Worst cases at three seeds of which the second is the higher."""
LOSS = tuple((b, a) for a, b in GAIN)


def test_a_gain_of_the_student_is_told_whichever_the_matrix_names_first() -> None:
    ways = [
        inherited(student(ORDINARY), student(), at(0.1, *GAIN)),
        inherited(student(), student(ORDINARY), at(0.1, *LOSS)),
    ]
    assert ways[0] == ways[1]
    first, second = ways[0]
    assert first.startswith("Taught by a robust teacher rather than by a standard teacher")
    assert "at L∞ 0.1 70.0 / 60.0 / 70.0 % of the sources stand against 20.0 / 20.0" in first
    assert "(+43.3 [38.3, 48.3] points)" in first
    assert second == (
        "The student of a robust teacher holds more than that of a standard teacher at L∞ 0.1, "
        "with an interval above zero and the same sign at each of 3 seeds."
    )


def test_what_two_seeds_differ_by_stands_beside_a_gain() -> None:
    taught = pair("teacher", student(ORDINARY), student(), at(0.1, *GAIN))
    twin = pair("undefended", who("twin"), who("undefended"), at(0.1, (0.5, 0.45), (0.4, 0.52)))
    (without,), (note,) = (
        inheritance(results(*pairs)).notes for pairs in ([taught], [taught, twin])
    )
    assert note == (
        f"{without} Two undefended networks of other seeds lie up to 12.0 points apart at L∞ 0.1: "
        "so much is chance."
    )


def test_every_training_on_perturbed_inputs_makes_a_robust_teacher() -> None:
    trades = student({"name": "trades", "eps": 0.2})
    first, second = inherited(student(ORDINARY), trades, at(0.1, *GAIN))
    assert first.startswith("Taught by a robust teacher (trades) rather than by a standard teacher")
    assert second.startswith("The student of a robust teacher (trades) holds more")
    # Of three teachers the comparison is of a robust one with another, not of two robust ones.
    both = pair("teacher", trades, student(), at(0.1, *LOSS))
    mixed = pair("teacher", student(ORDINARY), student(), at(0.1, *GAIN))
    assert sentences(inheritance(results(both, mixed)))[0].startswith(
        "Taught by a robust teacher rather than by a standard teacher"
    )


def test_a_loss_is_told_and_so_is_a_gain_elsewhere() -> None:
    _, second = inherited(student(ORDINARY), student(), at(0.1, *LOSS), at(2, *GAIN, norm="l0"))
    assert "holds more than that of a standard teacher at L0 2, with an interval above" in second
    assert "holds less than that of a standard teacher at L∞ 0.1, with an interval below" in second


@pytest.mark.parametrize(
    "seeds",
    [((0.5, 0.52), (0.5, 0.52), (0.5, 0.52)),  # within the interval
     ((0.5, 0.9), (0.5, 0.9), (0.5, 0.4)),  # of two signs
     ((0.5, 0.9), (0.5, 0.9), (0.5, 0.5))],
)  # fmt: skip
def test_no_gain_is_no_more_than_not_shown(seeds: Any) -> None:
    _, second = inherited(student(ORDINARY), student(), at(0.1, *seeds))
    assert "is not shown to hold more or less than that of a standard teacher" in second
    assert "holds" not in second


def test_the_number_of_seeds_is_that_of_those_measured() -> None:
    _, second = inherited(student(ORDINARY), student(), at(0.1, (0.2, 0.7)), seeds=1)
    assert "the same sign at the one seed" in second
    first, second = inherited(student(ORDINARY), student(), at(0.1, GAIN[0], None, GAIN[2]))
    assert "70.0 / – / 70.0 % of the sources stand against 20.0 / – / 30.0 %" in first
    assert "at each of 2 seeds" in second


def test_nothing_known_is_nothing_said() -> None:
    unknown = at(0.1, None)
    assert unknown["delta"] is None
    assert inheritance(results(pair("teacher", student(ORDINARY), student(), unknown))) is None
    assert inheritance(results()) is ranking(results()) is smaller(results()) is None
    lost = pair("keep", student(keep="max"), student(), unknown)
    assert ranking(results(lost)) is None
    assert draw_students(results(lost), material()) == {}


@pytest.mark.parametrize(
    ("own", "text"), [(0.9, "40.0 % against 90.0 %"), (0.1, "40.0 % against 10.0 %")]
)
def test_the_teacher_stands_beside_its_student_whether_it_holds_more_or_not(
    own: float, text: str
) -> None:
    gain = pair("teacher", student(ORDINARY), student(), at(0.1, *GAIN))
    taught = pair("taught", student(), who("adversarial_training", **PGD), at(0.1, (0.4, own)))
    second = sentences(inheritance(results(gain, taught)))[1]
    assert f"beside its teacher, which did see them, it has {text} at L∞ 0.1" in second
    assert "teacher, which did see them, holds" not in second


def kept(keep: str, *seeds: tuple[float, float] | None, teacher: Row = SCHOOL) -> Row:
    return pair("keep", student(teacher, keep), student(teacher), at(0.1, *seeds))


COST, NONE = ((0.2, 0.7),) * 3, ((0.7, 0.7),) * 3


def ranked(*pairs: Row) -> tuple[str, str]:
    return sentences(ranking(results(*pairs)))


def test_what_costs_is_told_with_its_budget_and_the_rest_shows_no_loss() -> None:
    first, second = ranked(kept("order", *COST), kept("confidence", *NONE), kept("values", *COST))
    assert "at each of 3 seeds: order (at L∞ 0.1) and values (at L∞ 0.1); of these no" in first
    assert first.endswith("no loss is shown: confidence.")
    assert "taking the confidence of each sample away costs robustness" in second
    assert "takes their order and spread away, shows no cost" in second
    assert "putting them in a wrong order costs robustness" in second


@pytest.mark.parametrize(
    ("costs", "parts_told"),
    [({"order": [], "confidence": [], "values": [], "fixed_order": []},
      ("shows no cost", "shows no cost", "shows no cost")),
     ({"order": [], "confidence": ["L0 1"], "values": [], "fixed_order": []},
      ("shows no cost", "costs robustness", "shows no cost")),
     ({"confidence": [], "fixed_order": ["L0 1"], "values": []},
      ("was not measured", "shows no cost", "costs robustness")),
     ({"max": ["L0 1"]}, ("was not measured",) * 3)],
)  # fmt: skip
def test_the_conclusion_says_of_each_part_what_was_measured(costs: Any, parts_told: Any) -> None:
    words = dict.fromkeys(("teacher", "seeds", "losing", "same", "failed"), "")
    parts = {"sureness": SURENESS, "level": LEVEL, "order": ORDER}
    costing = [name for name, where in costs.items() if where]
    found = told("ranking", [], costs=list(costs), costing=costing, **words, **parts)
    text = found.sentences[1]
    assert f"confidence of each sample away {parts_told[0]}, levelling" in text
    assert f"spread away, {parts_told[1]}, and" in text
    assert text.endswith(f"wrong order {parts_told[2]}.")
    assert "need" not in text


def test_no_manipulation_that_costs_is_told_as_none() -> None:
    first, _ = ranked(kept("max", *NONE), kept("label", (0.5, 0.55), (0.6, 0.7), (0.8, 0.7)))
    assert "at each of 3 seeds: none; of these no loss is shown: max and label." in first


def test_a_manipulation_that_was_not_measured_is_neither() -> None:
    first, second = ranked(kept("label", *COST), kept("order", None))
    assert first.endswith("no loss is shown: none; these were not measured: order.")
    assert "confidence of each sample away was not measured" in second


def test_one_seed_is_one_seed() -> None:
    row = pair("keep", student(keep="label"), student(), at(0.1, (0.2, 0.7)), seeds=1)
    assert "at the one seed: label" in ranked(row)[0]


def test_the_ranking_is_of_the_robust_teacher_whichever_comes_first() -> None:
    first, _ = ranked(kept("max", *NONE, teacher=ORDINARY), kept("max", *COST))
    assert first.startswith("Against everything kept of a robust teacher")
    assert "max (at L∞ 0.1)" in first
    first, _ = ranked(kept("max", *NONE, teacher=ORDINARY))
    assert first.startswith("Against everything kept of a standard teacher")


def test_teachers_of_one_name_are_kept_apart() -> None:
    other = {**SCHOOL, "eps": 0.1}
    found = ranking(results(kept("max", *COST), kept("max", *NONE, teacher=other)))
    assert "max (at L∞ 0.1)" in sentences(found)[0]
    assert found is not None
    ((_, table),) = found.tables
    assert [name for name in table.columns if "Δ" in name] == [
        "adversarial_training eps=0.2, Δ", "adversarial_training eps=0.1, Δ",
    ]  # fmt: skip
    line = table.set_index("keep").loc["max"]
    assert line["adversarial_training eps=0.2"] == "20.0 / 20.0 / 20.0 %"
    assert line["adversarial_training eps=0.1"] == "70.0 / 70.0 / 70.0 %"
    assert line["adversarial_training eps=0.2, Δ"] == "−50.0 [−55.0, −45.0]"


def test_the_figure_has_a_point_for_every_difference() -> None:
    made = draw_students(results(kept("max", *COST), kept("gap", *NONE)), material())
    (axis,) = made["students"].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["max", "gap"]
    points = axis.containers[0].lines[0].get_xydata()
    assert points.tolist() == [[pytest.approx(-50), 0], [0, 1]]


# --- a student of another size


def distilled(*survival: Row, of: Sequence[Row] = ()) -> tuple[str, str]:
    taught = pair("taught", student(ORDINARY, name="knowledge_distillation"), who("undefended"),
                  *survival)  # fmt: skip
    return sentences(smaller(results(taught, of=of)))


def test_size_accuracy_and_what_stands_are_told_of_both() -> None:
    small = models("knowledge_distillation", [1.0, None, 1.0], teacher=ORDINARY, keep="all")
    large = [{**row, "parameters": 4000} for row in PLAIN]
    first, second = distilled(at(0.1, (0.3, 0.2), None, (0.1, 0.4)), of=small + large)
    assert "With 0.25 times the parameters, the student taught by undefended" in first
    assert "classifies 90.0 / – / 90.0 % of the test split correctly" in first
    assert "where its teacher has 90.0 / 90.0 / 90.0 %." in first
    assert "30.0 / – / 10.0 % against 20.0 / – / 40.0 % at L∞ 0.1" in second
    assert "With – times" in distilled(at(0.1, (0.3, 0.2)))[0]


# --- disagreement


def held(why: str, defense: Row, apart: Sequence[float | None], tau: float | None = 0.5) -> Row:
    row = pair("undefended", defense, who("undefended"), seeds=len(apart))
    for seed, share in zip(row["seeds"], apart, strict=True):
        if share is not None:
            seed |= {"apart": share, "order_tau": tau, "confidence_correlation": 0.6,
                     "same_prediction": 0.98, "confidence_difference": -0.04,
                     "first_surer": [], "second_surer": []}  # fmt: skip
    return row


def differ(trained: Any, twins: Any, tau: float | None = 0.5) -> tuple[str, str]:
    robust = held("", who("adversarial_training", **PGD), trained, tau)
    return sentences(disagreement(results(robust, held("", who("twin"), twins, tau))))


@pytest.mark.parametrize(
    ("trained", "twins", "told"),
    [([0.1, 0.2, 0.3], [0.05, 0.15, 0.25], "more at 3 of 3 seeds"),
     ([0.1, 0.2, 0.3], [0.1, 0.3, 0.2], "more at 1 of 3 seeds"),
     ([0.1, None, 0.3], [0.05, 0.1, 0.4], "more at 1 of 2 seeds"),
     ([0.1], [0.05], "more at the one seed"),
     ([0.1], [0.1], "not more at the one seed"),
     ([0.1, None], [None, 0.1], "at no seed both are known")],
)  # fmt: skip
def test_seeds_are_compared_with_themselves(trained: Any, twins: Any, told: str) -> None:
    assert differ(trained, twins)[0].endswith(f" %: {told}.")


def test_a_failed_seed_is_a_dash_and_two_classes_have_no_order() -> None:
    first, second = differ([0.0623, None, 0.0996], [0.0, 0.1, 0.2], None)
    assert "on 6.23 / – / 9.96 % of the test images" in first
    assert "on 0.00 / 10.00 / 20.00 %" in first
    assert "0.60 / – / 0.60 against 0.60 / 0.60 / 0.60" in second
    assert second.endswith("orders of the incorrect classes is undefined, for there are too few.")


def test_without_the_control_nothing_is_said() -> None:
    robust, twin = held("", who("adversarial_training", **PGD), [0.1]), held("", who("twin"), [0.1])
    lost = held("", who("twin"), [None, None])
    assert disagreement(results(robust)) is disagreement(results(twin)) is None
    assert disagreement(results(robust, lost)) is None
    assert draw_disagreement(results(robust, lost), material()) == {}


def test_what_is_no_image_has_no_panel_and_a_failed_seed_is_not_drawn() -> None:
    both = results(
        held("", who("adversarial_training", **PGD), [None, 0.1]), held("", who("twin"), [0.1, 0.1])
    )
    assert list(draw_disagreement(both, material((30,)))) == ["confidence-joint"]
    drawn = draw_disagreement(both, material((1, 8, 8)))
    assert list(drawn) == ["confidence-joint", "confidence-panel"]


# --- the page


def page(of: Results, drawn: Sequence[str] = ()) -> str:
    return findings(of, ENVIRONMENT, drawn)


def test_an_image_stands_where_it_was_drawn_alone() -> None:
    robust = models("adversarial_training", [4.0] * 3, **PGD)
    of = Results([], PLAIN + robust, logits=logit_rows(PLAIN + robust))
    assert "![" not in page(of)
    assert f"(figures/{FIGURE}.png)" in page(of, [FIGURE, "students"])
    assert "students.png" not in page(of, [FIGURE, "students"])
    assert "none of the models" in page(Results([], []))


def test_names_are_no_markup() -> None:
    bad = "<b>*x*|[y](z)"
    every = PLAIN + models("adversarial_training", [4.0] * 3, method=bad, eps=0.2)
    every += models(bad, [1.0] * 3)
    text = page(Results([], every, logits=logit_rows(every)))
    assert "<b>" not in text.replace("\\<b", "")
    assert "\\<B\\>\\*X\\*\\|\\[Y\\](Z) training" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in rows}
    assert widths == {6, 7}  # five columns, and six with τ


def test_cells_that_did_not_finish_are_counted() -> None:
    of = {**who("undefended"), "dataset": "d", "seed": 0}
    cells = [cell(of, 0.5, status=status) for status in ("done", "failed", "skipped")]
    assert "2 of 3 cells failed or were skipped" in page(Results(cells, []))
    assert "cells failed" not in page(Results(cells[:1], []))


def test_titles_take_no_side() -> None:
    robust = models("adversarial_training", [4.0] * 3, **PGD)
    for found in (
        told_logits(PLAIN, robust),
        inheritance(results(pair("teacher", student(ORDINARY), student(), at(0.1, *GAIN)))),
        ranking(results(kept("max", *COST))),
    ):
        assert found is not None
        assert found.title.split()[0] in ("What", "Which")


def test_groups_keep_their_order_and_seeds() -> None:
    every = models("b", [1.0, 2.0]) + models("a", [3.0, None])
    found = groups(every)
    assert [g.label for g in found] == ["b", "a"]
    assert found[1].by_seed("max_logit") == [3.0, None]
    assert found[1].mean("max_logit") == 3
    assert found[0].mean("max_logit") == 1.5
    assert found[0].mean("nothing") is None
    assert math.isclose(float(found[0].spanned("max_logit").split()[0]), 1.5)
