"""The linear model beside deeper ones: sentences that follow the rows, whichever way they go."""

from typing import Any

import pytest

from bench.base.rows import Results
from bench.verdict.rates import wilson
from leaderboard.findings import linear as subject
from leaderboard.findings.linear import beside_published, compare, draw_linear, grid, linear
from tests.leaderboard.rows import cell, who

Row = dict[str, Any]
RUN = "cnn"


def fgsm(network: str, eps: float, rate: float, gain: Row | float | None = None, **how: Any) -> Row:
    """One row; ``gain``: its paired difference from the undefended one, by 0.04 either way."""
    seed, output, kind = how.get("seed", 0), how.get("output", "log_odds"), how.get("kind", "fgsm")
    of = {**who("undefended", seed=seed), "network": how.get("own", RUN)}
    of["dataset"] = how.get("dataset", "digits")
    if network != of["network"]:
        params: Row = {"network": {"name": network}, "half": how.get("half")}
        of |= {"defense": "standard_training", "defense_params": params}
    own = f"{of['network']}-{eps}-{output}-{seed}-{kind}"
    paired = gain and {"baseline": own, "delta": gain, "ci": [gain - 0.04, gain + 0.04]}
    return cell(
        of, rate, attack=kind, id=f"{network}-{eps}-{output}-{seed}-{kind}", paired=paired,
        attack_params={"output": output, "targets": "untargeted", "eps": eps},
        threat={"norm": "linf", "budget": eps, "unit": "input"}, adversarial_confidence=0.75,
        robust_accuracy=0.99 - rate, robust_ci=[0.97 - rate, 1.0 - rate],
    )  # fmt: skip


def results(*rows: Row) -> Results:
    return Results(list(rows), [], [])


def told(*rows: Row) -> tuple[str, str]:
    found = linear(results(*rows))
    assert found is not None
    return found.sentences


def pair(eps: float, rate: float, gain: float | None, **how: Any) -> list[Row]:
    """The run's own network at 0.4 and the linear one at ``rate``."""
    return [fgsm(RUN, eps, 0.4, **how), fgsm("softmax-regression", eps, rate, gain, **how)]


def test_it_says_error_and_confidence_at_the_papers_budget_and_at_the_largest() -> None:
    rows = [row for eps in (0.1, 0.25, 0.3) for row in pair(eps, 0.6, 0.2)]
    first, _ = told(*rows)
    each = "cnn on 41.0 % (75.0 %) and softmax-regression on 61.0 % (75.0 %)"
    assert first == (
        "Under FGSM on log-odds the networks err on this share of the sources, with this "
        f"confidence where they were misled: at eps 0.25 {each}; at eps 0.3 {each}."
    )


@pytest.mark.parametrize(
    ("gains", "said", "whole"),
    [
        ((0.2, 0.3), "more often at every eps", "is the more vulnerable at every budget"),
        ((0.2, -0.3), "more often at eps 0.1 and less often at eps 0.2", "clearly the less"),
        ((-0.2, -0.3), "less often at every eps", "is clearly the less vulnerable at some budget"),
        (
            (0.2, 0.03),
            "more often at eps 0.1 and neither clearly more nor less often at eps 0.2",
            "is nowhere clearly the less vulnerable",
        ),
    ],
)
def test_the_conclusion_follows_the_paired_intervals(
    gains: tuple[float, float], said: str, whole: str
) -> None:
    rows = [r for eps, gain in zip((0.1, 0.2), gains, strict=True) for r in pair(eps, 0.5, gain)]
    _, second = told(*rows)
    assert second.startswith(f"Against cnn, softmax-regression is broken {said} (by ")
    assert whole in second


def test_more_often_means_at_every_seed() -> None:
    rows = [*pair(0.1, 0.5, 0.2), *pair(0.1, 0.5, 0.03, seed=1)]
    (one,) = compare(grid(results(*rows), "fgsm", "log_odds"))
    assert (one.more, one.less, one.open) == ((), (), (0.1,))
    (one,) = compare(grid(results(*rows[:2]), "fgsm", "log_odds"))
    assert (one.more, one.less, one.open) == ((0.1,), (), ())


def test_a_difference_changes_sign_where_the_linear_model_is_the_runs_own() -> None:
    own = "softmax-regression"
    rows = [fgsm(own, 0.1, 0.6, own=own), fgsm("mlp", 0.1, 0.4, -0.2, own=own)]
    (one,) = compare(grid(results(*rows), "fgsm", "log_odds"))
    assert one.network == "mlp"
    assert one.more == (0.1,)
    ((delta, bounds),) = one.values
    assert (delta, *bounds) == pytest.approx((0.2, 0.16, 0.24))


