"""Flags on a model: thresholds, and what cannot be looked at."""

from pathlib import Path
from typing import Any

import pytest

from bench.base.rows import Results
from bench.base.types import ThreatModel
from bench.commands import status as _status
from bench.compose import RunResult
from bench.runner.schedule import Progress
from bench.verdict.flags import MODEL_FLAGS, ModelFacts, cell_flags, chance, model_flags


def model(**changes: Any) -> dict[str, Any]:
    gradients = {
        "sources": 100, "zero_share": 0.0, "zero_samples": [], "cosine_median": 1.0,
        "answers_differ": 0.0, "answers_differ_samples": [],
    }  # fmt: skip
    gradients.update({k: changes.pop(k) for k in list(changes) if k in gradients})
    base = {"status": "done", "accuracy": 0.97, "probabilities": 0.0, "errors": {}}
    return {**base, "gradients": gradients, **changes}


def facts(row: dict[str, Any], **changes: Any) -> ModelFacts:
    return ModelFacts(**{"model": row, "classes": 10, "reference": 0.98, **changes})


def raised(row: dict[str, Any], **changes: Any) -> dict[str, str]:
    return {flag.id: flag.severity for flag in model_flags(facts(row, **changes)).flags}


def test_an_honest_network_is_clear() -> None:
    found = model_flags(facts(model()))
    assert (found.flags, dict(found.not_evaluated)) == ((), {})


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"zero_share": 0.1, "zero_samples": [4]}, {"zero-gradient": "warning"}),
        ({"zero_share": 0.09}, {}),
        ({"cosine_median": 0.69}, {"gradient-direction": "warning"}),
        ({"cosine_median": 0.7}, {}),
        ({"probabilities": 1.0}, {"probabilities": "error"}),
        ({"accuracy": 0.1}, {"chance": "error", "accuracy-loss": "info"}),
        ({"accuracy": 0.2}, {"chance": "error", "accuracy-loss": "info"}),
        ({"accuracy": 0.87}, {"accuracy-loss": "info"}),
        ({"accuracy": 0.89}, {}),
        ({"answers_differ": 0.01, "answers_differ_samples": [2]}, {"stochastic": "warning"}),
    ],
)
def test_thresholds(change: dict[str, Any], flag: dict[str, str]) -> None:
    assert raised(model(**change)) == flag


def test_stochastic_is_said_where_declared_and_warned_of_where_not() -> None:
    assert raised(model(), stochastic=True) == {"stochastic": "info"}
    assert raised(model(answers_differ=1.0), stochastic=True) == {"stochastic": "info"}
    assert raised(model(answers_differ=1.0)) == {"stochastic": "warning"}


def suspected(**changes: Any) -> dict[str, Any]:
    """A model that was looked at on purpose; an honest one but for ``changes``."""
    found = {
        "gradient": "agrees", "where": "sources", "step": 0.1, "value": 0.99, "stochastic": 0.0,
        "stateful": 0.0, "batch_dependent": 0.0, "no_answer": 0.0, "surrogate": None,
        "averages": None, "shapes": [], "errors": {},
    }  # fmt: skip
    return model(suspicion={**found, **changes})


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({}, {}),
        ({"stochastic": 0.01}, {"stochastic": "warning"}),
        ({"stateful": 0.01}, {"stateful": "error"}),
        ({"batch_dependent": 0.01}, {"batch-dependent": "error"}),
        ({"no_answer": 0.05}, {"no-answer": "warning"}),
        ({"no_answer": 0.049}, {"no-answer": "info"}),
        ({"surrogate": 0.9}, {}),
        ({"surrogate": 0.89}, {"surrogate": "error"}),
        ({"surrogate": 1.0, "averages": False}, {"surrogate": "error"}),
        ({"gradient": "foreign", "value": 0.2}, {"gradient-mismatch": "warning"}),
        ({"gradient": "shattered", "value": 0.2}, {"gradient-mismatch": "warning"}),
        ({"gradient": "partial", "value": 0.3}, {"gradient-mismatch": "warning"}),
        ({"gradient": "broken", "value": None, "step": None}, {"gradient-mismatch": "warning"}),
    ],
)
def test_thresholds_of_suspicion(change: dict[str, Any], flag: dict[str, str]) -> None:
    assert raised(suspected(**change)) == flag


def test_what_a_stochastic_model_may_do_is_no_flag() -> None:
    """Its answers differ after other questions and in other batches because they always do."""
    row = suspected(stochastic=1.0, stateful=1.0, batch_dependent=1.0)
    assert raised(row, stochastic=True) == {"stochastic": "info"}


