"""The autopsy's rules, one by one, on rows made for each."""

from typing import Any

import pytest

from bench.base.rows import Results
from leaderboard.pages.autopsy import sections, sentences
from leaderboard.pages.leaderboard import render
from leaderboard.tables.autopsy import BENEATH, HIDDEN, Autopsy, autopsies
from tests.leaderboard.rows import ENVIRONMENT, Row, cell, model, sweep_results, who

HOT = who("distillation", 100)
STUCK = {"reached": 9, "no_admissible_pair": 891}
BUDGET = {"reached": 9, "budget": 891}


def against(low: float, high: float) -> Row:
    return {"baseline": "b", "delta": (low + high) / 2, "ci": [low, high]}


def opened(
    naive: float | None, exact: float | None, *, attack: str = "jsma", paired: Row | None = None,
    gradients: Row | None = None, of: Row = HOT, **changes: Any,
) -> Autopsy:  # fmt: skip
    output = "probs" if attack == "jsma" else "deployed"
    cells = [
        cell(of, naive, output, attack=attack, **changes),
        cell(of, exact, "log_odds", attack=attack, paired=paired),
    ]
    made = model(of, **({"gradients": gradients} if gradients else {}))
    (found,) = autopsies(Results(cells, [made], []))
    return found


NEAR = against(-0.05, 0.01)


@pytest.mark.parametrize(
    ("finding", "case"),
    [
        ("underflow", opened(0.01, 0.93, paired=NEAR, stop_reasons=STUCK)),
        ("underflow", opened(0.01, 0.93, paired=NEAR, zero_gradient_share=0.9)),
        ("unexplained", opened(0.01, 0.93, paired=NEAR, stop_reasons=BUDGET)),
        ("cancellation", opened(0.1, 0.6, attack="fgsm", paired=NEAR,
                                gradients={"zero_share": 0.1, "cosine_median": 0.7})),
        ("cancellation", opened(0.1, 0.6, attack="fgsm", paired=NEAR,
                                gradients={"zero_share": 0.9, "cosine_median": None})),
        ("unexplained", opened(0.1, 0.6, attack="fgsm", paired=NEAR,
                               gradients={"zero_share": 0.0, "cosine_median": 0.999})),
        ("partly", opened(0.01, 0.5, paired=against(-0.5, -0.4), stop_reasons=STUCK)),
        ("open", opened(0.01, 0.93, stop_reasons=STUCK)),
        ("open", opened(0.01, 0.93, paired=against(-0.2, 0.1), stop_reasons=STUCK)),
        ("nothing hidden", opened(0.96, 0.97, of=who("undefended"))),
        ("nothing hidden", opened(0.3, 0.31, paired=against(-0.7, -0.6))),
        ("few attempts", opened(0.2, 0.4, success_ci=[0.05, 0.5])),
        ("not enough cells", opened(0.1, None)),
        ("not enough cells", opened(None, 0.9, status="failed", reason="x")),
    ],
)  # fmt: skip
def test_each_finding_follows_from_its_numbers(finding: str, case: Autopsy) -> None:
    assert case.finding == finding


