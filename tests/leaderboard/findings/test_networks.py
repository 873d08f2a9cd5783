"""What carries over between networks: kinds of pairs, and sentences that follow the rows."""

import math
from typing import Any

import pytest

from bench.base.rows import Results
from leaderboard.findings.networks import (
    ACROSS,
    HALVES,
    SEED,
    SHARED,
    Trained,
    crossings,
    draw_networks,
    kind,
    kinds_table,
    network_name,
    networks,
    table,
)
from tests.leaderboard.rows import LINF, cell, who

Row = dict[str, Any]

OWN = {"name": "undefended"}
TWIN = {"name": "twin"}
FIRST = {"name": "standard_training", "network": None, "half": "first"}
SECOND = {"name": "standard_training", "network": None, "half": "second"}
MLP = {"name": "standard_training", "network": {"name": "mlp", "width": 8}, "half": None}


def of(victim: Row, seed: int = 0) -> Row:
    params = {key: value for key, value in victim.items() if key != "name"}
    return {**who(victim["name"], seed=seed), "network": "cnn", "defense_params": params}


def made(victim: Row, source: Row, rate: float, seed: int = 0, steps: int = 10) -> Row:
    inner = {"name": "pgd", "steps": steps}
    return cell(of(victim, seed), rate, attack="transfer", threat=LINF,
                attack_params={"source": source, "attack": inner})  # fmt: skip


def noise(victim: Row, rate: float = 0.05, seed: int = 0) -> Row:
    return cell(of(victim, seed), rate, attack="noise", attack_params={"eps": 0.2}, threat=LINF)


def results(*rows: Row) -> Results:
    return Results(list(rows), [], [])


def square(rate: float, white: float = 0.95, seed: int = 0) -> list[Row]:
    """Own network, its halves and an MLP, each against each other at ``rate``; noise at 0.05."""
    every = (OWN, FIRST, SECOND, MLP)
    crossed = [made(v, s, white if v is s else rate, seed) for v in every for s in every]
    return [*crossed, *(noise(victim, seed=seed) for victim in every)]


def told(*rows: Row) -> tuple[str, str]:
    found = networks(results(*rows))
    assert found is not None
    return found.sentences


def test_pairs_are_told_apart_by_architecture_and_by_images() -> None:
    own, twin = Trained("cnn", None, False), Trained("cnn", None, True)
    first, second = Trained("cnn", "first", False), Trained("cnn", "second", False)
    mlp = Trained("mlp", None, False)
    assert kind(own, twin) == kind(twin, own) == SEED
    assert kind(first, second) == kind(second, first) == HALVES
    assert kind(own, first) == kind(second, twin) == SHARED
    assert kind(own, mlp) == kind(mlp, first) == ACROSS
    wide = {"defense_params": {"network": {"name": "cnn", "width": 32}}, "network": "cnn"}
    assert kind(own, Trained(network_name(wide), None, False)) == ACROSS


def test_it_says_what_each_kind_of_source_breaks() -> None:
    rows = [*square(0.6), made(OWN, TWIN, 0.7), made(TWIN, OWN, 0.8)]
    first, _ = told(*rows)
    assert first == (
        "Inputs of PGD, L∞ ≤ 0.2, means over the pairs of networks: made on another seed on the "
        "same images they break 75.0 % of the sources; made on the other half of the training "
        "images they break 60.0 % of the sources; made on another architecture they break 60.0 % "
        "of the sources; made on the victim itself 95.0 %; noise of the same size breaks 5.0 %."
    )


def test_where_everything_breaks_more_than_noise_it_carries_over() -> None:
    _, second = told(*square(0.6))
    assert second.startswith(
        "They break more than noise, beyond the intervals and at every seed, in 2 of 2 pairs with "
        "the other half of the training images and in 6 of 6 pairs with another architecture: they "
        "carry over in all of them"
    )


def test_where_nothing_beats_noise_it_does_not() -> None:
    _, second = told(*square(0.06))  # the intervals of rows.cell reach 0.02 either way
    assert "in 0 of 2 pairs with the other half" in second
    assert "in 0 of 6 pairs with another architecture: none of them shows that" in second


