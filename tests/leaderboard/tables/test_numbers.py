"""One format of numbers."""

import math

import pytest

from leaderboard.tables.numbers import (
    counted,
    each,
    fixed,
    given,
    interval,
    number,
    percent,
    points,
    ranged,
    ratio,
    shares,
    spanned,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (-0.0, "0.00"), (None, "–"), (99.96, "100"), (0.99996, "1.00"), (9.994, "9.99"),
     (9.996, "10.0"), (1234.5, "1234"), (0.001, "0.00100"), (1e-12, "1.00e−12"),
     (-1e-12, "−1.00e−12"), (-0.5, "−0.500"), (-2345.0, "−2345")],
)  # fmt: skip
def test_a_number_has_three_digits_and_no_zero_is_negative(value: float | None, text: str) -> None:
    assert number(value) == text


def test_each_shows_a_dash_where_a_seed_is_not_known() -> None:
    assert each([6.514, None, 99.96]) == "6.51 / – / 100"
    assert each([0.0], 2) == "0.0"
    assert each([]) == "–"


def test_points_by_hand() -> None:
    assert points(-0.0814, (-0.11, -0.052)) == "−8.1 [−11.0, −5.2]"
    assert points(-0.0, (-0.0001, 0.0001)) == "+0.0 [0.0, 0.0]"
    assert points(0.1, (-0.001, 0.2)) == "+10.0 [−0.1, 20.0]"
    assert points(None, (0, 1)) == "–"
    assert points(0.1) == "+10.0"


def test_the_minus_is_typographic_and_no_zero_is_negative() -> None:
    assert fixed(-0.04) == "0.0"
    assert fixed(-1.25, 2) == "−1.25"
    assert fixed(0.5, 0, "+") == "+0"
    assert given(-0.1) == "−0.1"
    assert given(20.0) == "20"
    assert number(-math.inf) == "−inf"


def test_what_is_unknown_is_a_dash() -> None:
    formats = (fixed, number, given, percent, points)
    assert {show(None) for show in formats} == {"–"}
    assert interval(None, (0, 1)) == spanned(None, (0, 1)) == ratio(1, 0) == ratio(None, 2) == "–"
    assert shares([]) == ranged([None]) == counted(None, 3) == "–"


def test_shares_are_in_per_cent() -> None:
    assert percent(0.876) == "87.6 %"
    assert interval(0.876, (0.842, 0.904)) == "87.6 % [84.2, 90.4]"
    assert interval(0.876, None) == "87.6 %"
    assert interval(0.98765, (0.98, 0.99), 2) == "98.77 % [98.00, 99.00]"
    assert shares([0.773, None, 0.75]) == "77.3 / – / 75.0 %"
    assert ranged([0.057, None, 0.004]) == "0.4 % to 5.7 %"
    assert ranged([0.057, 0.0571]) == "5.7 %"


def test_the_rest_by_hand() -> None:
    assert spanned(6.514, (6.32, -0.5)) == "6.51 [6.32, −0.500]"
    assert spanned(6.514, None) == "6.51"
    assert ratio(5, 4) == "1.25"
    assert counted(12, 891) == "12/891"
    assert points(-0.031, (-0.05, -0.012), unit=" points") == "−3.1 points [−5.0, −1.2]"


def test_a_budget_in_levels_of_a_byte_is_shown_as_written() -> None:
    assert given(8 / 255) == "8/255"
    assert given(0.2) == "0.2"  # 51/255, and a decimal that is exact
    assert given(0.031) == "0.031"
    assert given(None) == "–"
