"""The self-test judges by truth: a canary that is missed, an honest network that is suspected."""

from typing import Any

import pytest

from bench.base.rows import Results
from bench.claims.selftest import Case, findings, self_test
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors

CANARY = Case(
    defense={"name": "temperature_only", "temperature": 20},
    truth="hides",
    flags=["zero-gradient"],
    verdict={"linf": ["masked"]},
)
HONEST = Case(defense={"name": "twin"}, truth="plain", verdict={"linf": ["broken"]})


@pytest.fixture(autouse=True)
def _plugins() -> None:
    doors.load_plugins(())


def flag(name: str, severity: str = "warning") -> dict[str, Any]:
    return {"id": name, "severity": severity}


def results(defense: str, verdict: str, *flags: dict[str, Any], cell: Any = None) -> Results:
    """One verdict row under L∞ of the defense that a case above names."""
    params = {"temperature": 20.0} if defense == "temperature_only" else {}
    row = {
        "defense": defense, "defense_params": params, "threat": {"norm": "linf"},
        "verdict": verdict, "why": "because", "seeds": [{"flags": list(flags)}],
    }  # fmt: skip
    attacked = {
        "defense": defense, "defense_params": params, "threat": {"norm": "linf"},
        "flags": [cell] if cell else [],
    }  # fmt: skip
    return Results([attacked], [], [row])


def test_a_canary_that_raises_its_flag_and_gets_its_verdict_is_seen() -> None:
    run = results("temperature_only", "masked, broken", flag("zero-gradient"), flag("naive-beaten"))
    (found,) = findings([CANARY], run)
    assert found.status == "ok"
    assert found.raised == ["naive-beaten", "zero-gradient"]


@pytest.mark.parametrize(
    ("verdict", "flags"),
    [
        ("holds (one seed)", ["zero-gradient"]),
        ("broken", ["zero-gradient"]),
        ("masked", ["naive-beaten"]),
        ("masked", []),
    ],
)
def test_a_canary_without_its_flag_or_its_verdict_is_missed(verdict: str, flags: list[str]) -> None:
    (found,) = findings([CANARY], results("temperature_only", verdict, *map(flag, flags)))
    assert found.status == "MISSED"
    assert found.why == "because"


def test_a_canary_without_a_row_is_missed() -> None:
    elsewhere = results("twin", "masked", flag("zero-gradient"))
    (found,) = findings([CANARY], elsewhere)
    assert (found.status, found.verdict) == ("MISSED", "none")


def test_a_warning_on_an_honest_network_is_a_false_alarm_wherever_it_rises() -> None:
    clean = results("twin", "broken", flag("few-sources", "info"))
    assert [f.status for f in findings([HONEST], clean)] == ["ok"]
    for run in (
        results("twin", "broken", flag("zero-gradient")),
        results("twin", "masked"),
        results("twin", "broken", cell=flag("no-op")),
    ):
        assert [f.status for f in findings([HONEST], run)] == ["FALSE ALARM"]
    robust = results("twin", "holds (one seed)")
    assert [f.status for f in findings([HONEST], robust)] == ["MISSED"]


def test_flags_may_differ_by_norm() -> None:
    case = CANARY.model_copy(update={"flags": {"linf": ["unbounded-budget"], "l0": ["x"]}})
    assert case.own("linf") == ["unbounded-budget"]
    run = results("temperature_only", "masked", flag("unbounded-budget"))
    assert [f.status for f in findings([case], run)] == ["ok"]


def test_every_canary_and_every_kind_of_honest_network_is_in_the_committed_test() -> None:
    from bench.plugins.registry import DEFENSES

    test = self_test()
    doors.load_plugins(test.plugin)
    matrix = parse_matrix(test.table(), "selftest")
    names = [spec.name for spec in matrix.defenses()]
    assert len(set(names)) == len(names) == len(test.case)
    assert {n for n in DEFENSES.names() if n.startswith("canary_")} < set(names)
    honest = {case.defense["name"] for case in test.case if case.honest}
    assert honest == {"undefended", "twin", "label_smoothing", "adversarial_training"}
    norms = {panel.norm for panel in matrix.panel}
    assert all(set(case.verdict) == norms for case in test.case)
    assert all(case.own(norm) for case in test.case if not case.honest for norm in norms)
    assert isinstance(matrix.sources, int)
    assert matrix.sources >= 60


def test_the_command_exits_by_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from bench import cli
    from bench.compose import RunResult

    test = self_test().model_copy(update={"case": [CANARY], "plugin": []})
    monkeypatch.setattr("bench.claims.selftest.self_test", lambda: test)
    for verdict, status in (("masked", 0), ("broken", 1)):
        run = results("temperature_only", verdict, flag("zero-gradient"))

        def made(*args: Any, run: Results = run, **kwargs: Any) -> Any:
            return RunResult(None, run, None)  # type: ignore[arg-type]

        monkeypatch.setattr(cli, "run_matrix", made)
        done = CliRunner().invoke(cli.app, ["selftest"])
        assert done.exit_code == status, done.output
        assert ("MISSED" in done.output) == bool(status)
        assert f"1 findings: {status} missed, 0 false alarms" in done.output
