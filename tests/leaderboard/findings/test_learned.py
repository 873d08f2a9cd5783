"""Attacks that learn beside those on each input: sentences that follow the rows."""

from typing import Any

from bench.base.rows import Results
from leaderboard.findings.learned import learned
from leaderboard.pages.findings import findings
from tests.leaderboard.rows import cell, who

Row = dict[str, Any]
LINF = {"norm": "linf", "budget": 0.3, "unit": "input"}


def at(defense: str, attack: str, rate: float, seed: int = 0, **changes: Any) -> Row:
    """A cell of 100 attempts; the interval is 0.05 to either side."""
    learns = attack in ("universal", "advgan", "patch")
    more = {"learnt": {"id": "f", "forwards": 5120, "backwards": 2560}} if learns else {}
    return cell(
        who(defense, None, seed), rate, attack=attack, attack_params={"eps": 0.3}, threat=LINF,
        id=f"{defense}-{attack}-{seed}", success_ci=[rate - 0.05, rate + 0.05],
        forwards=0 if learns else 4000, backwards=0, **{**more, **changes},
    )  # fmt: skip


def told(*rows: Row) -> tuple[str, str]:
    found = learned(Results(list(rows), [], []))
    assert found is not None
    return found.sentences


def both(attack: str, plain: float, robust: float) -> list[Row]:
    return [
        at(defense, name, rate, seed)
        for seed in (0, 1)
        for defense, rate in (("undefended", plain), ("adversarial_training", robust))
        for name, rate in ((attack, rate), ("pgd", 0.9))
    ]


def test_what_falls_is_told_beside_an_attack_on_each_input() -> None:
    first, second = told(*both("universal", 0.5, 0.1))
    assert (
        "to one perturbation for all inputs (L∞ ≤ 0.3; beside pgd) "
        "undefended 50.0 / 50.0 % (90.0 / 90.0 %) and "
        "adversarial_training 10.0 / 10.0 % (90.0 / 90.0 %)." in first
    )
    assert second.endswith(
        "beyond the intervals at every seed: "
        "to one perturbation for all inputs with adversarial_training."
    )


def test_the_other_way_round_no_defense_helps() -> None:
    for robust in (0.5, 0.42, 0.9):
        assert told(*both("universal", 0.5, robust))[1].endswith("with no defense.")


def test_each_that_learns_has_its_clause_and_its_costs() -> None:
    rows = [*both("advgan", 0.7, 0.1), *both("universal", 0.5, 0.4)]
    first, second = told(*rows)
    assert first.index("one perturbation for all inputs") < first.index("one pass of a generator")
    assert "inputs with no defense; to one pass of a generator with adversarial_training." in second
    found = learned(Results(rows, [], []))
    assert found is not None
    (caption, frame), (_, costs) = found.tables
    assert "L∞ ≤ 0.3" in caption
    assert list(frame.columns) == ["defense", "advgan", "pgd", "universal"]
    assert frame.loc[1, "advgan"] == "10.0 / 10.0 % [5.0, 15.0]"
    assert costs["forward passes of a fit"].tolist() == ["5,120", "5,120"]
    assert costs["passes to attack"].tolist() == ["0", "0"]


def test_a_cell_that_failed_is_a_dash() -> None:
    rows = both("universal", 0.5, 0.1)
    none = dict.fromkeys(("success_rate", "success_ci", "forwards", "backwards"))
    rows[0].update(none, status="failed", reason="its fit failed", learnt={
        "id": "f", "forwards": None, "backwards": None,
    })  # fmt: skip
    assert "undefended – / 50.0 % (90.0 / 90.0 %)" in told(*rows)[0]


def test_nothing_is_said_where_nothing_learns_or_there_is_nothing_beside_it() -> None:
    assert learned(Results([], [], [])) is None
    assert learned(Results([at("undefended", "pgd", 0.5)], [], [])) is None
    assert learned(Results([at("undefended", "universal", 0.5)], [], [])) is None


def test_it_is_a_section_of_the_page() -> None:
    environment = {
        "matrix": {"name": "learned", "description": "", "seeds": [0, 1], "sources": 100},
        "dataset": "digits", "network": "n", "recipe": "r",
    }  # fmt: skip
    page = findings(Results(both("patch", 0.5, 0.1), [], []), environment, ())
    assert "## What does an attack reach that learns once" in page
    assert "5,120" in page
