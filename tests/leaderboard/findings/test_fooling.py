"""Noise that networks are sure of: sentences that follow the rows, and the panel."""

from typing import Any

import numpy as np
import pytest

from bench.base.rows import Results
from leaderboard.findings.fooling import fooling, of_each_class, panel, strongest, views
from tests.leaderboard.rows import cell, who

Row = dict[str, Any]
Run = tuple[Row, Row]

HOT, PGD = "distillation", "adversarial_training"


def climb(defense: str, output: str, rate: float, **how: Any) -> Run:
    """A cell with its row of logits; ``gain``: the paired difference, by 0.03 either way."""
    of = who(defense, 20 if defense == HOT else None, how.get("seed", 0))
    if defense == PGD:
        of["defense_params"] = {"method": "pgd", "eps": 0.2}
    gain, restarts = how.get("gain"), how.get("restarts", 1)
    row = cell(
        of, rate, attack="fooling", id=f"{of}-{output}-{restarts}",
        attack_params={"output": output, "restarts": restarts, "confidence": 0.99},
        threat={"norm": "none", "budget": None, "unit": "input"},
        paired=None if gain is None else {"delta": gain, "ci": [gain - 0.03, gain + 0.03]},
        zero_gradient_share=how.get("zeros", 0.0),
    )  # fmt: skip
    return row, {"cell": row["id"], "iterations": how.get("steps", 3.0), "confidence": 0.97}


def results(*runs: Run) -> Results:
    clean = {"cell": None, "iterations": None, "confidence": 1.0}
    return Results([r for r, _ in runs], [], [], [clean, *(at for _, at in runs)], [])


def told(*runs: Run) -> tuple[str, str]:
    found = fooling(results(*runs))
    assert found is not None
    return found.sentences


def plain(*views: tuple[str, int], **how: Any) -> list[Run]:
    return [climb("undefended", output, 1.0, restarts=starts, **how) for output, starts in views]


BOTH = (("probs", 1), ("log_odds", 1))


def test_masking_is_what_stops_the_probability_and_not_the_log_odds() -> None:
    _, second = told(
        *plain(*BOTH), climb(HOT, "probs", 0.4, gain=-0.6), climb(HOT, "log_odds", 1.0, gain=0.0)
    )
    assert second == (
        "Fewer attempts succeed than on the undefended network, beyond the interval at every "
        "seed: on the probability with distilled at T = 20, on the log-odds with no defense; "
        "distilled at T = 20 not on the log-odds: masking, for the inputs exist."
    )


def test_what_stops_the_log_odds_too_is_not_called_masking() -> None:
    _, second = told(
        *plain(*BOTH), climb(HOT, "probs", 0.4, gain=-0.6), climb(HOT, "log_odds", 0.4, gain=-0.6)
    )
    assert second.endswith(
        "on the probability and the log-odds with distilled at T = 20; "
        "distilled at T = 20 on the log-odds too."
    )


def test_what_more_noises_get_past_is_told_apart() -> None:
    twice = (("log_odds", 1), ("log_odds", 10))
    rows = [*plain(*twice), climb(HOT, "log_odds", 0.8, gain=-0.2)]
    _, second = told(*rows, climb(HOT, "log_odds", 1.0, gain=0.0, restarts=10))
    assert second.endswith(
        "distilled at T = 20 not on the log-odds from 10 noises: other noises get there."
    )
    _, second = told(*rows, climb(HOT, "log_odds", 0.9, gain=-0.1, restarts=10))
    assert second.endswith("distilled at T = 20 on the log-odds from 10 noises too.")


def test_a_difference_within_the_interval_or_at_one_seed_alone_holds_nothing_back() -> None:
    within = [*plain(("log_odds", 1)), climb(HOT, "log_odds", 0.98, gain=-0.02)]
    _, second = told(*within)
    assert second.endswith("on the log-odds with no defense; nothing holds the climb back.")
    (one,) = views(results(*plain(("log_odds", 1)), climb(HOT, "log_odds", 0.5, gain=-0.5)))
    assert one.held_back() == ["distilled at T = 20"]
    stopped = [*plain(("log_odds", 1)), climb(HOT, "log_odds", 0.5, gain=-0.5)]
    reached = [*plain(("log_odds", 1), seed=1), climb(HOT, "log_odds", 1.0, gain=0.0, seed=1)]
    (one,) = views(results(*stopped, *reached))
    assert one.held_back() == []
    (one,) = views(results(*plain(("log_odds", 1)), climb(HOT, "log_odds", 0.5)))
    assert one.held_back() == []  # never paired