def test_the_thresholds_are_where_they_are_said_to_be() -> None:
    assert opened(0.5, 0.5 + HIDDEN - 0.001).finding == "nothing hidden"
    assert opened(0.5, 0.5 + HIDDEN + 0.001).finding == "open"
    for low, remainder in ((-BENEATH, "close"), (-BENEATH - 0.001, "wide")):
        assert opened(0.1, 0.9, paired=against(low, -0.01)).remainder == remainder
    assert opened(0.1, 0.9, paired=against(-0.3, -BENEATH)).remainder == "wide"
    assert opened(0.1, 0.9, paired=against(-0.3, -BENEATH - 0.001)).remainder == "below"
    assert opened(0.1, 0.9, paired=against(-0.02, 0.0)).remainder == "equal"
    assert opened(0.1, 0.9, paired=against(0.01, 0.1)).remainder == "above"


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (
            opened(0.01, 0.93, paired=NEAR, stop_reasons=STUCK),
            (
                "distillation: 1.0 % of the attempts succeed on the deployed output, 93.0 % on "
                "log-odds. Underflow: the attack sees zeros where in exact arithmetic there are "
                "none. 99.0 % of the attempts ended with no admissible pair. No robustness "
                "beneath: on log-odds −2.0 points [−5.0, 1.0] against the undefended network, "
                "equal to it within the interval."
            ),
        ),
        (
            opened(0.3, 0.31, of=who("adversarial_training"), paired=against(-0.7, -0.6)),
            (
                "adversarial_training: 30.0 % of the attempts succeed on the deployed output, "
                "31.0 % on log-odds. Nothing is hidden: log-odds finds less than 10 points more. "
                "On log-odds −65.0 points [−70.0, −60.0] against the undefended network: this "
                "attack finds less here, and another may find more."
            ),
        ),
        (
            opened(0.96, 0.97, of=who("undefended")),
            (
                "undefended: 96.0 % of the attempts succeed on the deployed output, 97.0 % on "
                "log-odds. Nothing is hidden: log-odds finds less than 10 points more."
            ),
        ),
    ],
)
def test_the_sentence_says_what_the_numbers_support(case: Autopsy, told: str) -> None:
    assert sentences([case]) == [told]


def divided(rates: dict[float, float], **changes: Any) -> str:
    views = [
        cell(HOT, rate, view={"temperature": t}, **(changes if t > 1 else {}))
        for t, rate in rates.items()
    ]
    (item,) = autopsies(Results([*views, cell(HOT, 0.9, "log_odds")], [], []))
    return sentences([item])[1]


def test_the_argument_of_the_factor_is_tested_on_the_same_weights() -> None:
    risen = divided({1.0: 0.01, 10.0: 0.5, 100.0: 0.8})
    assert "divided by 1 to 100: 1.0 % to 80.0 % succeed" in risen
    assert "the factor protects nothing" in risen
    assert "makes no difference" in divided({1.0: 0.9, 100.0: 0.85})
    vanished = divided({1.0: 0.9, 100.0: 0.1}, stop_reasons=STUCK)
    assert "as the paper argues" in vanished
    assert "another attack" in divided({1.0: 0.9, 100.0: 0.6}, stop_reasons=BUDGET)


def test_controls_are_held_against_what_they_control() -> None:
    members = autopsies(sweep_results())
    told = sentences(members)[-2:]
    assert "in 9 of 9 cases: the teacher adds nothing" in told[0]
    assert told[1].startswith("soft_label, soft labels without a teacher: −16.1 points")
    apart = [
        opened(0.01, 0.9),
        opened(0.5, 0.9, of=who("temperature_only", 100)),
    ]
    assert "in 0 of 1 cases." in sentences(apart)[-1]


def test_views_of_one_attack_meet_and_others_stay_apart() -> None:
    doubled = cell(HOT, 0.02, view={"precision": "float64"})
    logits, other = cell(HOT, 0.6, "logits"), cell(HOT, 0.7, "log_odds", attack="pgd")
    smaller = cell(HOT, 0.5, threat={"norm": "l0", "budget": 0.01, "unit": "features"})
    rows = [cell(HOT, 0.01), doubled, logits, cell(HOT, 0.9, "log_odds"), other, smaller]
    (item,) = autopsies(Results(rows, [model(HOT, 600.0)], []))
    assert item.double is doubled
    assert item.logits is logits
    assert item.model["mean_abs_logit"] == 600
    (section,) = sections(Results(rows, [model(HOT, 600.0)], []))
    assert section.table["deployed, float64"].tolist() == ["2.0 % [0.0, 4.0]"]
    assert section.table["mean |logit|"].tolist() == ["600.0"]
    assert "log-odds against undefended" not in section.table


def test_the_leaderboard_has_an_autopsy_where_its_cells_are() -> None:
    assert "## The autopsy" in render(sweep_results(), ENVIRONMENT)
    alone = Results([cell(HOT, 0.01)], [model(HOT)], [])
    assert "autopsy" not in render(alone, ENVIRONMENT)
