"""The verdict tables and their page, from rows alone."""

from typing import Any

from bench.base.rows import Results
from leaderboard.pages.leaderboard import render
from leaderboard.tables.verdicts import MEANING, budget_table, raised, verdict_table, verdict_tables
from tests.leaderboard.tables.test_cells import ENVIRONMENT, row


def seed(**changes: Any) -> dict[str, Any]:
    base = {
        "seed": 0, "model": "f", "sources": 100, "worst_case": 0.6, "worst_case_ci": [0.5, 0.7],
        "undefended": 0.02, "naive": 0.65, "drop": 0.05, "moved": None, "delta": 0.58,
        "delta_ci": [0.5, 0.66], "gradient_cosine": 0.9991, "zero_share": 0.0, "forwards": 12000,
        "backwards": 3000, "flags": [], "not_evaluated": {}, "verdict": "holds", "rule": 4,
        "why": "x", "broken_by": [
            {"attack": "pgd log_odds", "role": "log-odds", "breaks": 38, "only": 2, "cells": []},
            {"attack": "noise", "role": "noise", "breaks": 3, "only": 0, "cells": []},
        ],
    }  # fmt: skip
    return {**base, **changes}


def verdict(defense: str, at: float = 0.2, **changes: Any) -> dict[str, Any]:
    base = {
        "id": f"{defense}{at}", "dataset": "digits", "network": "n", "recipe": "r",
        "defense": defense, "defense_params": {}, "at": at, "headline": at == 0.2,
        "threat": {"norm": "linf", "budget": at, "unit": "input"}, "verdict": "holds", "rule": 4,
        "why": "Δ = 58 [50, 66] points", "sources_needed": None, "rank": [1, 1], "curve": None,
        "seeds": [seed()],
    }  # fmt: skip
    return {**base, **changes}


REFERENCE = verdict(
    "undefended", verdict="reference", rule=None, why=None,
    seeds=[seed(delta=None, delta_ci=None, worst_case=0.02, drop=None)],
)  # fmt: skip


def test_a_line_says_what_a_reader_asks() -> None:
    (table,) = verdict_tables([REFERENCE, verdict("adversarial_training")])
    assert table.title == "digits: L∞, budget 0.2"
    frame = verdict_table(table)
    line = dict(frame.iloc[1])
    assert line == {
        "defense": "adversarial_training", "verdict": "holds", "worst case": "60.0 % (60/100)",
        "drop": "5", "Δ": "+58 [50, 66]", "broken by": "pgd log_odds: 38, 2 alone",
        "cosine": "1.00", "zero gradients": "0.0 %", "rank": "1", "naive": "65.0 %",
        "queries": "12,000 + 3,000",
    }  # fmt: skip
    assert frame.iloc[0]["Δ"] == "–"
    assert "queries" not in verdict_table(table, brief=True)


def test_the_headline_budget_is_shown_or_the_largest() -> None:
    rows = [verdict("a", 0.1), verdict("a", 0.2), verdict("a", 0.3)]
    (table,) = verdict_tables(rows)
    assert [r["at"] for r in table.shown] == [0.2]
    (weak,) = verdict_tables([verdict("a", 0.1), verdict("a", 0.3)])
    assert weak.powerless
    assert [r["at"] for r in weak.shown] == [0.3]
    assert list(budget_table(table).columns) == [
        "defense", "budget 0.1", "budget 0.2", "budget 0.3",
    ]  # fmt: skip


def test_seeds_stand_one_after_another_and_what_is_unknown_is_a_dash() -> None:
    seeds = [seed(), seed(seed=1, worst_case=None, delta=None, delta_ci=None, moved=0.01)]
    (table,) = verdict_tables([verdict("a", seeds=seeds, rank=None)])
    line = verdict_table(table, brief=True).iloc[0]
    assert (line["worst case"], line["Δ"]) == ("60.0 % / –", "+58 / –")
    assert (line["rank"], line["moved"], line["drop"]) == ("–", "– / 1", "5")
    nobody = seed(broken_by=[])
    (calm,) = verdict_tables([verdict("a", seeds=[nobody])])
    assert verdict_table(calm).iloc[0]["broken by"] == "–"


def test_norms_are_never_one_table() -> None:
    l0 = {"norm": "l0", "budget": 0.0625, "unit": "features"}
    tables = verdict_tables([verdict("a"), verdict("a", 4, threat=l0, headline=True)])
    assert [table.title for table in tables] == ["digits: L∞, budget 0.2", "digits: L0, 4 features"]


def test_warnings_name_the_defenses() -> None:
    flag = {"id": "naive-beaten", "severity": "warning", "advice": "look"}
    info = {"id": "stochastic", "severity": "info", "advice": "fine"}
    rows = [verdict(name, seeds=[seed(flags=[flag, info])] * 2) for name in "ab"]
    assert raised(rows) == {("naive-beaten", "look"): ["a", "b"]}


def test_the_page_begins_with_the_verdicts_and_escapes_what_they_say() -> None:
    open_ = verdict(
        "d|x", verdict="inconclusive", rule=5, why="<b>|", sources_needed=240, rank=[1, 2]
    )
    cells = [row("undefended", 0.5)]
    page = render(Results(cells, [], [REFERENCE, open_]), ENVIRONMENT)
    assert MEANING in page
    assert page.index("## Verdicts") < page.index("## The cells") < page.index("A success rate")
    assert r"d\|x: inconclusive (rule 5): \<b\>\|; about 240 sources would settle it" in page
    assert "Verdicts" not in render(Results(cells, [], []), ENVIRONMENT)
