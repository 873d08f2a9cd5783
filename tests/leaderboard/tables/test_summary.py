"""A run in a few lines, from rows alone."""

from typing import Any

from leaderboard.tables.cells import threat_tables
from leaderboard.tables.summary import attack_summary, reasoned, summary_table, warned
from leaderboard.tables.verdicts import verdict_tables
from tests.leaderboard.tables.test_cells import row
from tests.leaderboard.tables.test_verdicts import REFERENCE, seed, verdict

HOT = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 75.0, 100.0)


def swept(temperature: float, word: str, **changes: Any) -> dict[str, Any]:
    return verdict(
        "distillation", defense_params={"temperature": temperature}, verdict=word, **changes
    )


def test_a_long_sweep_that_fared_alike_is_one_line_with_its_range() -> None:
    rows = [REFERENCE, verdict("adversarial_training")]
    for number, temperature in enumerate(HOT):
        word = "broken" if temperature < 5 else "masked, broken"
        share = number / 10
        rows.append(swept(temperature, word, seeds=[seed(naive=share, worst_case=share / 10)]))
    (table,) = verdict_tables(rows)
    lines = summary_table(table).set_index("defense")
    assert list(lines.index) == [
        "undefended", "adversarial_training", "distillation T=1,2", "distillation T=5..100",
    ]  # fmt: skip
    hot = lines.loc["distillation T=5..100"]
    assert (hot["verdict"], hot["naive"], hot["worst"]) == ("masked, broken", "20..70", "2..7")
    assert hot["broken by"] == "pgd log_odds"


def test_a_sweep_with_a_gap_names_its_values() -> None:
    words = ["broken", "masked", "broken", *["broken"] * 7]
    rows = [swept(float(t), word) for t, word in enumerate(words, 1)]
    (table,) = verdict_tables(rows)
    assert list(summary_table(table)["defense"]) == [
        "distillation T=1,3,4,5,6,7,8,9,10", "distillation T=2",
    ]  # fmt: skip


def test_few_defenses_are_a_line_each_whatever_the_verdict_says() -> None:
    rows = [swept(1.0, "not converged (moved 9 points)"), swept(2.0, "no like reference")]
    (table,) = verdict_tables(rows)
    frame = summary_table(table)
    assert frame["verdict"].tolist() == ["not converged (moved 9 points)", "no like reference"]
    unknown = verdict("a", seeds=[seed(naive=None, worst_case=None, broken_by=[])])
    (line,) = summary_table(verdict_tables([unknown])[0]).to_dict("records")
    assert (line["naive"], line["worst"], line["broken by"]) == ("–", "–", "–")


def test_a_reason_is_told_once_for_all_that_share_it() -> None:
    rows = [verdict(name, verdict="inconclusive", why="no power") for name in "ab"]
    (table,) = verdict_tables([REFERENCE, *rows, verdict("c")])
    assert reasoned(table, "inconclusive") == [("no power", ["a", "b"])]
    assert reasoned(table, "holds") == [("Δ = 58 [50, 66] points", ["c"])]


def test_a_masked_attack_is_warned_of_before_anything_but_an_error() -> None:
    def flag(name: str, severity: str = "warning") -> dict[str, str]:
        return {"id": name, "severity": severity, "advice": "look"}

    panels = [verdict(name, seeds=[seed(flags=[flag("zero-gradient")])]) for name in "abc"]
    panels[0]["seeds"][0]["flags"] += [flag("naive-beaten"), flag("fine", "info")]
    cells = [row("d", 0.5, flags=[flag("invalid-output", "error")])]
    found = [(one.flag, one.raised_by) for one in warned(cells, panels)]
    assert found == [
        ("invalid-output", ("d",)), ("naive-beaten", ("a",)), ("zero-gradient", ("a", "b", "c")),
    ]  # fmt: skip


def test_without_verdicts_the_strongest_attack_of_each_model_stands() -> None:
    rows = [row("a", 0.2), row("a", 0.8, attack="pgd"), row("b", None, status="failed")]
    lines = attack_summary(threat_tables(rows)).to_dict("records")
    assert lines[0] == {
        "threat": "L0 ≤ 25 % of features", "defense": "a", "accuracy": "99",
        "strongest attack": "pgd", "success": "80", "worst case": "50",
    }  # fmt: skip
    assert (lines[1]["strongest attack"], lines[1]["success"]) == ("–", "–")