def test_unpaired_rates_have_newcombes_interval() -> None:
    """Newcombe 1998, table II, contrast (a): 56/70 - 48/80 by method 10 is 0.0524 to 0.3339."""
    first, second = (
        {"id": name, "paired": None, "success_rate": of / total, "success_ci": wilson(of, total)}
        for name, of, total in (("a", 56, 70), ("b", 48, 80))
    )
    delta, bounds = subject._difference(first, second)
    assert (delta, *bounds) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_every_deeper_network_is_held_against_it() -> None:
    rows = [*pair(0.1, 0.5, 0.2), fgsm("mlp", 0.1, 0.95, 0.55)]
    _, second = told(*rows)
    assert "; against mlp, less often at eps 0.1 (by " in second
    assert second.endswith("it is clearly the less vulnerable at some budget.")


def test_published_figures_stand_beside_ours_on_their_data_set_alone() -> None:
    mnist = pair(0.25, 0.6, 0.2, output="deployed", dataset="mnist")
    of = grid(results(*mnist), "fgsm", "deployed")
    frame = beside_published(results(*mnist), of)
    assert frame.to_numpy().tolist() == [
        ["cnn", "0.25", "41.0 %", "75.0 %", "this run"],
        ["softmax-regression", "0.25", "61.0 %", "75.0 %", "this run"],
        ["softmax regression", "0.25", "99.9 %", "79.3 %", "Goodfellow 2015, recalled"],
        ["maxout", "0.25", "89.4 %", "97.6 %", "Goodfellow 2015, recalled"],
    ]
    elsewhere = pair(0.25, 0.6, 0.2, output="deployed")
    assert beside_published(
        results(*elsewhere), grid(results(*elsewhere), "fgsm", "deployed")
    ).empty
    other = pair(0.2, 0.6, 0.2, output="deployed", dataset="mnist")
    assert beside_published(results(*other), grid(results(*other), "fgsm", "deployed")).empty


def test_the_table_has_intervals_for_one_seed_and_values_for_several() -> None:
    frame = subject.table(grid(results(*pair(0.1, 0.5, 0.2)), "fgsm", "log_odds"))
    assert dict(frame.iloc[0]) == {
        "eps": "0.1", "cnn": "40.0 % [38.0, 42.0]", "confidence, cnn": "75.0 %",
        "softmax-regression": "50.0 % [48.0, 52.0]", "confidence, softmax-regression": "75.0 %",
    }  # fmt: skip
    rows = [*pair(0.1, 0.5, 0.2), *pair(0.1, 0.6, 0.2, seed=1)]
    frame = subject.table(grid(results(*rows), "fgsm", "log_odds"))
    assert frame["softmax-regression"].tolist() == ["50.0 / 60.0 %"]


@pytest.mark.parametrize(
    ("deployed", "said"),
    [(0.25, "breaks up to 15.0 points less than on log-odds (cnn, eps 0.1)"),
     (0.45, "as much as on log-odds, or more")],
)  # fmt: skip
def test_a_note_says_what_cross_entropy_misses(deployed: float, said: str) -> None:
    rows = [*pair(0.1, 0.5, 0.2), fgsm(RUN, 0.1, deployed, output="deployed"),
            fgsm("softmax-regression", 0.1, 0.5, output="deployed")]  # fmt: skip
    found = linear(results(*rows))
    assert found is not None
    assert any(said in note for note in found.notes)
    assert len(found.tables) == 2


def test_a_stronger_attack_is_a_note_of_its_own() -> None:
    rows = [*pair(0.1, 0.5, 0.2), *pair(0.1, 0.5, -0.2, kind="pgd")]
    found = linear(results(*rows))
    assert found is not None
    assert "more often at eps 0.1" in found.sentences[1]
    assert "on log-odds: against cnn, softmax-regression is broken less often" in found.notes[-1]


def test_without_a_linear_model_or_another_there_is_nothing_to_say() -> None:
    both = pair(0.1, 0.5, 0.2)
    assert linear(results(both[0])) is None
    assert linear(results(both[1])) is None
    halved = fgsm("softmax-regression", 0.1, 0.5, half="first")
    assert linear(results(both[0], halved)) is None
    other = [{**row, "attack": "noise"} for row in both]
    assert linear(results(*other)) is None
    assert draw_linear(results(*other), None) == {}


def test_the_figure_draws_the_error_and_marks_the_papers_on_cross_entropy() -> None:
    rows = [
        row for output in ("deployed", "log_odds") for eps in (0.1, 0.25)
        for row in pair(eps, 0.6, 0.2, output=output, dataset="mnist")
    ]  # fmt: skip
    (figure,) = draw_linear(results(*rows), None).values()
    left, right = figure.axes
    ours = {c.get_label(): c.lines[0].get_xydata().tolist() for c in right.containers}
    assert ours["softmax-regression"] == [[0.1, pytest.approx(61)], [0.25, pytest.approx(61)]]
    marks = [line for line in left.get_lines() if line.get_label() == "published"]
    assert [line.get_xydata().tolist() for line in marks] == [
        [[0.25, pytest.approx(99.9)]], [[0.25, pytest.approx(89.4)]],
    ]  # fmt: skip
    assert not [line for line in right.get_lines() if line.get_label() == "published"]
