"""The same question asked otherwise: honest networks answer the same, each other kind is named."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.suspicion.consistency import WAYS, Cause, consistency

CAUSES: tuple[Cause, ...] = ("stochastic", "batch-dependent", "stateful")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    ).eval()


def inputs(count: int = 9) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.memory: Tensor | None = None
        self.asked = 0


class Noise(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.3 * torch.randn_like(x))


class BatchMean(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x - x.mean(dim=0))


class Dither(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        seed = int(x.detach().double().sum() * 1e6)
        generator = torch.Generator().manual_seed(seed)
        return self.network(x + 0.3 * torch.randn(x.shape, generator=generator))


class WithGradients(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(1 - x if x.requires_grad else x)


class First(Wrapped):
    """Remembers the first batch, and answers what is near it by its answers."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        if self.memory is None:
            self.memory = logits.detach()
            self.bias = logits.detach().mean(dim=0)
        return logits + self.bias


class Worn(Wrapped):
    """Another network after a few questions."""

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return self.network(x if self.asked < 85 else 1 - x)


class Refuses(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise RuntimeError("more than one row, please")
        return self.network(x)


@pytest.mark.parametrize("low", [None, torch.float16, torch.bfloat16])
def test_an_honest_network_answers_every_way_alike(low: torch.dtype | None) -> None:
    model, x = network(), inputs()
    if low is not None:
        model, x = model.to(low), x.to(low)
    found = consistency(model, x, lambda: copy.deepcopy(model))
    assert found.refused == {}
    assert set(found.difference) == {way for ways in WAYS.values() for way in ways}
    for cause in CAUSES:
        assert not found.rows(cause).any(), (cause, found.difference)


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (Noise, "stochastic"),
        (BatchMean, "batch-dependent"),
        (Dither, "batch-dependent"),
        (WithGradients, "batch-dependent"),
        (First, "stateful"),
        (Worn, "stateful"),
    ],
)
def test_what_differs_is_named(make: Callable[[], nn.Module], cause: Cause) -> None:
    found = consistency(make().eval(), inputs(), lambda: make().eval())
    for other in CAUSES:
        assert found.rows(other).any() == (other == cause), (other, found.difference)


def test_a_model_that_refuses_single_rows_is_asked_otherwise() -> None:
    found = consistency(Refuses().eval(), inputs(), lambda: Refuses().eval())
    assert found.refused == {"alone": "RuntimeError: more than one row, please"}
    assert not any(found.rows(cause).any() for cause in CAUSES)


def test_silence_is_an_answer_and_must_stay_one() -> None:
    class Silent(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            self.asked += 1
            return self.network(x) * (torch.nan if self.asked > 1 else 1.0)

    assert torch.isinf(consistency(Silent().eval(), inputs()).difference["again"]).all()
    with pytest.raises(ValueError, match="no rows"):
        consistency(network(), inputs(0))
