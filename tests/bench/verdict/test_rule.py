"""The rule of docs/verdict.md: every branch, and its order."""

from dataclasses import replace

import pytest

from bench.verdict.paired import Pairs
from bench.verdict.rule import Facts, Judgement, combine, judge

# Survivors on the defended model alone, of 100, where the undefended keeps hardly any.
STRONG = Facts(sources=100, pairs=Pairs(100, 60, 0), reference=0.02)
WEAK = replace(STRONG, pairs=Pairs(100, 3, 1))
OPEN = replace(STRONG, pairs=Pairs(100, 14, 2))


def given(facts: Facts, *warnings: str) -> Judgement:
    return judge(replace(facts, warnings=frozenset(warnings)))


def test_without_doubt_a_gain_holds_no_gain_is_broken_and_between_nothing_is_known() -> None:
    assert (judge(STRONG).verdict, judge(STRONG).rule) == ("holds", 4)
    assert (judge(WEAK).verdict, judge(WEAK).rule) == ("broken", 3)
    found = judge(OPEN)
    assert (found.verdict, found.rule) == ("inconclusive", 5)
    assert found.sources_needed is not None
    assert found.sources_needed > 100


@pytest.mark.parametrize("facts", [STRONG, WEAK, OPEN])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sources": 59}, "59 sources"),
        ({"missing": ("square failed: boom",)}, "boom"),
        ({"reference": 0.21}, "21 %"),
        ({"reference": None}, "undefended"),
        ({"pairs": None}, "no source"),
        ({"warnings": frozenset({"chance"})}, "chance"),
        ({"warnings": frozenset({"probabilities"})}, "probabilities"),
        ({"warnings": frozenset({"stochastic"})}, "stochastic"),
        ({"sources": 59, "warnings": frozenset({"naive-beaten"})}, "59 sources"),
    ],
)
def test_rule_1_comes_first(facts: Facts, change: dict, word: str) -> None:
    found = judge(replace(facts, **change))
    assert (found.verdict, found.rule) == ("inconclusive", 1)
    assert word in found.why


def test_sixty_sources_and_a_fifth_left_are_enough() -> None:
    assert judge(replace(STRONG, sources=60, reference=0.2)).verdict == "holds"


@pytest.mark.parametrize(
    "flag", ["naive-beaten", "log-odds-beats-probs", "black-box-beats-gradient"]
)
def test_an_attack_that_fails_by_itself_masks_whatever_is_left(flag: str) -> None:
    assert [given(facts, flag).rule for facts in (STRONG, WEAK, OPEN)] == [2, 2, 2]
    assert [given(f, flag).broken_too for f in (STRONG, WEAK, OPEN)] == [False, True, False]


@pytest.mark.parametrize("flag", ["zero-gradient", "gradient-direction", "unbounded-budget"])
def test_gradients_that_are_gone_mask_only_what_would_hold(flag: str) -> None:
    assert [given(f, flag).verdict for f in (STRONG, WEAK, OPEN)] == [
        "masked", "broken", "inconclusive",
    ]  # fmt: skip
    assert given(STRONG, flag).rule == 2


def test_nothing_holds_with_a_warning_or_an_unread_flag() -> None:
    assert given(STRONG, "invalid-output").rule == 5
    unread = judge(replace(STRONG, not_evaluated=frozenset({"gradient-direction"})))
    assert (unread.verdict, unread.rule) == ("inconclusive", 5)
    assert "gradient-direction was not evaluated" in unread.why
    assert judge(replace(WEAK, not_evaluated=frozenset({"zero-gradient"}))).verdict == "broken"


def test_the_margin_is_ten_points_at_the_ends_of_the_interval() -> None:
    # Agresti and Min's interval of 100 pairs: [0.10, ...] between 15 and 16 discordant ones.
    lower = [judge(replace(STRONG, pairs=Pairs(100, b, 0))).verdict for b in (15, 16, 17, 18)]
    assert lower == ["inconclusive", "inconclusive", "holds", "holds"]
    upper = [judge(replace(STRONG, pairs=Pairs(100, b, 0))).verdict for b in (4, 5, 6, 7)]
    assert upper == ["broken", "broken", "inconclusive", "inconclusive"]


def test_a_missing_cell_never_makes_a_verdict_better() -> None:
    better = {"masked": 0, "broken": 0, "inconclusive": 0, "holds": 1}
    for facts in (STRONG, WEAK, OPEN):
        for flag in ("", "naive-beaten", "zero-gradient"):
            whole = replace(facts, warnings=frozenset({flag} - {""}))
            failed = judge(replace(whole, missing=("sparse_rs failed: boom",)))
            assert better[failed.verdict] <= better[judge(whole).verdict]
    # What has been shown is still said.
    assert "no gain" in judge(replace(WEAK, missing=("x failed",))).why


def test_seeds_combine_by_the_first_rule_that_any_meets() -> None:
    holds, broken, open_ = judge(STRONG), judge(WEAK), judge(OPEN)
    masked, both = given(STRONG, "naive-beaten"), given(WEAK, "naive-beaten")
    failed = judge(replace(STRONG, missing=("x failed",)))
    for seeds, label in [
        ((holds, holds, holds), "holds"),
        ((holds, holds), "holds (two seeds)"),
        ((holds,), "holds (one seed)"),
        ((holds, open_, holds), "inconclusive"),
        ((holds, broken, open_), "broken"),
        ((holds, broken, masked), "masked, broken"),
        ((holds, masked, holds), "masked"),
        ((both, both, both), "masked, broken"),
        ((both, broken, failed), "inconclusive"),
    ]:
        assert combine(seeds).label == label
    assert combine((holds, open_, holds)).sources_needed == open_.sources_needed
    assert combine((failed, open_)).sources_needed is None


# Survivors of 100 beside a network that keeps nothing: there is no reference.
ALONE = replace(STRONG, pairs=Pairs(100, 43, 0), reference=None, compared=False)


def test_without_a_reference_nothing_holds_and_what_stands_is_said() -> None:
    found = judge(ALONE)
    assert (found.verdict, found.rule, found.label) == ("inconclusive", 5, "no reference")
    assert found.why == "no reference: of 100 sources 43 % [34, 53] stand; nothing warns"
    assert combine([found] * 3).label == "no reference"


def test_without_a_reference_what_no_reference_could_change_is_known() -> None:
    nothing = replace(ALONE, pairs=Pairs(100, 1, 0))
    assert (judge(nothing).verdict, judge(nothing).rule) == ("broken", 3)
    assert combine([given(nothing, "naive-beaten")]).label == "masked, broken"
    assert combine([given(ALONE, "naive-beaten")]).label == "masked"
    assert given(ALONE, "zero-gradient").verdict == "masked"
    assert given(replace(ALONE, pairs=Pairs(100, 13, 0)), "zero-gradient").label == "no reference"
    assert "flag vanishing" in given(ALONE, "vanishing").why
    assert "not converged" in judge(replace(ALONE, moved=0.05)).why
    assert judge(replace(ALONE, missing=("square failed",))).rule == 1
    assert given(ALONE, "stochastic").rule == 1


def test_a_reason_that_several_attacks_share_is_told_once() -> None:
    missing = ("pgd failed: no gradient", "square changed nothing", "apgd failed: no gradient")
    found = judge(replace(STRONG, missing=missing)).why
    assert "pgd failed, apgd failed: no gradient; square changed nothing" in found
