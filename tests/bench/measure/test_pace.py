"""How long models take, in turns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.measure.pace import LEAST, ROUNDS, in_turns


class Work(nn.Module):
    """A network that does its work so many times, and counts its rows."""

    def __init__(self, times: int, asked: list[tuple[int, int]]) -> None:
        super().__init__()
        self.times = times
        self.asked = asked

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits."""
        self.asked.append((self.times, len(x)))
        y = x
        for _ in range(self.times):
            y = torch.tanh(y @ x.T @ x)
        return y[:, :2]


def test_models_take_turns_forwards_and_backwards_on_the_same_rows() -> None:
    asked: list[tuple[int, int]] = []
    models = {"a": Work(1, asked), "b": Work(2, asked), "c": Work(3, asked)}
    pace = in_turns(models, torch.rand(60, 4), 2)
    assert pace.rows == 60
    assert {name: len(told) for name, told in pace.seconds.items()} == dict.fromkeys("abc", ROUNDS)
    turns = [times for times, rows in asked if rows == 60]
    assert turns[:6] == [1, 2, 3, 3, 2, 1]
    assert len(turns) == 3 * ROUNDS


def test_slow_models_are_asked_about_fewer_rows(monkeypatch) -> None:
    monkeypatch.setattr("bench.measure.pace.SECONDS", 0.0)
    pace = in_turns({"a": Work(1, [])}, torch.rand(500, 4), 2)
    assert pace.rows == LEAST
