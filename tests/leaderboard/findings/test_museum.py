"""The finding on broken defenses: made from verdict rows and the records."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.base.rows import Results
from bench.plan.matrix import load_matrix
from bench.plugins import discovery, parameter, registry
from defenses.broken.base import way_round_of
from leaderboard.findings.museum import Shown, draw_museum, guide, museum, published
from leaderboard.site.citations import cited
from leaderboard.site.run_page import run_page
from leaderboard.tables.headline import headline
from leaderboard.tables.museum import Accuracy, cases, exhibited, exhibits, outcome

Row = dict[str, Any]


def seed(worst: float, *flags: str) -> Row:
    found = [{"id": name, "severity": "warning", "advice": ""} for name in flags]
    return {
        "worst_case": worst, "naive": 0.9, "flags": found, "forwards": 1000, "backwards": 500,
        "sources": 10, "seed": 0, "model": "",
    }  # fmt: skip


def verdict(defense: str, worst: float, word: str = "broken", *flags: str, **params: Any) -> Row:
    return {
        "id": f"{defense}{params}", "dataset": "digits", "network": "n", "recipe": "r",
        "defense": defense, "defense_params": params, "threat": {"norm": "linf", "budget": 0.2},
        "at": 0.2, "verdict": word, "rule": None if word == "reference" else 4, "why": "",
        "headline": True, "seeds": [{**seed(worst, *flags), "model": f"{defense}{params}"}],
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
    models = [{**row, "accuracy": 0.95 if row["rule"] is None else 0.9} for row in rows]
    return Results([], copy.deepcopy(models), rows)  # type: ignore[arg-type]


def test_every_exhibit_is_a_defense_with_a_record() -> None:
    from defenses.broken import INDEX

    assert set(exhibits()) == set(INDEX) - {"adaptive"} | {"distillation"}
    for record in exhibits().values():
        assert record.claim.accuracy is not None or record.claim.words
        assert record.broken.accuracy is not None or record.broken.words


def test_a_record_says_whether_a_way_round_stands_beside_the_panel() -> None:
    """And the matrix has it, on the networks that it judges, wherever it does."""
    discovery.load_plugins()
    matrix = load_matrix("broken")
    ways = {
        (of["name"], repr(registry.parameters(registry.DEFENSES.make(parameter.as_spec(of)))))
        for spec in matrix.defenses()
        if spec.name == "adaptive" and isinstance(of := spec.params["of"], dict)
    }
    for spec in matrix.defenses():
        if spec.name in exhibits():
            defense = registry.DEFENSES.make(spec)
            beside = (spec.name, repr(registry.parameters(defense))) in ways
            assert (way_round_of(defense) is not None) == beside, spec
            assert bool(exhibits()[spec.name].by_itself) != beside, spec
            assert exhibits()[spec.name].way_round


def test_a_case_is_joined_with_its_way_round() -> None:
    (found,) = cases(results(ROWS))
    assert [case.label for case in found] == [
        "thermometer_encoding", "output_codes", "magnet", "adversarial_training",
    ]  # fmt: skip
    gaps = [case.gap for case in found]
    assert gaps[0] is not None
    assert round(gaps[0], 2) == 0.55
    assert gaps[2] is None
    # Five points in the mean of three seeds are no more than five, as floats would have it.
    seeds = [[{"worst_case": w} for w in each] for each in ((0.08, 0.1, 0.08), (0.01, 0.05, 0.05))]
    assert sum(m["worst_case"] - t["worst_case"] for m, t in zip(*seeds, strict=True)) / 3 > 0.05
    even = replace(found[0], row={"seeds": seeds[0]}, adaptive={"seeds": seeds[1]})
    assert not even.far
    assert found[0].far
    line = found[0].line()
    assert line["clean"] == "90.0 %"
    assert line["panel alone"] == "60 %"
    assert line["with the way round"] == "5 %"
    assert found[2].line()["with the way round"] == "the panel's own"
    assert found[3].line()["with the way round"] == "–"
    assert line["flags"] == "zero-gradient"
    assert line["passes"] == "150"


def test_the_finding_counts_what_was_found_and_names_what_was_not() -> None:
    found = museum(results(ROWS))
    assert found is not None
    assert found.sentences[0] == (
        "L∞, budget 0.2: none of 3 broken defenses is found to hold; in 1 of 2 cases the panel "
        "alone comes within 5 points of the adaptive attack, and in 1 more it is that attack."
    )
    assert (
        "more than 5 points above the adaptive attack on thermometer_encoding (+55.0)."
        in (found.sentences[1])
    )
    assert any("adversarial_training: holds" in note for note in found.notes)
    assert any("zero-gradient (1)" in note for note in found.notes)


def test_versions_of_a_defense_are_one_that_holds_where_one_of_them_does() -> None:
    more = verdict("output_codes", 0.5, "holds", bits=32)
    (found,) = cases(results([*ROWS, more]))
    assert outcome(found).startswith("1 of 3 broken defenses is found to hold")
    assert headline(results([*ROWS, more])) == f"L∞ budget 0.2: {outcome(found)}"
    assert not exhibited(found[1:2])
    assert not exhibited([found[1], found[-1]])  # two versions of one are no museum


def test_clean_accuracy_is_held_against_what_the_idea_costs() -> None:
    rows = results(ROWS)
    for row in rows.models[1:3]:
        row["accuracy"] = 0.93  # no more is lost than by another seed and the paper's cost
    (found,) = cases(rows)
    assert [case.sound for case in found] == [True, True, True, None]
    rows.models[1]["accuracy"] = 0.5
    (found,) = cases(rows)
    assert found[0].lost == pytest.approx(0.45)
    assert found[0].sound is False
    told = museum(rows)
    assert told is not None
    note = next(note for note in told.notes if note.startswith("Clean accuracy"))
    assert "in 2 of 3; not of thermometer_encoding (−45.0, of which 1 point," in note


def test_what_is_drawn_follows_the_rows() -> None:
    (figure,) = draw_museum(results(ROWS), None).values()  # type: ignore[arg-type]
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "thermometer_encoding", "output_codes", "magnet", "adversarial_training",
    ]  # fmt: skip
    drawn = {tuple(line.get_xdata()) for line in axes.get_lines()}
    assert (60.0, 90.0) in drawn
    assert draw_museum(results([ROWS[0], ROWS[-1]]), None) == {}  # type: ignore[arg-type]


def test_the_page_of_the_run_shows_the_museum(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("norm_tables", "sweeps"):
        monkeypatch.setattr(f"leaderboard.site.run_page.{name}", lambda _: [])
    environment = {
        "matrix": {"name": "broken", "description": "", "seeds": [0], "sources": 10},
        "dataset": "digits",
        "network": "n", "recipe": "r", "device": "cpu", "retort": "1", "libraries": {"torch": "2"},
    }  # fmt: skip
    page = run_page(results(ROWS), environment)
    assert "none of 3 broken defenses is found to hold" in page
    assert exhibits()["magnet"].gave_away in page.replace("&#39;", "'")
    assert 'id="museum"' not in run_page(results([ROWS[0], ROWS[-1]]), environment)


def test_a_broken_defense_that_holds_is_named() -> None:
    rows = [*ROWS[:3], verdict("magnet", 0.5, "holds"), *ROWS[4:]]
    found = museum(results(rows))
    assert found is not None
    assert "1 of 3 broken defenses is found to hold" in found.sentences[0]
    assert "found to hold: magnet" in found.sentences[0]


def test_a_run_without_them_has_no_such_finding() -> None:
    assert museum(results([ROWS[0], ROWS[-1]])) is None
    assert museum(results([])) is None


def test_a_figure_says_how_sure_it_is() -> None:
    assert str(Accuracy(certainty="recalled", accuracy=0.5, threat="L∞")) == "50 %, L∞ (recalled)"
    assert str(Accuracy(certainty="stated", words="all of them")) == "all of them"


def test_the_guide_says_what_a_run_found() -> None:
    page = guide([Shown.of("broken-digits", results(ROWS))])
    assert "**On digits, L∞, budget 0.2, 10 sources, 1 training seed** ([the run]" in page
    assert "none of 3 broken defenses is found to hold" in page
    assert (
        "- On digits, L∞, budget 0.2: clean 90.0 %; the naive attack leaves 90 %, the panel "
        "alone 60 %, with the way round 5 %: *masked*, by zero-gradient"
    ) in page
    assert "adversarial_training, clean 90.0 %" in page
    assert "- On" not in guide()


def test_the_guide_is_made_from_the_records() -> None:
    page = Path(__file__).parents[3] / "docs" / "museum.md"
    assert page.read_text(encoding="utf-8") == guide(published()), (
        "python -m leaderboard.findings.museum > docs/museum.md"
    )


def test_every_exhibit_has_a_paper_to_cite() -> None:
    for name in exhibits():
        (reference, *_) = cited([name])
        assert name in reference.of
        assert str(reference.fields["year"]) in reference.words
        assert reference.bibtex.startswith("@")
