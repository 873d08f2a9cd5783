"""Flags on a panel: thresholds, and the comparisons that would misfire on honest networks."""

import numpy as np
import pytest

from bench.base.types import Norm
from bench.plan.panel import Role
from bench.verdict.panel_flags import Sibling, Siblings, panel_flags

N = 100


def broke(role: Role, count: int, start: int = 0, gradients: bool = True) -> Sibling:
    """An attack that breaks ``count`` sources from ``start`` on."""
    mask = np.zeros(N, dtype=bool)
    mask[start : start + count] = True
    return Sibling(role, role, mask, gradients)


def panel(*members: Sibling, norm: Norm = "linf", correct: int = N) -> Siblings:
    return Siblings(norm, np.arange(N) + 500, np.arange(N) < correct, members)


GONE = broke("unbounded", N)


def ids(found: Siblings) -> list[str]:
    return [flag.id for flag in panel_flags(found, ()).flags]


@pytest.mark.parametrize(
    ("naive", "other", "raised"),
    [(40, 49, False), (40, 50, True), (40, 90, True), (90, 40, False), (60, 60, False)],
)
def test_naive_beaten_needs_ten_points(naive: int, other: int, raised: bool) -> None:
    members = (broke("naive", naive), broke("log-odds", other), GONE)
    assert ("naive-beaten" in ids(panel(*members))) == raised


def test_naive_beaten_needs_significance_too() -> None:
    # 30 against 20 discordant pairs: ten points net, p = 0.1.
    noisy = (broke("naive", 50), broke("transfer", 60, start=20), GONE)
    assert ids(panel(*noisy)) == []
    clear = (broke("naive", 50), broke("transfer", 62), GONE)
    flag = panel_flags(panel(*clear), ()).flags[0]
    assert (flag.id, flag.value) == ("naive-beaten", pytest.approx(0.12))
    assert flag.samples == tuple(range(550, 562))
    assert "transfer" in flag.evidence


def test_a_black_box_that_beats_greedy_jsma_is_no_flag_below_thirty_points() -> None:
    def l0(box: int) -> Siblings:
        jsma = (broke("naive", 50), broke("log-odds", 52), broke("strong", 60))
        return panel(*jsma, broke("black-box", box, gradients=False), norm="l0")

    assert ids(l0(89)) == []  # 39 over JSMA, 29 over the best gradient attack
    assert ids(l0(90)) == ["black-box-beats-gradient"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_black_box_must_not_beat_gradients_by_ten_points(norm: Norm) -> None:
    def other(box: int) -> Siblings:
        followers = (broke("naive", 50), broke("log-odds", 60), broke("strong", 70))
        return panel(*followers, broke("black-box", box, gradients=False), GONE, norm=norm)

    assert "black-box-beats-gradient" not in ids(other(79))
    assert "black-box-beats-gradient" in ids(other(80))


def test_log_odds_against_probs_under_l0_alone() -> None:
    box = broke("black-box", 50, gradients=False)
    pair = (broke("naive", 30), broke("log-odds", 50))
    assert ids(panel(*pair, box, norm="l0")) == ["log-odds-beats-probs"]
    stronger = (broke("naive", 50), broke("log-odds", 50), broke("strong", 90))
    assert ids(panel(*stronger, box, norm="l0")) == []  # sigma-zero may beat JSMA by any number


def test_an_unbounded_attack_may_leave_a_twentieth() -> None:
    pair = (broke("naive", 50), broke("log-odds", 50))
    assert ids(panel(*pair, broke("unbounded", 95))) == []
    assert ids(panel(*pair, broke("unbounded", 94))) == ["unbounded-budget"]
    assert ids(panel(*pair, broke("unbounded", 90), correct=92)) == []  # 8 were wrong already


def test_a_flag_without_its_siblings_is_not_evaluated() -> None:
    absent = Sibling("naive", "pgd deployed", None, True)
    found = panel_flags(panel(absent, broke("log-odds", 90)), ["pgd deployed failed: boom"])
    absent_too = {"black-box-beats-gradient", "unbounded-budget"}
    assert set(found.not_evaluated) == {"naive-beaten", *absent_too}
    (flag,) = found.flags
    assert (flag.id, flag.severity) == ("panel-incomplete", "warning")
    assert "boom" in flag.evidence
    l0 = panel_flags(panel(broke("naive", 5), norm="l0"), ())
    assert set(l0.not_evaluated) == {"log-odds-beats-probs", "black-box-beats-gradient"}
    assert not l0.flags
