"""Published figures: what the texts say, and no more."""

import pytest

from bench.base.types import UserError
from leaderboard.tables.papers import papers, parse_paper, published

HEAD = 'title = "t"\nauthors = "A, B"\nyear = 2016\narxiv = "1511.04508"\n'


def table(values: str, shared: str = "") -> str:
    return (
        f'{HEAD}[[figure]]\nquantity = "accuracy"\nunit = "percent"\n{shared}\nvalues = [{values}]'
    )


def test_success_rates_are_the_papers_and_whole_attempts_of_900() -> None:
    mnist = published("success_rate", dataset="mnist", output="probs", defense="distillation")
    assert [(f.temperature, f.value) for f in mnist] == [
        (1, 91), (2, 82.23), (5, 24.67), (10, 6.78), (20, 1.34), (30, 1.44), (40, 0.45),
        (50, 1.45), (100, 0.45),
    ]  # fmt: skip
    every = [f for f in published("success_rate", output="probs") if f.value and not f.place]
    assert len(every) == 17
    for figure in every:
        assert abs(9 * figure.value - round(9 * figure.value)) <= 0.1  # type: ignore[operator]


def test_both_conflicting_figures_stand_with_their_place() -> None:
    twice = published("success_rate", dataset="cifar10", temperature=20)
    assert [(f.value, f.place) for f in twice] == [(18.23, "table"), (16.76, "prose")]
    plain = published("success_rate", dataset="mnist", defense="undefended", output="probs")
    assert [f.value for f in plain] == [95.89, 98.89]


def test_every_figure_has_a_source_and_an_unknown_one_no_value() -> None:
    for paper in papers():
        assert paper.figures
        for figure in paper.figures:
            assert figure.arxiv == paper.arxiv
            assert (figure.value is None) == (figure.certainty == "unknown")
    (soft,) = published("success_rate", defense="soft_label", dataset="mnist")
    assert soft.scaled is None


def test_scaled_is_what_our_rows_hold() -> None:
    (bound,) = published("accuracy_change", dataset="mnist")
    assert bound.scaled == pytest.approx(0.0128)
    (count,) = published("sensitivity_tiny", temperature=100)
    assert count.scaled == pytest.approx(0.7908)
    (size,) = published("linf_mean", dataset="mnist")
    assert size.scaled == 0.18


def test_values_override_what_they_share() -> None:
    text = table('{ value = 1 }, { value = 2, certainty = "stated" }', 'certainty = "recalled"')
    assert [f.certainty for f in parse_paper(text, "x").figures] == ["recalled", "stated"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            table('{ value = 1, certainty = "sure" }'),
            "'stated', 'recalled', 'derived' or 'unknown'",
        ),
        (table('{ certainty = "stated" }'), "an unknown figure has no value"),
        (table('{ value = 1, certainty = "unknown" }'), "an unknown figure has no value"),
        (table('{ value = 1, certainty = "stated", colour = "red" }'), "colour"),
        (table('{ value = 1, certainty = "stated", temperature = -1 }'), "greater than 0"),
        (
            table('{ value = 1, certainty = "stated", temperature = 2, defense = "undefended" }'),
            "a temperature is that of a distilled network",
        ),
        (table("{ value = 1 }"), "certainty"),
        ("title = ", "p.toml"),
    ],
)
def test_what_is_not_valid_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UserError, match=r"p\.toml") as caught:
        parse_paper(text, "p.toml")
    assert message in str(caught.value)
