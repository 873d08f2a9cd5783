"""Flags on a model: thresholds, and what cannot be looked at."""

from pathlib import Path
from typing import Any

import pytest

from bench.base.types import Results
from bench.cli import _status
from bench.compose import RunResult
from bench.runner.schedule import Progress
from bench.verdict.flags import MODEL_FLAGS, ModelFacts, model_flags


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
        ({"cosine_median": 0.89}, {"gradient-direction": "warning"}),
        ({"cosine_median": 0.9}, {}),
        ({"probabilities": 1.0}, {"probabilities": "error"}),
        ({"accuracy": 0.1}, {"chance": "error", "accuracy-loss": "info"}),
        ({"accuracy": 0.87}, {"accuracy-loss": "info"}),
        ({"accuracy": 0.89}, {}),
        ({"answers_differ": 0.01, "answers_differ_samples": [2]}, {"stochastic": "warning"}),
    ],
)
def test_thresholds(change: dict[str, Any], flag: dict[str, str]) -> None:
    assert raised(model(**change)) == flag


def test_stochastic_as_declared_or_as_seen_and_no_warning_with_a_surrogate() -> None:
    assert raised(model(), stochastic=True) == {"stochastic": "warning"}
    assert raised(model(), stochastic=True, adaptive=True) == {"stochastic": "info"}
    assert raised(model(answers_differ=1.0), adaptive=True) == {"stochastic": "info"}


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