@pytest.mark.parametrize(
    ("steps", "said"), [(9, "distilled at T = 20 (9)"), (3, "no defense"), (2, "no defense")]
)
def test_more_steps_are_named_and_fewer_are_not(steps: float, said: str) -> None:
    first, _ = told(*plain(("log_odds", 1)), climb(HOT, "log_odds", 1.0, gain=0.0, steps=steps))
    assert first == (
        "Climbing the log-odds, 100.0 % of the attempts on the undefended network end with 99 % or "
        f"more for their target, after 3 steps in the median; more at every seed: {said}."
    )


def test_steps_are_held_against_the_same_seed() -> None:
    runs = [*plain(("log_odds", 1), steps=3), *plain(("log_odds", 1), steps=20, seed=1)]
    for seed, steps in ((0, 5), (1, 18)):
        runs.append(climb(HOT, "log_odds", 1.0, gain=0.0, steps=steps, seed=seed))
    first, _ = told(*runs)
    assert "after 3 / 20 steps in the median; more at every seed: no defense." in first


def test_the_sentences_are_about_log_odds_from_the_most_noises() -> None:
    several = views(results(*plain(("log_odds", 1), ("deployed", 50), ("log_odds", 10))))
    assert (strongest(several).output, strongest(several).restarts) == ("log_odds", 10)
    without = views(results(*plain(("probs", 1), ("deployed", 5))))
    assert strongest(without).output == "deployed"


def test_tables_have_a_column_a_view_and_zero_gradients_where_there_are_some() -> None:
    runs = [*plain(*BOTH), climb(HOT, "probs", 0.4, gain=-0.6, steps=200, zeros=0.993)]
    found = fooling(results(*runs))
    assert found is not None
    success, steps, top, zeros = (frame.set_index("defense") for _, frame in found.tables)
    columns = [f"output={output}" for output, _ in BOTH]
    assert success.loc["distillation", columns].tolist() == ["40.0 %", "–"]
    assert steps.loc["distillation", columns].tolist() == ["200", "–"]
    assert top.loc["undefended", columns].tolist() == ["97.0 %", "97.0 %"]
    assert zeros.loc["distillation", columns].tolist() == ["99.3 %", "–"]
    found = fooling(results(*plain(*BOTH), climb(HOT, "probs", 0.4, gain=-0.6)))
    assert found is not None
    assert len(found.tables) == 3


def test_without_another_defense_or_the_undefended_one_there_is_nothing_to_say() -> None:
    assert fooling(results(*plain(*BOTH))) is None
    assert fooling(results(climb(HOT, "log_odds", 1.0), climb(PGD, "log_odds", 1.0))) is None
    assert fooling(results()) is None


def image(value: float) -> np.ndarray[Any, Any]:
    return np.full((1, 2, 2), value)


def test_a_class_is_shown_by_a_success_where_there_is_one() -> None:
    chosen = of_each_class({
        (2, 0): (image(0.2), True), (1, 0): (image(0.1), False), (3, 0): (image(0.3), True),
        (0, 1): (image(0.4), False), (2, 1): (image(0.5), False),
    })  # fmt: skip
    assert {t: (float(x.flat[0]), won) for t, (x, won) in chosen.items()} == {
        0: (0.2, True), 1: (0.4, False),
    }  # fmt: skip


def test_the_panel_crosses_failures_and_leaves_what_is_missing_blank() -> None:
    rows = {"undefended": {0: (image(0.2), True), 2: (image(0.3), False)},
            "PGD training at ε = 0.2": {1: (np.full((3, 2, 2), 0.7), True)}}  # fmt: skip
    figure = panel(rows, 3)
    assert [axis.get_title() for axis in figure.axes] == ["0", "", "2 ×", "", "1", ""]
    assert [len(axis.images) for axis in figure.axes] == [1, 0, 1, 0, 1, 0]
    colour = figure.axes[4].images[0].get_array()
    assert colour is not None
    assert colour.shape == (2, 2, 3)
