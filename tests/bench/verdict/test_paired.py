"""Paired statistics against other libraries, brute force and published properties."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.multitest import multipletests

from bench.verdict.paired import (
    Z90,
    Z95,
    Pairs,
    agresti_min,
    clustered_difference,
    holm,
    mcnemar,
    mcnemar_two_sided,
    needed,
    paired_rates,
    pairs,
)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 1), (7, 2), (2, 7), (12, 12), (30, 5)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    one_sided = stats.binomtest(b, b + c, 0.5, alternative="greater").pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(one_sided)
    two_sided = reference([[0, b], [c, 0]], exact=True).pvalue if b + c else 1.0
    assert mcnemar_two_sided(b, c) == pytest.approx(two_sided)


def test_holm_is_that_of_statsmodels() -> None:
    values = np.random.RandomState(0).rand(40) ** 4
    values[7] = values[3]
    assert holm(list(values)) == pytest.approx(multipletests(values, method="holm")[1].tolist())


def test_holm_by_hand() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06 (no smaller than the one before), 0.9.
    assert holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([]) == []


def test_agresti_min_by_hand() -> None:
    # Half an observation to each count: 12.5 and 4.5 of 102.
    low, high = agresti_min(Pairs(100, 12, 4))
    half = Z90 * math.sqrt(17 - 64 / 102) / 102
    assert (low, high) == pytest.approx((8 / 102 - half, 8 / 102 + half))
    assert agresti_min(Pairs(100, 12, 4), Z95)[0] < low


def test_the_interval_has_width_without_a_discordant_pair_and_stays_within_its_range() -> None:
    low, high = agresti_min(Pairs(100, 0, 0))
    assert low == pytest.approx(-high)
    assert 0 < high < 0.02
    assert agresti_min(Pairs(3, 3, 0))[1] <= 1
    assert agresti_min(Pairs(3, 0, 3))[0] >= -1


@pytest.mark.parametrize(("p", "q"), [(0.02, 0.02), (0.3, 0.1), (0.6, 0.02)])
def test_the_interval_covers_what_it_says(p: float, q: float) -> None:
    # Exactly, by the trinomial law of the counts: a 90 % interval, Agresti and Min find 88 to 96.
    n, covered = 60, 0.0
    law = stats.multinomial(n, [p, q, 1 - p - q])
    for b in range(n + 1):
        for c in range(n + 1 - b):
            low, high = agresti_min(Pairs(n, b, c))
            if low <= p - q <= high:
                covered += law.pmf([b, c, n - b - c])
    assert 0.87 < covered < 0.98


def test_needed_is_the_smallest_number_that_settles() -> None:
    table = Pairs(100, 18, 4)  # Δ = 0.14: the interval holds 0.10
    total = needed(table, 0.1)
    assert total is not None
    assert agresti_min(Pairs(total, 0.18 * total, 0.04 * total))[0] >= 0.1
    fewer = total - 1
    assert agresti_min(Pairs(fewer, 0.18 * fewer, 0.04 * fewer))[0] < 0.1
    assert needed(Pairs(100, 14, 4), 0.1) is None
    assert needed(Pairs(100, 90, 0), 0.1) == 100  # settled already


def test_pairs_count_what_only_one_says() -> None:
    first, second = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert pairs(first, second) == Pairs(5, 2, 1)
    assert pairs(first, second).delta == pytest.approx(0.2)


def records(success: dict[tuple[int, int], bool], status: str = "attacked") -> pd.DataFrame:
    rows = [(source, target, won, status) for (source, target), won in success.items()]
    return pd.DataFrame(rows, columns=["sample_id", "target", "success", "status"])


def test_rates_are_compared_on_common_attempts_alone() -> None:
    a = records({(0, 1): True, (0, 2): True, (1, 2): False, (5, 1): True})
    b = records({(0, 1): True, (0, 2): False, (1, 2): False, (7, 1): True})
    found = paired_rates(a, b)
    assert found is not None
    assert (found["delta"], found["attempts"]) == (pytest.approx(1 / 3), 3)
    assert paired_rates(a, records({(9, 1): True})) is None
    assert paired_rates(a, records({(0, 1): True}, "misclassified")) is None


def test_clusters_widen_the_interval_up_to_the_number_of_sources() -> None:
    sources, targets = range(40), range(9)
    none = records(dict.fromkeys(itertools.product(sources, targets), False))
    # The same share of wins: whole sources, or spread evenly over them.
    whole = records({(s, t): s < 8 for s, t in itertools.product(sources, targets)})
    spread = records({(s, t): (s + t) % 5 == 0 for s, t in itertools.product(sources, targets)})
    clustered, even = paired_rates(whole, none), paired_rates(spread, none)
    assert clustered is not None
    assert even is not None
    assert clustered["delta"] == pytest.approx(even["delta"])

    def width(found: dict) -> float:
        return found["ci"][1] - found["ci"][0]

    # With all targets alike there are as many observations as sources, at most 1 in 40 fewer.
    alone = agresti_min(Pairs(40, 8, 0), Z95)
    assert width(clustered) == pytest.approx(alone[1] - alone[0], rel=0.05)
    assert width(even) < width(clustered) / 2


def test_nothing_that_varies_is_no_certainty() -> None:
    same = records(dict.fromkeys(itertools.product(range(10), range(9)), True))
    found = paired_rates(same, same)
    assert found is not None
    assert found["ci"] == agresti_min(Pairs(10, 0, 0), Z95)


def test_one_answer_a_cluster_is_the_interval_of_agresti_and_min() -> None:
    draws = np.random.RandomState(0)
    first, second = draws.rand(2, 80) < [[0.6], [0.4]]
    for z in (Z90, Z95, 2.9):
        delta, ci = clustered_difference(first, second, np.arange(80), z)
        assert delta == pytest.approx(first.mean() - second.mean())
        assert ci == pytest.approx(agresti_min(pairs(first, second), z))


def test_the_same_answers_three_times_are_no_more_evidence() -> None:
    draws = np.random.RandomState(1)
    first, second = draws.rand(2, 80) < [[0.6], [0.4]]
    thrice = [np.tile(values, 3) for values in (first, second, np.arange(80))]
    assert clustered_difference(*thrice)[1] == pytest.approx(
        clustered_difference(first, second, np.arange(80))[1]
    )


def test_independent_answers_narrow_it_as_their_number_does() -> None:
    # Every pattern of three answers equally often: within a cluster they are uncorrelated.
    first = np.array(list(itertools.product([False, True], repeat=3)) * 20)
    second = np.zeros_like(first)
    cluster = np.repeat(np.arange(len(first)), 3)
    _, (low, high) = clustered_difference(first.ravel(), second.ravel(), cluster)
    narrow = agresti_min(Pairs(first.size, first.sum(), 0), Z95)
    assert (low, high) == pytest.approx(narrow, abs=1e-3)


@pytest.mark.parametrize(("seeds", "shared"), [(1, 0.0), (3, 0.0), (3, 0.7), (5, 1.0)])
def test_the_clustered_interval_covers_what_it_says(seeds: int, shared: float) -> None:
    # A source is hard for every network with probability ``shared``; the difference is 0.15.
    draws = np.random.RandomState(7)
    sources, covered, runs = 120, 0, 1500
    cluster = np.tile(np.arange(sources), seeds)
    for _ in range(runs):
        hard = np.where(
            draws.rand(seeds, sources) < shared, draws.rand(sources), draws.rand(seeds, sources)
        )
        second = hard < 0.5
        first = second ^ (draws.rand(seeds, sources) < 0.05) | ((hard > 0.5) & (hard < 0.65))
        low, high = clustered_difference(first.ravel(), second.ravel(), cluster)[1]
        covered += low <= DIFFERENCE <= high
    assert 0.93 < covered / runs < 0.98


# Of the half that the second holds, one in twenty is lost; of the 0.35 that neither holds by its
# hardness, one in twenty is won; and 0.15 are won outright.
DIFFERENCE = 0.15 - 0.05 * 0.5 + 0.05 * 0.35
