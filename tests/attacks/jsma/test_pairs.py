"""The pair choice equals the brute force over all pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attacks.jsma import reference
from attacks.jsma.pairs import best_pair, largest, largest_product, two_largest

KINDS = ("normal", "ties", "constant", "front", "opposed", "tiny")


def values(kind: str, rows: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """(alpha, beta) of a named difficulty, float64 with at most 24 significant bits."""
    draw = torch.Generator().manual_seed(seed)
    if kind in ("ties", "constant"):
        spread = 3 if kind == "ties" else 1
        return tuple(torch.randint(-spread, spread + 1, (2, rows, d), generator=draw).double())
    alpha, beta = torch.randn(2, rows, d, generator=draw)
    if kind == "front":  # no feature is dominated: every one remains a candidate
        alpha = alpha.abs() + 0.01
        beta = -1 / alpha
    if kind == "opposed":  # no feature is admissible alone
        beta = alpha * beta.abs()
    if kind == "tiny":
        alpha, beta = alpha * 1e-30, beta * 1e-30
    return alpha.double(), beta.double()


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    d=st.integers(4, 300),
    seed=st.integers(0, 2**31),
    sign=st.sampled_from([1.0, -1.0]),
    excluded=st.sampled_from([0.0, 0.3, 0.95]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_best_pair_equals_brute_force(
    kind: str, d: int, seed: int, sign: float, excluded: float, dtype: torch.dtype
) -> None:
    alpha, beta = values(kind, 3, d, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    allowed = torch.rand(3, d, generator=draw) >= excluded
    picked = best_pair((alpha * sign).to(dtype), (beta * -sign).to(dtype), allowed)
    for row in range(3):
        _check_row(
            picked.features[row], picked.score[row], alpha[row], beta[row], allowed[row], sign
        )


@settings(max_examples=150, deadline=None)
@given(
    features=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.booleans()), min_size=2, max_size=12
    ),
    sign=st.sampled_from([1.0, -1.0]),
)
def test_best_pair_equals_brute_force_on_small_integers(
    features: list[tuple[int, int, bool]], sign: float
) -> None:
    alpha = torch.tensor([f[0] for f in features], dtype=torch.float64)
    beta = torch.tensor([f[1] for f in features], dtype=torch.float64)
    allowed = torch.tensor([f[2] for f in features])
    picked = best_pair((alpha * sign)[None], (beta * -sign)[None], allowed[None])
    _check_row(picked.features[0], picked.score[0], alpha, beta, allowed, sign)


def _check_row(
    features: Tensor, score: Tensor, alpha: Tensor, beta: Tensor, allowed: Tensor, sign: float
) -> None:
    expected, pair = reference.best_pair(alpha, beta, allowed, sign)
    if pair is None:
        assert score == 0
        return
    p, q = features.tolist()
    assert p != q
    assert allowed[p]
    assert allowed[q]
    assert float(-(alpha[p] + alpha[q]) * (beta[p] + beta[q])) == expected
    assert float(score) == pytest.approx(expected, rel=1e-15, abs=0)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    d=st.integers(4, 300),
    seed=st.integers(0, 2**31),
    sign=st.sampled_from([1.0, -1.0]),
)
def test_two_largest_is_the_best_pair_where_beta_is_minus_alpha(
    kind: str, d: int, seed: int, sign: float
) -> None:
    alpha, _ = values(kind, 1, d, seed)
    allowed = torch.rand(1, d, generator=torch.Generator().manual_seed(seed)) > 0.3
    picked = two_largest(alpha * sign, allowed)
    score = picked.score.clamp(min=0) ** 2
    if score == 0:
        assert reference.best_pair(alpha[0], -alpha[0], allowed[0], sign) == (0.0, None)
    else:
        _check_row(picked.features[0], score[0], alpha[0], -alpha[0], allowed[0], sign)


def test_ties_take_the_first() -> None:
    a = torch.tensor([[1.0, 2.0, 2.0, 2.0, 1.0]])
    everywhere = torch.ones(1, 5, dtype=torch.bool)
    assert two_largest(a, everywhere).features.tolist() == [[1, 2]]
    assert best_pair(a, a, everywhere).features.tolist() == [[1, 2]]
    assert largest(a, everywhere).features.tolist() == [[1]]
    assert largest_product(a, a, everywhere).features.tolist() == [[1]]


@pytest.mark.parametrize("at_once", [1, 10, 1 << 19])
def test_ties_between_blocks_of_the_search_take_the_first(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("attacks.jsma.pairs._PAIRS_CPU", at_once)
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    # (5, 1) and (4, 2) both score 36; the first has the larger a.
    picked = best_pair(a, 6 - a, torch.ones(1, 5, dtype=torch.bool))
    assert picked.features.tolist() == [[4, 0]]
    assert picked.score.tolist() == [36]


@pytest.mark.parametrize("allowed", [[], [3]])
def test_fewer_than_two_features_make_no_pair(allowed: list[int]) -> None:
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[0, allowed] = True
    a = torch.ones(1, 6)
    assert best_pair(a, a, mask).score == 0
    assert two_largest(a, mask).score == 0


def test_one_row_does_not_change_another() -> None:
    alpha, beta = values("normal", 40, 90, 3)
    a, b = (
        torch.cat((alpha, values("front", 1, 90, 4)[0])),
        torch.cat((-beta, -values("front", 1, 90, 4)[1])),
    )
    allowed = torch.ones_like(a, dtype=torch.bool)
    together = best_pair(a, b, allowed)
    for row in range(41):
        alone = best_pair(a[row, None], b[row, None], allowed[row, None])
        assert alone.features.tolist() == together.features[row, None].tolist()


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns, in elements."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_memory_stays_bounded_when_every_feature_is_a_candidate() -> None:
    d, rows = 2000, 3
    alpha, beta = values("front", rows, d, 0)
    # Every single feature has a * b = 1; a promising one bounds nothing, no feature is dominated.
    with LargestTensor() as seen:
        picked = best_pair(alpha, -beta, torch.ones(rows, d, dtype=torch.bool))
    assert seen.numel <= max(1 << 19, rows * d)
    assert seen.numel < d * d // 4
    for row in range(rows):
        _check_row(
            picked.features[row],
            picked.score[row],
            alpha[row],
            beta[row],
            torch.ones(d, dtype=torch.bool),
            1.0,
        )
