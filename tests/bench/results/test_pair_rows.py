"""``pairs.json`` from models made by hand: which are paired, and what is counted of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from bench.base.types import DataInfo, Document, Suspicions
from bench.evidence.cells import Trial
from bench.measure.logits import columns, measures
from bench.plan.panel import Panel
from bench.plugins import discovery as doors
from bench.results.pair_rows import ad_hoc_panels, agreement, pair_rows, pairs_of
from bench.verdict.paired import Z95, Pairs, agresti_min
from bench.verdict.verdict_rows import Model

INFO = DataInfo("d", (1, 4, 4), 4, (0.0,), (1.0,))
SOURCES = list(range(10, 20))
LINF, TWO = Panel(norm="linf", budgets=[0.2]), Panel(norm="linf", budgets=[0.1, 0.2])
AT = {"name": "adversarial_training", "eps": 0.2}


def identity(name: str, **params: Any) -> Document:
    return {"defense": name, "defense_params": params}


def model(
    defense: Document, trials: Sequence[Trial] = (), seed: int = 0,
    probe: pd.DataFrame | None = None,
) -> Model:  # fmt: skip
    run = {"dataset": "d", "network": "n", "recipe": "r"}
    row = {**run, **defense, "id": f"{defense}-{seed}", "seed": seed}
    return Model(row, Suspicions(), trials, probe)


def trial(
    broken: Mapping[int, float] | None, wrong: Sequence[int] = (), norm: str = "linf",
    flags: Sequence[str] = (), budget: float | None = 0.2, unit: str | None = None,
) -> Trial:  # fmt: skip
    """A cell that breaks each source of ``broken`` from a distance on; None: it failed."""
    row = {
        "id": f"{norm}-{broken}", "attack": "pgd", "attack_params": {}, "reason": "crashed",
        "status": "failed" if broken is None else "done", "flags": [{"id": name} for name in flags],
        "threat": {"norm": norm, "budget": budget, "unit": unit or "input"},
    }  # fmt: skip
    if broken is None:
        return Trial(row, None, "gradients")
    records = pd.DataFrame({"sample_id": SOURCES})
    records["status"] = np.where(records["sample_id"].isin(wrong), "misclassified", "attacked")
    records["misclassified"] = records["sample_id"].isin(list(broken))
    distance = records["sample_id"].map(dict(broken)).fillna(0.05)
    for name in ("linf", "l2", "l0_features", "l0_pixels"):
        records[name] = distance
    return Trial(row, records, "gradients")


def rows(models: Sequence[Model], *panels: Panel) -> list[Document]:
    matrix: Any = SimpleNamespace(panel=list(panels))
    return pair_rows(matrix, INFO, SOURCES, models)


@pytest.fixture(autouse=True)
def plugins() -> None:
    doors.load_plugins()


PLAIN = identity("undefended")
ROBUST = identity("adversarial_training", eps=0.2)


def student(teacher: Document, keep: str = "all") -> Document:
    return identity("robust_distillation", teacher=teacher, keep=keep)


def paired(*defenses: Document) -> list[tuple[int, int, str]]:
    found = pairs_of([{0: model(defense)} for defense in defenses])
    place = [str(defense) for defense in defenses]

    def number(side: Mapping[int, Model]) -> int:
        row = side[0].row
        return place.index(str({key: row[key] for key in ("defense", "defense_params")}))

    return [(number(pair.first), number(pair.second), pair.why) for pair in found]


def test_each_is_paired_with_the_undefended_one_wherever_that_stands() -> None:
    twin = identity("twin")
    assert paired(PLAIN, twin, ROBUST) == [(1, 0, "undefended"), (2, 0, "undefended")]
    assert paired(twin, ROBUST, PLAIN) == [(0, 2, "undefended"), (1, 2, "undefended")]
    assert paired(twin, ROBUST) == []


def test_a_student_is_paired_with_its_teacher_and_no_other_of_that_name() -> None:
    other, of_robust = identity("adversarial_training", eps=0.1), student(AT)
    assert (2, 1, "taught") in paired(other, ROBUST, of_robust)
    assert (0, 2, "taught") in paired(of_robust, other, ROBUST)
    assert [pair for pair in paired(other, of_robust) if pair[2] == "taught"] == []
    # The parameters of a table have no order.
    turned = student({"eps": 0.2, "name": "adversarial_training"})
    assert (1, 0, "taught") in paired(ROBUST, turned)
    plain = student({"name": "undefended"})
    assert paired(PLAIN, plain) == [(1, 0, "undefended"), (1, 0, "taught")]


def test_one_parameter_apart_goes_to_its_default_and_else_to_the_first() -> None:
    a, b = {"name": "a"}, {"name": "b"}
    found = paired(student(a), student(a, "max"), student(b), student(b, "max"), student(a, "gap"))
    assert found == [
        (1, 0, "keep"), (2, 0, "teacher"), (3, 1, "teacher"), (3, 2, "keep"), (4, 0, "keep"),
    ]  # fmt: skip
    # Wherever the default stands in the sweep; without it, the first stands for it.
    swept = paired(student(a, "max"), student(a), student(a, "gap"))
    assert swept == [(0, 1, "keep"), (2, 1, "keep")]
    assert paired(student(a, "max"), student(a, "gap")) == [(1, 0, "keep")]
    assert paired(student(a), identity("twin", teacher=a, keep="max")) == []


def test_every_pair_has_an_id_of_its_own() -> None:
    models = [model(PLAIN), model(student({"name": "undefended"})), model(ROBUST)]
    found = rows(models, LINF)
    assert len(found) == len({row["id"] for row in found}) == 3


def probe(logits: np.ndarray, labels: Sequence[int]) -> pd.DataFrame:
    values = torch.from_numpy(logits)
    kept = {**measures(values), **columns(values), "prediction": values.argmax(dim=1)}
    frame = pd.DataFrame({name: column.numpy() for name, column in kept.items()})
    test = frame.assign(sample_id=range(len(frame)), label=labels, split="test")
    return pd.concat([test, test.assign(split="train", confidence=9.0)], ignore_index=True)


def test_agreement_is_what_scipy_finds_on_the_test_images() -> None:
    draws = np.random.RandomState(0)
    a, b = draws.randn(2, 60, 4).astype(np.float32) * 3
    labels = draws.randint(0, 4, 60)
    found = agreement(
        model(ROBUST, seed=1, probe=probe(a, labels)), model(PLAIN, probe=probe(b, labels))
    )
    sure, other = (np.exp(z - z.max(1, keepdims=True)) for z in (a, b))
    sure, other = (p.max(1) / p.sum(1) for p in (sure, other))
    tau = [
        stats.kendalltau(np.delete(x, y), np.delete(z, y)).statistic
        for x, z, y in zip(a, b, labels, strict=True)
    ]
    assert found["samples"] == 60
    assert found["order_tau"] == pytest.approx(np.mean(tau))
    assert found["confidence_difference"] == pytest.approx((sure - other).mean(), abs=1e-6)
    assert found["confidence_correlation"] == pytest.approx(stats.spearmanr(sure, other).statistic)
    assert found["apart"] == pytest.approx((abs(sure - other) >= 0.25).mean())
    assert found["same_prediction"] == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    surest = np.argsort(other - sure, kind="stable")[:6]
    assert [item["sample"] for item in found["first_surer"]] == surest.tolist()
    assert found["first_surer"][0]["first"]["prediction"] == a[surest[0]].argmax()
    least = np.argsort(sure - other)[:6]
    assert [item["sample"] for item in found["second_surer"]] == least.tolist()


def test_two_classes_have_no_order_and_a_constant_no_correlation() -> None:
    first, second = np.eye(2, dtype=np.float32), 2 * np.eye(2, dtype=np.float32)
    found = agreement(
        model(ROBUST, probe=probe(first, [0, 1])), model(PLAIN, probe=probe(second, [0, 1]))
    )
    assert found["order_tau"] is found["order_tau_ci"] is found["confidence_correlation"] is None
    assert found["first_surer"] == []
    assert [item["sample"] for item in found["second_surer"]] == [0, 1]


def test_images_whose_logits_are_not_finite_are_not_counted() -> None:
    whole = np.diag([3.0, 2, 1, 0]).astype(np.float32)
    torn = whole.copy()
    torn[1, 2] = math.nan
    sides = model(ROBUST, probe=probe(whole, [0] * 4)), model(PLAIN, probe=probe(torn, [0] * 4))
    for found in (agreement(*sides), agreement(*sides[::-1])):
        assert (found["samples"], found["same_prediction"], found["apart"]) == (3, 1, 0)
        assert found["confidence_difference"] == 0
    nothing = model(PLAIN, probe=probe(np.full_like(whole, math.nan), [0] * 4))
    assert set(agreement(sides[0], nothing)) == {"seed", "first", "second"}
    assert set(agreement(sides[0], model(PLAIN))) == {"seed", "first", "second"}


def survival(found: Sequence[Document], number: int = 0) -> Document:
    document: Document = found[number]["survival"][0]
    return document


def test_survivors_are_counted_over_all_cells_budgets_and_norms() -> None:
    # 10 is misclassified, 11 broken at 0.1, 12 beyond the budget, 13 by another norm's cell.
    robust = [trial({11: 0.1, 12: 0.3}, [10]), trial({13: 0.2}, norm="l2")]
    plain = [trial(dict.fromkeys(range(11, 17), 0.15))]
    found = survival(rows([model(PLAIN, plain), model(ROBUST, robust)], LINF))
    assert found["seeds"] == [{"seed": 0, "first": 0.7, "second": 0.4, "delta": pytest.approx(0.3)}]
    # Ten sources: 12, 14, 15, 16 held by the first alone; 10 by the second alone.
    assert found["delta"] == pytest.approx(0.3)
    assert found["ci"] == pytest.approx(agresti_min(Pairs(10, 4, 1), Z95))
    assert found["ci_family"] == pytest.approx(found["ci"])
    assert (found["norm"], found["at"], found["family"]) == ("linf", 0.2, 1)


def test_a_smaller_budget_leaves_more() -> None:
    models = [model(PLAIN, [trial({10: 0.1, 11: 0.15})]), model(ROBUST, [trial({10: 0.2})])]
    (pair,) = rows(models, TWO)
    assert [at["delta"] for at in pair["survival"]] == pytest.approx([0.1, 0.1])
    assert [at["seeds"][0]["second"] for at in pair["survival"]] == pytest.approx([0.9, 0.8])
    assert [at["seeds"][0]["first"] for at in pair["survival"]] == [1.0, pytest.approx(0.9)]


def test_the_family_is_the_pairs_of_one_reason_and_widens_as_bonferroni_says() -> None:
    models = [model(PLAIN, [trial({10: 0.1})])]
    models += [model(identity("twin", n=n), [trial({10: 0.1})]) for n in range(3)]
    found = rows(models, LINF)
    assert [pair["why"] for pair in found] == ["undefended"] * 3 + ["n"] * 2
    assert [survival(found, n)["family"] for n in range(5)] == [3, 3, 3, 2, 2]
    z = stats.norm.ppf(1 - 0.05 / 2 / 3)
    assert survival(found)["ci_family"] == pytest.approx(agresti_min(Pairs(10, 0, 0), z))
    assert survival(found)["ci"] == pytest.approx(agresti_min(Pairs(10, 0, 0), Z95))


BROKEN = {10: 0.1, 11: 0.1, 12: 0.1}


@pytest.mark.parametrize(
    "failed",
    [[trial(None)], [trial(BROKEN), trial(None)], [], [trial(BROKEN, norm="l2")],
     [trial({}, flags=["no-op"])]],
)  # fmt: skip
@pytest.mark.parametrize("side", [0, 1])
def test_what_failed_at_a_seed_takes_that_seed_away(failed: list[Trial], side: int) -> None:
    def models(seed: int, *kinds: list[Trial]) -> list[Model]:
        return [model(d, t, seed) for d, t in zip((PLAIN, ROBUST), kinds, strict=True)]

    good = [[trial(BROKEN)], [trial({10: 0.1})]]
    bad = [failed if number == side else good[number] for number in (0, 1)]
    found = survival(rows([*models(0, *good), *models(1, *bad), *models(2, *good)], LINF))
    assert [seed["seed"] for seed in found["seeds"]] == [0, 2]
    assert found["delta"] == pytest.approx(0.2)
    alone = survival(rows(models(1, *bad), LINF))
    assert alone["seeds"] == []
    assert alone["delta"] is alone["ci"] is alone["ci_family"] is None


def test_a_cell_of_another_norm_may_fail() -> None:
    models = [
        model(PLAIN, [trial(BROKEN), trial(None, norm="l2")]), model(ROBUST, [trial(BROKEN)]),
    ]  # fmt: skip
    assert survival(rows(models, LINF))["delta"] == 0


def test_a_lone_no_op_is_no_robustness_but_one_beside_another_attack_may_be() -> None:
    beside = [trial({}, flags=["no-op"]), trial(BROKEN)]
    models = [model(PLAIN, [trial(BROKEN)]), model(ROBUST, beside)]
    assert survival(rows(models, LINF))["delta"] == 0


def test_a_seed_that_one_defense_lacks_is_none_of_the_pair() -> None:
    models = [model(PLAIN, [trial(BROKEN)], seed) for seed in (0, 1)]
    found = rows([*models, model(ROBUST, [trial(BROKEN)], 1)], LINF)
    assert [seed["seed"] for seed in survival(found)["seeds"]] == [1]
    assert [seed["seed"] for seed in found[0]["seeds"]] == [1]


def panels(*trials: Trial) -> list[tuple[str, list[float]]]:
    found = ad_hoc_panels([model(PLAIN, trials)], INFO)
    return [(panel.norm, panel.budgets) for panel in found]


def test_budgets_are_those_of_the_cells() -> None:
    two = trial({}, norm="l2", budget=1.5)
    found = panels(trial({}, budget=0.2), two, trial({}, budget=0.1), trial({}, budget=0.2))
    assert found == [("linf", [0.1, 0.2]), ("l2", [1.5])]
    # The whole box is the most that there is, and what has no end is no budget.
    assert panels(trial({}, budget=1.5), trial({}, norm="l2", budget=math.inf)) == [("linf", [1.0])]


@pytest.mark.parametrize(
    ("share", "features"),
    # Of 16: a share that holds two and a half features holds two, and 3/16 is three.
    [(2.5 / 16, [2.0]), (3 / 16, [3.0]), (1.0, [16.0]), (0.9 / 16, None)],
)
def test_a_share_of_the_features_is_as_many_whole_ones(share: float, features: Any) -> None:
    found = panels(trial({}, norm="l0", budget=share, unit="features"))
    assert found == ([("l0", features)] if features else [])


def test_nothing_without_a_budget_in_features_makes_a_panel() -> None:
    pixels = trial({}, norm="l0", budget=0.5, unit="pixels")
    assert panels(pixels, trial({}, norm="none", budget=None), trial({}, budget=None)) == []


def test_without_a_panel_pairs_stand_at_the_budgets_of_the_cells() -> None:
    models = [
        model(PLAIN, [trial({10: 2, 11: 3}, norm="l0", budget=2.9 / 16, unit="features")]),
        model(ROBUST, [trial({10: 2}, norm="l0", budget=2.9 / 16, unit="features")]),
    ]
    (pair,) = rows(models)
    (at,) = pair["survival"]
    # The input that changed three features is beyond the budget of its own cell.
    assert (at["norm"], at["at"], at["delta"]) == ("l0", 2, 0)
    assert at["seeds"][0]["second"] == pytest.approx(0.9)
