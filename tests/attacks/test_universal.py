"""One perturbation for all rows, inside the ball, and the one that is known on a linear model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.kit.ball import BallNorm
from attacks.universal import OnePerturbation, Universal, add, universal
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Sources, attack_sources
from bench.plugins.contracts import LEARNT, AttackContext
from bench.plugins.data import Split
from bench.training.loop import DivergedError

INFO = DataInfo("linear", (6,), 2, (0.5,), (0.3,))
NORMS: list[BallNorm] = ["linf", "l2"]


@pytest.fixture
def linear() -> tuple[nn.Module, Tensor, Tensor]:
    """Class 1 where the sum of the features exceeds 3, and inputs that are all of class 0."""
    model = nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.zeros(6), torch.ones(6)]))
        model.bias.copy_(torch.tensor([3.0, 0.0]))
    x = 0.2 + 0.2 * torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    return model, x, torch.zeros(50, dtype=torch.int64)


@pytest.mark.parametrize(("norm", "longest"), [("linf", 0.3), ("l2", 0.3 * 6**0.5)])
def test_on_a_linear_model_it_is_the_one_that_all_inputs_need(
    linear: tuple[nn.Module, Tensor, Tensor], norm: BallNorm, longest: float
) -> None:
    # Every feature by the same amount: at 0.3 the sum of every input exceeds 3.
    model, x, _ = linear
    delta = universal(model, x, eps=longest, norm=norm, fooling_rate=1.0, steps=100)
    assert delta.shape == (6,)
    assert float((model(x + delta).argmax(1) == 1).double().mean()) == 1.0
    assert float(torch.linalg.vector_norm(delta, ord=2 if norm == "l2" else torch.inf)) <= longest
    assert torch.allclose(delta, delta.mean().expand(6), atol=0.05)


def test_it_stops_at_the_fooling_rate(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, _ = linear
    asked = {rate: _Count(model) for rate in (0.1, 1.0)}
    for rate, counted in asked.items():
        universal(counted, x, eps=0.2, fooling_rate=rate, steps=100)
    assert asked[0.1].rows < asked[1.0].rows


class _Count(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits: Tensor = self.inner(x)
        return logits


@pytest.mark.parametrize("norm", NORMS)
def test_every_row_gets_the_same_and_stays_in_box_and_ball(norm: BallNorm) -> None:
    shape, eps = (3, 5, 4), 0.4
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, *shape, generator=generator)
    delta = 2 * torch.rand(shape, generator=generator) - 1
    if norm == "l2":
        delta *= eps / torch.linalg.vector_norm(delta)
    else:
        delta *= eps
    x_adv = add(x, delta, eps, norm)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    length = (x_adv - x).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert length.max() <= eps * (1 + 1e-6)
    inside = ((x + delta > 0) & (x + delta < 1)).flatten(1).all(1)
    unclipped = x_adv[inside] - x[inside] if norm == "l2" else (x_adv - x)
    shifted = delta.expand_as(unclipped)
    at = slice(None) if norm == "l2" else ((x + delta > 0) & (x + delta < 1))
    assert torch.allclose(unclipped[at], shifted[at], atol=1e-5)


def learnt(delta: Tensor) -> OnePerturbation:
    found = OnePerturbation(tuple(delta.shape))
    found.delta.data.copy_(delta)
    return found


def test_the_cell_asks_nothing_and_is_within_its_threat(
    linear: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = linear
    attack = Universal(eps=0.3)
    context = AttackContext(INFO, 0, {LEARNT: learnt(torch.full((6,), 0.3))})
    evidence = attack_sources(model, attack, Sources(torch.arange(50), x, y), context)
    assert evidence.records["success"].all()
    assert evidence.records["in_budget"].all()
    assert (evidence.forwards, evidence.backwards) == (0, 0)
    assert attack.threat((6,)) == ThreatModel("linf", 0.3)


def test_one_fit_serves_smaller_budgets_by_its_scale() -> None:
    attack = Universal(eps=0.1, fitted_eps=0.4)
    assert attack.fitted_as() == Universal(eps=0.4, fitted_eps=0.4)
    assert Universal(eps=0.1).fitted_as() == Universal(eps=0.1)
    x = torch.full((2, 6), 0.5)
    context = AttackContext(INFO, 0, {LEARNT: learnt(torch.full((6,), 0.4))})
    moved = attack.perturb(nn.Identity(), x, torch.zeros(2), None, context).x_adv
    assert torch.allclose(moved - x, torch.full((2, 6), 0.1))


def test_what_fools_nobody_is_returned_all_the_same(
    linear: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, _ = linear
    delta = universal(model, x, eps=0.01, steps=40)
    assert torch.allclose(delta, torch.full((6,), 0.01), atol=1e-3)


def test_inputs_of_several_shapes_are_refused() -> None:
    delta = torch.zeros(1, 8, 8)
    with pytest.raises(ValueError, match=r"learnt for inputs of shape \(1, 8, 8\), and these are"):
        add(torch.zeros(2, 1, 28, 28), delta, 0.1, "linf")
    mixed: Any = [torch.zeros(1, 8, 8), torch.zeros(1, 28, 28)]
    with pytest.raises(TypeError, match="one perturbation serves inputs of one shape"):
        universal(nn.Identity(), mixed, eps=0.1)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), torch.nan) * x.sum()

    with pytest.raises(DivergedError, match="its loss at step 1 is nan"):
        universal(Silent(), torch.rand(5, 6), eps=0.1)


def test_there_must_be_something_to_learn_from() -> None:
    from attacks.kit.learning import batches

    empty = Split(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="no training data"):
        next(batches(empty, 4, 4, torch.Generator()))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"eps": 1.5}, r"eps must be in \(0, 1\], got 1.5"),
        ({"norm": "l0"}, "norm must be one of"),
        ({"fooling_rate": 0.0}, "fooling_rate must be in"),
        ({"clip": -1.0}, "clip must be positive and finite"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"output": "probs"}, "output must be one of"),
        ({"fitted_eps": 2.0}, r"eps must be in \(0, 1\], got 2.0"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Universal(**params)