def test_one_pair_that_does_not_carry_over_is_counted() -> None:
    rows = [
        row for row in square(0.6)
        if not (row["defense_params"] == of(MLP)["defense_params"]
                and row["attack_params"].get("source") == OWN)
    ]  # fmt: skip
    _, second = told(*rows, made(MLP, OWN, 0.05))
    assert "in 5 of 6 pairs with another architecture: they do not carry over in all" in second
    assert second.endswith("the least from cnn to mlp width=8 (5.0 %).")


@pytest.mark.parametrize(
    ("across", "said"), [(0.3, ", more within an"), (0.7, ", not more at every seed within an")]
)
def test_within_an_architecture_is_held_against_across(across: float, said: str) -> None:
    rows = [made(FIRST, SECOND, 0.5), made(OWN, MLP, across), noise(OWN), noise(FIRST)]
    _, second = told(*rows)
    assert f"{said} architecture than across; across architectures the most from" in second


def test_beyond_noise_is_meant_at_every_seed_on_the_same_victim() -> None:
    rows = [made(OWN, MLP, 0.5), noise(OWN), noise(MLP, 0.9)]
    (one,) = crossings(results(*rows))
    assert one.above_noise is True
    later = [made(OWN, MLP, 0.5, seed=1), noise(OWN, 0.5, seed=1)]
    (one,) = crossings(results(*rows, *later))
    assert one.above_noise is False
    (one,) = crossings(results(rows[0], rows[2]))
    assert one.above_noise is None


def test_without_noise_nothing_is_said_of_it() -> None:
    first, second = told(made(OWN, MLP, 0.5))
    assert "noise of the same size" not in first
    assert second.startswith("No noise stands beside them in this run; across architectures")


def test_the_table_brackets_the_white_box_and_has_a_value_a_seed() -> None:
    found = crossings(results(*square(0.6), *square(0.5, seed=1)))
    frame = table(found).set_index("victim")
    assert frame.loc["cnn", "cnn"] == "[95.0 / 95.0 %]"
    assert frame.loc["cnn, first half", "mlp width=8"] == "60.0 / 50.0 %"
    assert frame.loc["mlp width=8", "noise"] == "5.0 / 5.0 %"
    kinds = kinds_table(found).set_index("made on")
    assert dict(kinds.loc["another architecture"]) == {
        "mean success": "60.0 / 50.0 %", "lowest": "50.0 %", "highest": "60.0 %",
        "pairs beyond noise": "6 of 6",
    }  # fmt: skip


def test_other_defenses_and_a_second_attack_stay_out() -> None:
    distilled = {"name": "distillation", "temperature": 20.0}
    rows = [made(OWN, MLP, 0.5), made(OWN, distilled, 0.6), made(distilled, OWN, 0.7),
            made(OWN, FIRST, 0.9, steps=99)]  # fmt: skip
    (one,) = crossings(results(*rows))
    assert (one.victim.label, one.source.label) == ("cnn", "mlp width=8")


def test_without_another_network_or_half_there_is_nothing_to_say() -> None:
    rows = [made(OWN, TWIN, 0.7), made(OWN, OWN, 0.9)]
    assert networks(results(*rows)) is None
    assert draw_networks(results(*rows), None) == {}
    assert networks(results()) is None


def test_the_figure_has_the_mean_over_seeds_in_its_place() -> None:
    rows = [made(OWN, MLP, 0.5), made(OWN, MLP, 0.7, seed=1), made(MLP, MLP, 0.9), noise(OWN)]
    (figure,) = draw_networks(results(*rows), None).values()
    (axis,) = figure.axes
    shown = axis.images[0].get_array().tolist()
    assert shown[0] == [pytest.approx(60), pytest.approx(5)]
    assert shown[1][0] == pytest.approx(90)
    assert shown[1][1] is None or math.isnan(shown[1][1])
    assert [text.get_text() for text in axis.texts] == ["60.0", "5.0", "90.0"]
    assert [text.get_weight() for text in axis.texts] == ["normal", "normal", "bold"]
