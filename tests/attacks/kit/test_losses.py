"""The losses against their formulas in plain Python, and where they may be used."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attacks.kit.losses import LOSSES, behind, check_classes, reached

LOGITS = torch.tensor(
    [[2.0, -1.0, 0.5, 1.5], [0.0, 3.0, -2.0, 1.0], [-1.0, -1.5, 4.0, 3.5]], dtype=torch.float64
)
Y, T = torch.tensor([0, 3, 2]), torch.tensor([2, 1, 3])


def by_hand(output: str, z: list[float], y: int, t: int | None) -> float:
    goal = y if t is None else t
    others = [value for j, value in enumerate(z) if j != goal]
    order = sorted(z, reverse=True)
    if output == "dlr":
        if t is None:
            return (max(others) - z[y]) / (order[0] - order[2])
        return (z[t] - z[y]) / (order[0] - (order[2] + order[3]) / 2)
    against = {
        "deployed": math.log(sum(map(math.exp, z))) - z[goal],
        "log_odds": math.log(sum(map(math.exp, others))) - z[goal],
        "margin": max(others) - z[goal],
        "scaled_log_odds": max(others) - z[goal],
    }[output]
    return against if t is None else -against


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("output", LOSSES)
def test_each_loss_is_its_formula(output: str, targeted: bool) -> None:
    loss = LOSSES[output](LOGITS, Y, T if targeted else None)
    expected = [
        by_hand(output, z, y, t if targeted else None)
        for z, y, t in zip(LOGITS.tolist(), Y.tolist(), T.tolist(), strict=True)
    ]
    assert loss.tolist() == pytest.approx(expected)


def test_dlr_is_blind_to_the_scale_and_survives_a_tie() -> None:
    scaled = LOSSES["dlr"](1000 * LOGITS, Y, None)
    assert torch.allclose(scaled, LOSSES["dlr"](LOGITS, Y, None))
    assert torch.isfinite(LOSSES["dlr"](torch.zeros(1, 4), Y[:1], None)).all()


def gradient(output: str, logits: Tensor, y: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    LOSSES[output](leaf, y, None).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_only_cross_entropy_loses_its_gradient_to_rounding() -> None:
    logits, y = torch.tensor([[200.0, 0.0, 1.0]]), torch.tensor([0])
    assert gradient("deployed", logits, y).eq(0).all()
    odds = 1 / (1 + math.e)
    assert gradient("log_odds", logits, y)[0].tolist() == pytest.approx([-1, odds, 1 - odds])
    assert gradient("margin", logits, y)[0].tolist() == [-1, 0, 1]
    assert gradient("dlr", logits, y).ne(0).any()


def test_a_tie_or_a_nan_is_no_success() -> None:
    logits = torch.tensor([[1.0, 1.0], [0.0, math.nan], [0.0, 1.0], [1.0, 0.0]])
    zeros = torch.zeros(4, dtype=torch.int64)
    assert reached(logits, zeros, None).tolist() == [False, False, True, False]
    assert reached(logits, zeros, zeros + 1).tolist() == [False, False, True, False]
    assert behind(logits, zeros)[2:].tolist() == [1, -1]


def test_dlr_needs_classes_to_sort() -> None:
    check_classes("dlr", 3, targeted=False)
    check_classes("margin", 2, targeted=True)
    for classes, targeted in ((2, False), (3, True)):
        with pytest.raises(ValueError, match=f"the model has {classes}: take 'margin'"):
            check_classes("dlr", classes, targeted=targeted)
