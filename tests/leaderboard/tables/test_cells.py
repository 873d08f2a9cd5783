"""Tables and the page, from rows alone."""

import re
from typing import Any

import pytest

from bench.base.rows import Results
from bench.base.types import ThreatModel
from leaderboard.pages.leaderboard import render
from leaderboard.pages.markdown import escape
from leaderboard.tables.cells import labels, ordered, robustness_table, success_table, threat_tables

ENVIRONMENT = {
    "matrix": {"name": "m", "description": "", "seeds": [0], "sources": 10},
    "dataset": "digits", "network": "n", "recipe": "r", "retort": "1", "device": "CPU",
    "libraries": {"torch": "2"},
}  # fmt: skip


def row(defense: str, rate: float | None, **changes: Any) -> dict[str, Any]:
    base = {
        "id": f"{hash((defense, str(changes))):x}", "dataset": "digits", "defense": defense,
        "defense_params": {}, "attack": "jsma", "attack_params": {"output": "probs"}, "seed": 0,
        "threat": {"norm": "l0", "budget": 0.25, "unit": "features"},
        "status": "done", "reason": None, "attempts": 90, "sources": 10,
        "successes": None if rate is None else round(90 * rate),
        "success_rate": rate, "success_ci": None if rate is None else [rate / 2, rate],
        "worst_case": 0.5, "worst_case_ci": [0.4, 0.6], "rho_adv": 0.1, "rho_censored": 0.2,
        "accuracy": 0.99, "accuracy_ci": [0.98, 1.0], "confidence": 0.9, "max_logit": 3.0,
        "logit_gap": 2.0, "flags": [],
    }  # fmt: skip
    return {**base, **changes}


def test_one_table_a_threat_model() -> None:
    linf = {"norm": "linf", "budget": 0.1, "unit": "input"}
    rows = [row("a", 0.5), row("a", 0.4, threat=linf), row("b", 0.1)]
    found = threat_tables(rows)
    assert [table.threat for table in found] == [
        ThreatModel("l0", 0.25, "features"),
        ThreatModel("linf", 0.1),
    ]
    assert [len(table.rows) for table in found] == [2, 1]


def test_a_sweep_ascends_within_its_name() -> None:
    def at(t: float) -> dict[str, Any]:
        return row("d", 0.5, defense_params={"temperature": t})

    mixed = [row("u", 0.5), at(20.0), at(100.0), at(5.0), row("z", 0.5)]
    found = [(r["defense"], r["defense_params"].get("temperature")) for r in ordered(mixed)]
    assert found == [("u", None), ("d", 5.0), ("d", 20.0), ("d", 100.0), ("z", None)]


def test_labels_show_what_differs_and_nothing_else() -> None:
    same = {"theta": 1.0}
    rows = [
        row("d", 0.5, defense_params={"temperature": 5.0, **same}),
        row("d", 0.5, defense_params={"temperature": 20.0, **same}),
        row("u", 0.5, defense_params=same),
    ]
    assert labels(rows, "defense") == ["d temperature=5", "d temperature=20", "u"]
    art = [
        row("u", 0.5, attack="art", attack_params={"attack": "DeepFool", "params": {"eps": 1e-6}}),
        row("u", 0.5, attack="art", attack_params={"attack": "Square", "params": {"eps": 0.1}}),
    ]
    assert labels(art, "attack") == ["art attack=DeepFool eps=1e-06", "art attack=Square eps=0.1"]


def test_a_cell_shows_rate_interval_and_denominator_and_the_extremes_are_marked() -> None:
    (table,) = threat_tables([row("a", 0.8), row("b", 0.1), row("c", 0.5)])
    column = success_table(table)["jsma"].tolist()
    assert column == [
        "80.0 % [40.0, 80.0] 72/90 ▲",
        "10.0 % [5.0, 10.0] 9/90 ▼",
        "50.0 % [25.0, 50.0] 45/90",
    ]


def test_failed_skipped_and_undefined_are_never_a_number() -> None:
    rows = [
        row("a", None, status="failed", reason="x", worst_case=None, worst_case_ci=None),
        row("b", None, status="skipped", reason="y"),
        row("c", None),
    ]
    (table,) = threat_tables(rows)
    frame = success_table(table)
    assert frame["jsma"].tolist() == ["FAILED", "SKIPPED", "–"]
    assert frame["worst case"].tolist()[0] == "–"


def test_seeds_are_rows_of_their_own() -> None:
    (table,) = threat_tables([row("a", 0.8), row("a", 0.6, seed=1)])
    assert success_table(table)["defense"].tolist() == ["a, seed 0", "a, seed 1"]
    assert len(robustness_table(table)) == 2


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b", "[x](http://y)", "*b*\n# c"])
def test_a_hostile_name_is_plain_text_on_the_page(name: str) -> None:
    hostile = row("d", 0.5, defense_params={"mode": name}, status="failed", reason=name)
    page = render(Results([hostile, row("d", 0.2, defense_params={"mode": "x"})], []), ENVIRONMENT)
    for line in page.splitlines():
        assert not re.search(r"(?<!\\)<", line)
        assert not re.search(r"(?<!\\)\]\(http", line)
    assert "\n# c" not in page
    # Every line of the table has as many cells as its header.
    table = [line for line in page.splitlines() if line.startswith("|") and "worst case" in page]
    header = next(index for index, line in enumerate(table) if "jsma" in line)
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table[header : header + 4]]
    assert len(set(cells)) == 1


def test_escape_keeps_words_readable() -> None:
    assert escape("rho_adv of label_smoothing") == "rho_adv of label_smoothing"
    assert escape("_x_") == "\\_x\\_"


def test_the_page_is_a_function_of_its_rows() -> None:
    rows = [row("a", 0.8), row("b", 0.1)]
    page = render(Results(rows, []), ENVIRONMENT)
    assert page == render(Results(rows, []), ENVIRONMENT)
    assert "Highest success: 80.0 %, a under jsma. Lowest: 10.0 %, b under jsma." in page


def test_tables_inside_parameters_keep_their_names_apart() -> None:
    inner = {"name": "pgd", "eps": 0.2}
    rows = [
        row("d", 0.5, attack_params={"source": {"name": name, **more}, "attack": inner})
        for name, more in (
            ("undefended", {}),
            ("distillation", {"temperature": 20.0}),
            ("distillation", {"temperature": 100.0}),
        )
    ]
    first, second, third = labels(rows, "attack")
    assert first.endswith("source=undefended")
    assert second.endswith("source=distillation source.temperature=20")
    assert third.endswith("source=distillation source.temperature=100")
    art = [row("d", 0.5, attack_params={"attack": "X", "params": {"eps": e}}) for e in (0.1, 0.2)]
    assert [label.rpartition(" ")[2] for label in labels(art, "attack")] == ["eps=0.1", "eps=0.2"]
