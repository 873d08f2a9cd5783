"""Distances, budgets and the model's contract."""

import math

import pytest
import torch
from torch import nn

from bench.base.types import ThreatModel, rows_at_once
from bench.measure.query import (
    BATCH,
    NO_ANSWER,
    ODD_BATCH,
    ContractError,
    answer,
    ask,
    distances,
    hashes,
    lead,
    predict,
)
from bench.suspicion.average import Average


def test_distances_by_hand() -> None:
    x = torch.zeros(1, 2, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = 0.3
    x_adv[0, 1, 0, 0] = 0.4  # the other channel of the same pixel
    x_adv[0, 0, 1, 1] = 1e-8  # below the tolerance: unchanged
    found = distances(x, x_adv)
    assert found.l0_features.item() == 2
    assert found.l0_pixels.item() == 1
    assert found.l2.item() == pytest.approx(0.5)
    assert found.linf.item() == pytest.approx(0.4)
    assert found.in_box.item()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.01, 1.01])
def test_values_outside_the_box_are_seen(bad: float) -> None:
    x = torch.full((1, 4), 0.5)
    x_adv = x.clone()
    x_adv[0, 0] = bad
    found = distances(x, x_adv)
    assert not found.in_box.item()
    assert found.finite.item() == math.isfinite(bad)
    assert found.within(ThreatModel("linf", 1.0), (4,)).item() == math.isfinite(bad)


@pytest.mark.parametrize(
    ("threat", "kept"),
    [
        (ThreatModel("l0", 0.5, "features"), True),
        (ThreatModel("l0", 0.4, "features"), False),
        (ThreatModel("l0", 0.5, "pixels"), True),
        (ThreatModel("l0", 0.2, "pixels"), False),
        (ThreatModel("l2", 0.5), True),
        (ThreatModel("l2", 0.49), False),
        (ThreatModel("linf", 0.4), True),
        (ThreatModel("linf", 0.39), False),
        (ThreatModel("l2", None), True),
    ],
)
def test_budgets(threat: ThreatModel, kept: bool) -> None:
    x = torch.zeros(1, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0] = torch.tensor([0.3, 0.4])
    assert distances(x, x_adv).within(threat, (1, 2, 2)).item() is kept


def test_without_a_source_any_finite_input_is_within() -> None:
    x = torch.zeros(3, 4)
    x_adv = torch.stack([torch.ones(4), torch.zeros(4), torch.full((4,), math.nan)])
    found = distances(x, x_adv)
    assert found.within(ThreatModel("none"), (4,)).tolist() == [True, True, False]
    assert found.in_box.tolist() == [True, True, False]


def test_the_threat_model_without_a_source_has_no_budget() -> None:
    assert str(ThreatModel("none")) == "any input"
    with pytest.raises(ValueError, match=r"'none' .*takes no budget, got 0.5"):
        ThreatModel("none", 0.5)
    with pytest.raises(ValueError, match="counts features or pixels"):
        ThreatModel("none", None, "features")


def test_lead_is_positive_only_for_a_strict_winner() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 3.0]])
    assert lead(logits, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    assert lead(logits, torch.tensor([0, 0])).tolist() == [-2.0, -2.0]


def test_predict_queries_in_fixed_batches() -> None:
    seen = []

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x

    assert predict(Model(), torch.rand(BATCH + 1, 3), 3).shape == (BATCH + 1, 3)
    assert seen == [BATCH, 1]


def test_fewer_large_inputs_go_through_a_model_at_once() -> None:
    assert rows_at_once((1, 28, 28), 512) == rows_at_once((30,), 512) == 512
    assert rows_at_once((3, 32, 32), 512) == 65
    assert rows_at_once((3, 32, 32), 512, 8) == 32
    assert rows_at_once((1, 28, 28), 512, 8) == 512
    assert rows_at_once((3, 32, 32), ODD_BATCH) == 24  # still a size at which nobody else asks
    assert rows_at_once((3, 224, 224), 512) == 32
    assert rows_at_once((3, 224, 224), 2) == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x[:, :2],
        lambda x: x[:1],
        lambda x: x.argmax(1),
        lambda x: x.long(),
        lambda x: (x, x),
    ],
)
def test_a_model_that_breaks_its_contract_is_named(answer) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return answer(x)

    with pytest.raises(ContractError, match="must return"):
        predict(Model(), torch.rand(4, 3), 3)


def test_hashes_tell_rows_apart() -> None:
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    first, second, third = hashes(x)
    assert first == second != third


def test_distances_are_measured_in_parts_and_are_those_of_the_whole(monkeypatch) -> None:
    x = torch.rand(50, 3, 2, 2)
    moved = (x + 0.2 * torch.randn(50, 3, 2, 2)).where(torch.rand(50, 3, 2, 2) < 0.5, x)
    moved[7, 0, 0, 0] = math.nan
    whole = distances(x, moved)
    monkeypatch.setattr("bench.measure.query.BATCH", 7)
    parts = distances(x, moved)
    for name in ("l0_features", "l0_pixels", "l2", "linf", "finite", "in_box"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    assert len(distances(x[:0], x[:0]).l2) == 0


class Drawing(nn.Module):
    """Answers one of ``answers`` after the other, a query each."""

    def __init__(self, *answers: list[float]) -> None:
        super().__init__()
        self.answers, self.asked = answers, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return torch.tensor(self.answers[self.asked % len(self.answers)]).expand(len(x), -1)


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ([[5.0, 0.0, math.nan]], NO_ANSWER),
        ([[2.0, 2.0, 0.0], [0.0, 2.0, 2.0]], NO_ANSWER),  # whose mean would name the second
        ([[5.0, 0.0, -math.inf]], NO_ANSWER),
        ([[5.0, 0.0, math.nan], [0.0, 3.0, 1.0], [0.0, 3.0, 1.0]], 1),
    ],
)
def test_of_draws_that_mostly_name_no_class_none_is_made(
    drawn: list[list[float]], expected: int
) -> None:
    assert answer(ask(Drawing(*drawn), torch.zeros(2, 4), 3, draws=11)).tolist() == [expected] * 2


def test_an_average_leaves_out_draws_without_an_answer() -> None:
    found = Average(Drawing([0.0, 3.0, 1.0], [math.nan, 3.0, 1.0]), 2)(torch.zeros(1, 4))
    assert answer(found).item() == 1
    none = Average(Drawing([math.nan, 3.0, 1.0]), 2)(torch.zeros(1, 4))
    assert answer(none).item() == NO_ANSWER
