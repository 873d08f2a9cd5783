"""The finding on broken defenses: made from verdict rows and the records."""

from pathlib import Path
from typing import Any

from bench.base.rows import Results
from leaderboard.findings.museum import guide, museum
from leaderboard.tables.museum import Accuracy, cases, exhibits

Row = dict[str, Any]


def seed(worst: float, *flags: str) -> Row:
    found = [{"id": name, "severity": "warning", "advice": ""} for name in flags]
    return {
        "worst_case": worst, "naive": 0.9, "flags": found, "forwards": 1000, "backwards": 500,
        "sources": 10,
    }  # fmt: skip


def verdict(defense: str, worst: float, word: str = "broken", *flags: str, **params: Any) -> Row:
    return {
        "id": f"{defense}{params}", "dataset": "digits", "network": "n", "recipe": "r",
        "defense": defense, "defense_params": params, "threat": {"norm": "linf", "budget": 0.2},
        "at": 0.2, "verdict": word, "rule": None if word == "reference" else 4, "why": "",
        "headline": True, "seeds": [seed(worst, *flags)],
    }  # fmt: skip


ROWS = [
    verdict("undefended", 0.01, "reference"),
    verdict("thermometer_encoding", 0.6, "masked", "zero-gradient", levels=16),
    verdict("output_codes", 0.03, "masked, broken", bits=16),
    verdict("magnet", 0.02),
    verdict("adaptive", 0.05, "broken", of={"name": "thermometer_encoding", "levels": 16}),
    verdict("adaptive", 0.02, "broken", of={"name": "output_codes", "bits": 16}),
    verdict("adversarial_training", 0.7, "holds", eps=0.2),
]


def results(rows: list[Row]) -> Results:
    return Results([], [], rows)  # type: ignore[arg-type]


def test_every_exhibit_is_a_defense_with_a_record() -> None:
    from defenses.broken import INDEX

    assert set(exhibits()) == set(INDEX) - {"adaptive"} | {"distillation"}
    for record in exhibits().values():
        assert record.claim.accuracy is not None or record.claim.words
        assert record.broken.accuracy is not None or record.broken.words


def test_a_case_is_joined_with_its_way_round() -> None:
    (found,) = cases(results(ROWS))
    assert [case.label for case in found] == [
        "thermometer_encoding", "output_codes", "magnet", "adversarial_training",
    ]  # fmt: skip
    gaps = [case.gap for case in found]
    assert gaps[0] is not None
    assert round(gaps[0], 2) == 0.55
    assert gaps[2] is None
    line = found[0].line()
    assert line["panel alone"] == "60 %"
    assert line["with the way round"] == "5 %"
    assert line["flags"] == "zero-gradient"
    assert line["passes"] == "150"


def test_the_finding_counts_what_was_found_and_names_what_was_not() -> None:
    found = museum(results(ROWS))
    assert found is not None
    assert found.sentences[0].startswith("Of 3 defenses of the literature 3 do not get `holds`")
    assert (
        "within 5 points of it in 1 of 2; not on thermometer_encoding (+55) (points)"
        in (found.sentences[1])
    )
    assert any("adversarial_training: holds" in note for note in found.notes)


def test_a_broken_defense_that_holds_is_named() -> None:
    rows = [*ROWS[:3], verdict("magnet", 0.5, "holds"), *ROWS[4:]]
    found = museum(results(rows))
    assert found is not None
    assert "2 do not get `holds`" in found.sentences[0]
    assert "these do: magnet" in found.sentences[0]


def test_a_run_without_them_has_no_such_finding() -> None:
    assert museum(results([ROWS[0], ROWS[-1]])) is None
    assert museum(results([])) is None


def test_a_figure_says_how_sure_it_is() -> None:
    assert str(Accuracy(certainty="recalled", accuracy=0.5, threat="L∞")) == "50 %, L∞ (recalled)"
    assert str(Accuracy(certainty="stated", words="all of them")) == "all of them"


def test_the_guide_is_made_from_the_records() -> None:
    page = Path(__file__).parents[3] / "docs" / "museum.md"
    assert page.read_text(encoding="utf-8") == guide(), (
        "python -m leaderboard.findings.museum > docs/museum.md"
    )
