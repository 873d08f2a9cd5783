"""What logits say, against scipy and by hand, at scales where single precision would give up."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import bench.measure.logits
from bench.base.files import read_records, write_records
from bench.measure.logits import columns, keeps, measures, order_agreement, read


@pytest.mark.parametrize("classes", [3, 4, 10, 25])
def test_without_ties_it_is_the_tau_of_scipy_over_the_incorrect_classes(classes: int) -> None:
    draws = np.random.RandomState(classes)
    first, second = draws.randn(2, 40, classes)
    labels = draws.randint(0, classes, 40)
    wanted = [
        stats.kendalltau(np.delete(a, label), np.delete(b, label)).statistic
        for a, b, label in zip(first, second, labels, strict=True)
    ]
    assert order_agreement(first, second, labels) == pytest.approx(wanted)


def test_it_is_the_same_however_many_rows_are_compared_at_once(monkeypatch) -> None:
    first, second = np.random.RandomState(0).randn(2, 7, 6)
    labels = np.arange(7) % 6
    whole = order_agreement(first, second, labels)
    for pairs in (1, 25):  # one row at once; two, of ten pairs each
        monkeypatch.setattr(bench.measure.logits, "PAIRS", pairs)
        assert order_agreement(first, second, labels).tolist() == whole.tolist()


def test_a_tie_counts_for_neither_and_the_label_for_nothing() -> None:
    first = np.array([[9.0, 1, 2, 3], [9.0, 1, 2, 3], [9.0, 5, 5, 5], [9.0, 1, 2, 3]])
    second = np.array([[-9.0, 1, 1, 2], [0.0, 3, 2, 1], [0.0, 1, 2, 3], [-9.0, 1, 2, 3]])
    # Pairs (1, 2), (1, 3), (2, 3): one tied and two alike; all reversed; all tied; all alike.
    found = order_agreement(first, second, np.zeros(4, dtype=int))
    assert found == pytest.approx([2 / 3, -1, 0, 1])


def test_three_classes_leave_one_pair_and_two_none() -> None:
    first = np.array([[0.0, 1, 2], [0.0, 1, 2]])
    second = np.array([[0.0, 3, 4], [0.0, 4, 3]])
    assert order_agreement(first, second, np.array([0, 0])).tolist() == [1, -1]
    # With another class left out, another pair is compared.
    assert order_agreement(first, second, np.array([1, 2])).tolist() == [1, 1]
    two = order_agreement(first[:, :2], second[:, :2], np.array([0, 1]))
    assert two.shape == (2,)
    assert np.isnan(two).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_has_no_order(bad: float, side: int) -> None:
    both = np.tile(np.arange(4.0), (2, 2, 1))
    both[side, 0, 2] = bad
    found = order_agreement(*both, np.zeros(2, dtype=int))
    assert np.isnan(found[0])
    assert found[1] == 1


def test_no_row_has_no_order() -> None:
    none = np.empty((0, 5))
    assert order_agreement(none, none, np.empty(0, dtype=int)).shape == (0,)


def test_measures_by_hand() -> None:
    logits = torch.tensor([[math.log(6), math.log(3), 0.0], [1.0, 1.0, 1.0], [-3.0, -2.0, -9.0]])
    found = {name: value.tolist() for name, value in measures(logits).items()}
    assert found["max_logit"] == pytest.approx([math.log(6), 1, -2])
    assert found["logit_gap"] == pytest.approx([math.log(2), 0, 1])
    assert found["confidence"][:2] == pytest.approx([0.6, 1 / 3])
    p = [0.6, 0.3, 0.1]
    assert found["entropy"][0] == pytest.approx(-sum(q * math.log(q) for q in p))
    assert found["entropy"][1] == pytest.approx(math.log(3))


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_measures_of_large_logits_neither_overflow_nor_vanish(scale: float) -> None:
    found = measures(torch.tensor([[scale, -scale, 0.0], [scale, scale - 100, -scale]]))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert found["max_logit"].tolist() == [scale, scale]
    assert found["logit_gap"].tolist() == [scale, 100]
    # Two classes 100 apart: the entropy is that of exp(-100), which is no zero.
    assert found["entropy"][1].item() == pytest.approx(101 * math.exp(-100), rel=1e-6)
    assert found["confidence"].tolist() == [1, 1]
    assert all(value.dtype == torch.float64 for value in found.values())


@pytest.mark.parametrize("classes", [2, 3, 13])
def test_logits_pass_through_a_file_to_the_last_bit(classes: int, tmp_path: Path) -> None:
    logits = torch.randn(8, classes, generator=torch.Generator().manual_seed(0)) * 1e3
    logits[0, 0] = 1e-30
    kept = {name: column.numpy() for name, column in columns(logits).items()}
    frame = pd.DataFrame({"max_logit": 1.0, "logit_gap": 2.0, **kept, "label": 3})
    # Whatever order the columns have: logit_10 comes after logit_9.
    frame = frame[sorted(frame.columns)]
    write_records(tmp_path / "rows.parquet", frame)
    found = read(read_records(tmp_path / "rows.parquet"))
    assert found.dtype == np.float64
    assert np.array_equal(found, logits.numpy().astype(np.float64))


def test_rows_may_be_read_without_their_logits(tmp_path: Path) -> None:
    rows = pd.DataFrame({"sample_id": [1], "logit_gap": [2.0], "logit_0": [1.0], "logit_10": [0.0]})
    write_records(tmp_path / "rows.parquet", rows)
    found = read_records(tmp_path / "rows.parquet", wanted=lambda name: not keeps(name))
    assert found.equals(rows[["sample_id", "logit_gap"]])
