"""``logits.json`` from records made by hand: who is counted, how often, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch

from bench.base.types import Suspicions
from bench.evidence.cells import Trial
from bench.measure.logits import columns, measures
from bench.results.logit_rows import MEASURES, logit_rows
from bench.verdict.rates import mean_interval
from bench.verdict.verdict_rows import Model

LOGITS = {
    3: [5.0, 1.0, 2.0, 0.0],
    7: [0.0, 4.0, 1.0, 2.0],
    9: [1.0, 2.0, 6.0, 0.0],  # labelled 0: misclassified
}
LABELS = {3: 0, 5: 0, 7: 1, 9: 0}
SOURCES = [9, 3, 7]


def frame(rows: Sequence[tuple[int, Sequence[float]]], **more: Any) -> pd.DataFrame:
    logits = torch.tensor([list(values) for _, values in rows]).reshape(len(rows), 4)
    ids = [sample for sample, _ in rows]
    kept = {name: column.numpy() for name, column in columns(logits).items()}
    return pd.DataFrame({"sample_id": ids, "label": [LABELS[i] for i in ids], **kept, **more})


def probe(**changed: list[float]) -> pd.DataFrame:
    other = {int(name[1:]): values for name, values in changed.items()}
    test = frame([*sorted({**LOGITS, **other}.items())], split="test")
    # A training image of the same number is another image.
    return pd.concat([test, frame([(3, [99.0, 0, 0, 0])], split="train")], ignore_index=True)


def records(
    rows: Sequence[tuple[int, Sequence[float]]], iterations: Sequence[int | None] | None = None
) -> pd.DataFrame:
    steps = pd.array(iterations or [None] * (len(rows) + 1), dtype="Int64")
    found = frame([*rows, (9, LOGITS[9])])
    return found.assign(
        status=["attacked"] * len(rows) + ["misclassified"], iterations=steps[: len(found)]
    )


def trial(rows: pd.DataFrame | None, norm: str = "linf") -> Trial:
    row = {
        "id": "cell", "attack": "pgd", "attack_params": {"eps": 0.1},
        "threat": {"norm": norm, "budget": 0.1, "unit": "input"},
    }  # fmt: skip
    return Trial(row, rows, "gradients")


def model(trials: Sequence[Trial], rows: pd.DataFrame | None) -> Model:
    row = {
        "id": "fit", "dataset": "d", "network": "n", "recipe": "r", "defense": "undefended",
        "defense_params": {}, "seed": 2,
    }  # fmt: skip
    return Model(row, Suspicions(), trials, rows)


def by_hand(name: str, *logits: Sequence[float]) -> list[float]:
    return measures(torch.tensor([list(row) for row in logits]))[name].tolist()


def inside(name: str, values: pd.Series) -> tuple[float, float]:
    """Return the interval of a mean, within what the measure can be at all."""
    low, high = mean_interval(values)
    least, most = {"confidence": (0, 1), "entropy": (0, math.inf), "order_tau": (-1, 1)}.get(
        name, (-math.inf, math.inf)
    )
    return max(low, least), min(high, most)


def test_no_interval_leaves_what_a_measure_can_be() -> None:
    sure = {3: [30.0, 0, 0, 0], 7: [0.0, 30, 0, 0], 9: [0.0, 0, 0, 0]}
    (found,) = logit_rows([model([], frame([*sure.items()], split="test"))], SOURCES)
    values = pd.Series(by_hand("confidence", *sure.values()))
    assert mean_interval(values)[1] > 1  # the normal approximation
    assert found["confidence_ci"][1] == 1.0
    assert found["entropy_ci"][0] >= 0


def test_the_clean_row_is_of_the_sources_alone_right_or_wrong() -> None:
    extra = {5: [50.0, 0.0, 0.0, 0.0]}
    rows = pd.concat([probe(), frame([*extra.items()], split="test")], ignore_index=True)
    (found,) = logit_rows([model([], rows)], SOURCES)
    assert found["samples"] == 3
    for name in MEASURES[:-1]:
        values = by_hand(name, *(LOGITS[i] for i in SOURCES))
        assert found[name] == pytest.approx(sum(values) / 3)
        assert found[f"{name}_ci"] == pytest.approx(inside(name, pd.Series(values)))
        assert found[f"{name}_before"] is None
    assert found["order_tau"] is found["order_tau_ci"] is found["cell"] is found["attack"] is None
    assert (found["model"], found["seed"], found["iterations"]) == ("fit", 2, None)


def test_a_source_counts_once_however_many_targets_it_was_attacked_at() -> None:
    a, b, c = [0.0, 7.0, 1.0, 2.0], [0.0, 1.0, 9.0, 3.0], [3.0, 2.0, 1.0, 0.0]
    rows = records([(3, a), (3, b), (7, c)], [10, 20, 60, None])
    clean, found = logit_rows([model([trial(rows)], probe())], SOURCES)
    assert found["samples"] == 2  # the misclassified one was not attacked
    for name in MEASURES[:-1]:
        one, two, three = by_hand(name, a, b, c)
        each = pd.Series([(one + two) / 2, three])
        assert found[name] == pytest.approx(each.mean())
        assert found[f"{name}_ci"] == pytest.approx(inside(name, each))
        before = by_hand(name, LOGITS[3], LOGITS[7])
        assert found[f"{name}_before"] == pytest.approx(sum(before) / 2)
    # Of 3: the others before 2 > 1 > 3, after 1 > 3 > 2 and 2 > 3 > 1: -1/3 and 1/3, so 0. Of 7:
    # before 3 > 2 > 0, after 0 > 2 > 3: -1.
    assert found["order_tau"] == pytest.approx((0 - 1) / 2)
    assert found["iterations"] == 20  # the median over attempts
    assert (found["cell"], found["attack"], found["threat"]["norm"]) == ("cell", "pgd", "linf")
    assert found["id"] != clean["id"]


def test_what_failed_leaves_no_row_and_harms_no_other() -> None:
    broken, whole = model([trial(None)], probe()), model([trial(records([(3, LOGITS[3])]))], None)
    assert [row["cell"] for row in logit_rows([broken], SOURCES)] == [None]
    assert logit_rows([whole], SOURCES) == []


def test_nothing_attacked_is_unknown_and_no_number() -> None:
    _, found = logit_rows([model([trial(records([]))], probe())], SOURCES)
    assert found["samples"] == 0
    for name in MEASURES:
        assert found[name] is found[f"{name}_ci"] is None
    assert found["max_logit_before"] is found["iterations"] is None


def test_one_source_has_a_mean_and_no_interval() -> None:
    _, found = logit_rows([model([trial(records([(3, [3.0, 1.0, 0.0, 0.0])]))], probe())], SOURCES)
    assert (found["samples"], found["max_logit"], found["max_logit_ci"]) == (1, 3, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_not_counted(bad: float) -> None:
    rows = records([(3, [1.0, 2.0, bad, 0.0]), (3, [8.0, 0.0, 0.0, 0.0]), (7, [bad] * 4)])
    _, found = logit_rows([model([trial(rows)], probe())], SOURCES)
    assert (found["samples"], found["max_logit"], found["max_logit_before"]) == (1, 8, 5)
    (clean,) = logit_rows([model([], probe(_9=[bad, 0.0, 0.0, 0.0]))], SOURCES)
    assert (clean["samples"], clean["max_logit"]) == (2, 4.5)


def test_a_stochastic_model_is_clean_by_its_probe_and_attacked_by_its_cell() -> None:
    # The cell found 9 right, which the probe found wrong, and 7 wrong.
    rows = records([(9, [4.0, 0.0, 1.0, 2.0])])
    rows["sample_id"] = [9, 7]
    clean, found = logit_rows([model([trial(rows)], probe())], SOURCES)
    assert (clean["samples"], found["samples"]) == (3, 1)
    assert (found["max_logit"], found["max_logit_before"]) == (4, 6)


def test_inputs_without_a_source_have_no_before() -> None:
    rows = records([(3, [1.0, 7.0, 2.0, 0.0])])
    _, found = logit_rows([model([trial(rows, "none")], probe())], SOURCES)
    assert found["max_logit"] == 7
    assert found["order_tau"] is found["max_logit_before"] is None