def test_what_could_not_be_suspected_is_not_evaluated() -> None:
    errors = {"answers": "one: RuntimeError: no", "gradient-mismatch": "RuntimeError: no way back"}
    found = model_flags(facts(suspected(gradient="unknown", errors=errors)))
    assert dict(found.not_evaluated) == {
        "batch-dependent": "one: RuntimeError: no",
        "gradient-mismatch": "RuntimeError: no way back",
    }
    still = model_flags(facts(suspected(gradient="unknown")))
    assert set(still.not_evaluated) == {"gradient-mismatch"}


@pytest.mark.parametrize(
    ("recheck", "flag"),
    [
        (None, {}),
        ({"differing": {"a": 0, "b": 0}, "reason": None}, {}),
        ({"differing": {"a": 0, "b": 1}, "reason": None}, {"judged-differently": "error"}),
        ({"differing": None, "reason": "RuntimeError: no"}, {"judged-differently": "error"}),
    ],
)
def test_a_model_that_is_asked_again_must_answer_as_before(
    recheck: dict[str, Any] | None, flag: dict[str, str]
) -> None:
    row = {**suspected(), "recheck": recheck}
    assert raised(row) == flag
    if recheck and recheck["reason"]:
        (found,) = model_flags(facts(row)).flags
        assert "RuntimeError: no" in found.evidence


def cell(differing: int = 0, seen: int = 0) -> dict[str, str]:
    summary = {
        "invalid": 0, "no_op": 0, "attempts": 100, "sources": 100, "correct_sources": 100,
        "stop_reasons": None,
    }  # fmt: skip
    threat = ThreatModel("linf", 0.1)
    found = cell_flags(summary, {"accuracy": 0.97}, threat, 10, differing, seen)
    return {flag.id: flag.severity for flag in found}


def test_what_the_runner_saw_of_a_cell_is_flagged() -> None:
    assert cell() == {}
    assert cell(differing=1) == {"judged-differently": "error"}
    assert cell(seen=1) == {"found-not-returned": "info"}


def test_samples_are_named() -> None:
    (flag,) = model_flags(facts(model(zero_share=0.5, zero_samples=[7, 9]))).flags
    assert flag.samples == (7, 9)


def test_what_could_not_be_measured_is_not_evaluated_with_its_reason() -> None:
    none = {"zero_share": None, "cosine_median": None}
    crashed = model_flags(facts(model(**none, errors={"gradients": "RuntimeError: no way back"})))
    reasons = dict(crashed.not_evaluated)
    assert set(reasons) == {"zero-gradient", "gradient-direction"}
    assert set(reasons.values()) == {"RuntimeError: no way back"}
    halved = model_flags(facts(model(cosine_median=None, errors={"float64": "TypeError: dtype"})))
    assert dict(halved.not_evaluated) == {"gradient-direction": "TypeError: dtype"}
    alone = model_flags(facts(model(), reference=None))
    assert set(alone.not_evaluated) == {"accuracy-loss"}
    failed = model_flags(facts({"status": "failed"}))
    assert set(failed.not_evaluated) == set(MODEL_FLAGS)


@pytest.mark.parametrize("table", ["cells", "models", "verdicts"])
def test_fail_on_flag_counts_warnings_of_every_kind(table: str, tmp_path: Path) -> None:
    def run(severity: str) -> RunResult:
        flagged: dict[str, Any] = {"flags": [{"severity": severity}]}
        found = {"cells": [], "models": [], "verdicts": []}
        found[table] = [{"seeds": [flagged]} if table == "verdicts" else flagged]
        return RunResult(tmp_path, Results(**found), Progress())

    assert [_status(run(s), fail_on_flag=True) for s in ("info", "warning", "error")] == [0, 1, 1]
    assert _status(run("error"), fail_on_flag=False) == 0


def test_two_classes_are_not_guessed_at_three_quarters() -> None:
    assert chance(2, 1000) == pytest.approx(0.597, abs=1e-3)
    assert chance(3, 1000) == pytest.approx(0.445, abs=1e-3)
    assert chance(10, 1000) == pytest.approx(0.2)
    assert chance(2, 10) == chance(2) == 0.75  # so few images tell little


@pytest.mark.parametrize("stochastic", [False, True])
def test_who_declares_chance_is_asked_for_its_routes_all_the_same(stochastic: bool) -> None:
    suspected = {
        "gradient": "agrees", "where": None, "step": None, "value": 1.0, "stochastic": 0.0,
        "stateful": 0.0, "batch_dependent": 0.0, "no_answer": 0.0, "surrogate": None,
        "averages": None, "routed": 0.4, "shapes": [], "errors": {},
    }  # fmt: skip
    assert raised(model(suspicion=suspected), stochastic=stochastic)["routed"] == "warning"
