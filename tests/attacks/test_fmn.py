"""FMN against the nearest adversarial of a linear model, and models that are hard to ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.fmn import FMN, fmn
from attacks.kit.ball import BallNorm
from attacks.kit.losses import reached
from bench.base.types import ThreatModel

NORMS: list[BallNorm] = ["linf", "l2"]


class Refusing(nn.Module):
    """A model that cannot answer for no rows, and whose gradient may be missing."""

    def __init__(self, network: nn.Module, *, detached: bool = False) -> None:
        super().__init__()
        self.network, self.detached = network, detached

    def forward(self, x: Tensor) -> Tensor:
        assert len(x), "asked about zero rows"
        logits: Tensor = self.network(x)
        return logits.detach() if self.detached else logits


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a linear model, inputs so far inside the box that it is out of reach, and labels."""
    generator = torch.Generator().manual_seed(classes)
    model = nn.Linear(7, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, 7, generator=generator))
        model.bias.copy_(-model.weight.sum(1) / 2)  # all tie in the middle of the box
        x = 0.5 + 0.2 * (torch.rand(40, 7, generator=generator) - 0.5)
        return Refusing(model), x, model(x).argmax(1)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_adversarial_of_a_linear_model(norm: BallNorm, classes: int) -> None:
    model, x, y = linear(classes)
    model, x = model.double(), x.double()  # the nearest lie a thousandth away
    with torch.no_grad():
        weight, logits = model.network.weight, model(x)
        slope = (weight - weight[y][:, None]).norm(1 if norm == "linf" else 2, dim=2)
        gap = logits.gather(1, y[:, None]) - logits
        nearest = (gap / slope).masked_fill(gap == 0, torch.inf).amin(1)
    found = fmn(model, x, y, norm=norm, steps=200)
    assert found.success.all()
    assert torch.equal(found.success, reached(model(found.x_adv), y, None))
    ratio = found.distance / nearest
    assert ratio.min() >= 1 - 1e-4
    assert ratio.median() <= 1.02
    change = (found.x_adv - x).norm(torch.inf if norm == "linf" else 2, dim=1)
    assert torch.allclose(change, found.distance, atol=1e-6)
    eps = float(nearest.median())
    within = fmn(model, x, y, eps=eps, norm=norm, steps=200)
    assert not (within.success & (nearest > eps * 1.0001)).any()
    # With several classes the one of the largest logit need not be the nearest.
    assert within.success[nearest < 0.9 * eps].float().mean() >= (1 if classes == 2 else 0.8)
    assert torch.equal(within.x_adv[~within.success], x[~within.success])
    assert int(within.iterations.sum()) < int(found.iterations.sum())


@pytest.mark.parametrize("norm", NORMS)
def test_neither_batch_nor_chunk_nor_order_matters(norm: BallNorm) -> None:
    model, x, y = linear(4)
    model, x = model.double(), x.double()
    whole = fmn(model, x, y, norm=norm, steps=30)
    for rows, chunk in ((torch.arange(40), 7), (torch.tensor([31, 3, 17]), None)):
        part = fmn(model, x[rows], y[rows], norm=norm, steps=30, chunk=chunk)
        assert torch.allclose(part.x_adv, whole.x_adv[rows], atol=1e-9)
    assert whole.x_adv.dtype == torch.float64


def test_targets_no_rows_and_missing_gradients() -> None:
    model, x, y = linear(3)
    target = (y + 1) % 3
    found = fmn(model, x, y, target)
    assert found.success.any()
    assert torch.equal(found.success, reached(model(found.x_adv), y, target))
    assert fmn(model, x[:0], y[:0]).x_adv.shape == (0, 7)
    hidden = fmn(Refusing(model, detached=True), x, y, steps=4)
    assert not hidden.success.any()
    assert torch.equal(hidden.x_adv, x)
    assert hidden.zero_gradients.eq(4).all()
    assert hidden.distance.isinf().all()


def test_nothing_of_the_model_is_left_changed() -> None:
    _, x, y = linear(3)
    model = nn.Sequential(nn.Linear(7, 3), nn.Dropout(0.5)).train()
    model[0].bias.requires_grad_(False)
    fmn(model, x, y, steps=2)
    assert all(module.training for module in model.modules())
    assert [w.requires_grad for w in model.parameters()] == [True, False]
    assert all(w.grad is None for w in model.parameters())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eps": 1.5, "norm": "linf"}, r"eps must be in \(0, 1\], got 1.5"),
        ({"norm": "l1"}, "norm must be one of .*got 'l1'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"gamma": 1.0}, r"gamma must be in \(0, 1\), got 1.0"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    model, x, y = linear(3)
    with pytest.raises(ValueError, match=message):
        FMN(**params)
    with pytest.raises(ValueError, match=message):
        fmn(model, x, y, **params)
    with pytest.raises(ValueError, match="targets must be one of"):
        FMN(targets="most")  # type: ignore[arg-type]
    assert FMN().threat((7,)) == ThreatModel("l2")
    assert FMN(0.1, "linf").threat((7,)) == ThreatModel("linf", 0.1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_model_without_an_answer_is_left_at_once(norm: BallNorm) -> None:
    class Band(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.mean(dim=1), 1 - x.mean(dim=1)], dim=1)
            return logits.masked_fill((x.mean(dim=1) < 0.55)[:, None], torch.nan)

    x, y = torch.full((2, 4), 0.8), torch.zeros(2, dtype=torch.int64)
    found = fmn(Band(), x, y, norm=norm, steps=50)
    assert found.success.all()
    assert Band()(found.x_adv).isnan().all()
    target = fmn(Band(), x, y, torch.ones_like(y), norm=norm, steps=50)
    assert target.x_adv.isfinite().all()
