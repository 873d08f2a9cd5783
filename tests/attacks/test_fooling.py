"""Fooling inputs: closed forms on linear models, the noise, and what the harness makes of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from attacks.fooling import Fooling, fooling
from attacks.kit import draws
from attacks.noise import Noise
from bench.base.rows import Results
from bench.base.types import DataInfo, Outcome, ThreatModel
from bench.measure.cell import Sources, attack_sources
from bench.plan.panel import Panel
from bench.plugins.contracts import AttackContext
from bench.results.cell_metrics import summarise, worst_case
from bench.results.collect import row
from leaderboard.pages.leaderboard import render

FEATURES = 6
INFO = DataInfo("linear", (FEATURES,), 3, (0.5,), (0.3,))


class Slope(nn.Module):
    """Two classes; the log-odds of the second are w·x + b."""

    def __init__(self, scale: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(scale * torch.tensor([2.0, -1.0, 0.5, 3.0, -2.0, 1.0]))
        self.b = nn.Parameter(torch.tensor(bias))

    def odds(self, x: Tensor) -> Tensor:
        return x @ self.w + self.b

    def forward(self, x: Tensor) -> Tensor:
        odds = self.odds(x)
        return torch.stack([torch.zeros_like(odds), odds], 1)


class Three(nn.Module):
    """Three classes, linear; with ``hidden`` without a gradient."""

    def __init__(self, seed: int = 0, hidden: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(4 * torch.randn(3, FEATURES, generator=generator))
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        logits = (x - 0.5) @ self.weight.T
        return logits.detach() if self.hidden else logits


ROWS = 20
BLANK = torch.zeros(ROWS, FEATURES)
SECOND = torch.ones(ROWS, dtype=torch.int64)


def noise(restart: int = 0, seed: int = 0) -> Tensor:
    return draws.uniform(seed, restart, torch.arange(ROWS), FEATURES).float()


@pytest.mark.parametrize("output", ["probs", "deployed", "log_odds", "margin"])
def test_the_climb_on_a_linear_model_is_known(output: Any) -> None:
    model, size = Slope(), 0.05
    found = fooling(model, BLANK, SECOND, confidence=0.9, step_size=size, output=output, restarts=1)
    # Every gradient has the signs of w: after k steps x is the noise moved by k steps, clipped.
    path = torch.stack(
        [(noise() + k * size * model.w.sign()).clamp(0, 1) for k in range(100)]
    ).detach()
    first = (model.odds(path) >= math.log(0.9 / 0.1)).int().argmax(0)
    assert 0 < first.max() < 99
    assert found.success.all()
    assert found.iterations.tolist() == first.tolist()
    expected = path[first, torch.arange(ROWS)]
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.probability, model.odds(expected).sigmoid().double(), rtol=0, atol=1e-5
    )
    assert not found.zero_gradients.any()


def test_the_box_decides_what_can_be_reached() -> None:
    model = Slope(bias=-4.0)
    corner = (model.w > 0).float().expand(ROWS, -1)
    best = torch.sigmoid(model.odds(corner[:1]).double()).item()  # of 6.5 - 4: 92.4 %
    below = fooling(model, BLANK, SECOND, confidence=best - 1e-3, steps=30)
    above = fooling(model, BLANK, SECOND, confidence=best + 1e-3, steps=30, restarts=2)
    assert below.success.all()
    assert not above.success.any()
    assert torch.equal(above.x_adv, corner)
    assert above.probability.tolist() == pytest.approx([best] * ROWS, abs=1e-6)
    assert above.iterations.tolist() == [60] * ROWS


def test_the_papers_gradient_underflows_where_the_log_odds_climb() -> None:
    model = Slope(scale=100.0, bias=-400.0)  # the start's probability is below exp(-104): zero
    rows = model.odds(noise()) < -110
    assert rows.sum() > 5
    given = {"steps": 40, "restarts": 1}
    stuck = fooling(model, BLANK, SECOND, output="probs", **given)
    free = fooling(model, BLANK, SECOND, output="log_odds", **given)
    assert free.success.all()
    assert not stuck.success[rows].any()
    assert stuck.zero_gradients[rows].eq(40).all()
    assert torch.equal(stuck.x_adv[rows], noise()[rows])
    assert not free.zero_gradients.any()


def test_without_a_gradient_the_best_noise_of_all_restarts_is_kept() -> None:
    model, target, restarts = Three(hidden=True), torch.arange(ROWS) % 3, 4
    found = fooling(model, BLANK, target, confidence=0.8, steps=5, restarts=restarts)
    starts = torch.stack([noise(restart) for restart in range(restarts)])
    chances = model(starts).softmax(2)[:, torch.arange(ROWS), target]
    done = (chances >= 0.8).any(0)
    assert 0 < done.sum() < ROWS
    chosen = torch.where(done, (chances >= 0.8).int().argmax(0), chances.argmax(0))
    assert torch.equal(found.x_adv, starts[chosen, torch.arange(ROWS)])
    assert torch.equal(found.success, done)
    assert torch.equal(found.iterations, torch.where(done, 5 * chosen, 5 * restarts))
    assert torch.equal(found.zero_gradients, found.iterations)


def test_the_noise_belongs_to_the_row_and_the_values_of_x_do_not_count() -> None:
    model, target = Three(), torch.arange(ROWS) % 3
    given: dict[str, Any] = {"confidence": 0.9, "restarts": 2}
    whole = fooling(model, torch.full_like(BLANK, torch.nan), target, **given)
    small = fooling(model, BLANK, target, **given, chunk=3)
    assert torch.equal(whole.iterations, small.iterations)
    torch.testing.assert_close(whole.x_adv, small.x_adv, rtol=0, atol=1e-5)
    back = torch.arange(ROWS).flip(0)
    turned = fooling(model, BLANK, target[back], streams=back, **given)
    torch.testing.assert_close(turned.x_adv[back], whole.x_adv, rtol=0, atol=1e-5)
    other = fooling(model, BLANK, target, seed=1, confidence=1e-6, steps=1, restarts=1)
    still = other.iterations == 0
    assert torch.equal(other.x_adv[still], noise(seed=1)[still])


def test_a_probability_alone_is_no_win() -> None:
    class Level(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 1.0, 0.0]]).expand(len(x), 3)

    found = fooling(Level(), BLANK, SECOND, confidence=0.3, steps=2, restarts=1)
    assert found.probability.tolist() == pytest.approx([1 / (2 + 1 / math.e)] * ROWS)
    assert not found.success.any()


def test_nothing_of_the_model_is_left_changed() -> None:
    model = Three().train()
    model.weight.grad = torch.ones_like(model.weight)
    fooling(model, BLANK, SECOND)
    assert model.training
    assert model.weight.requires_grad
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))


def test_no_rows_and_float64() -> None:
    assert fooling(Three(), BLANK[:0], SECOND[:0]).x_adv.shape == (0, FEATURES)
    assert fooling(Three().double(), BLANK.double(), SECOND).x_adv.dtype == torch.float64


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
    ({"confidence": 0.0}, r"confidence must be in \(0, 1\), got 0.0"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"step_size": 1.5}, r"step_size must be in \(0, 1\], got 1.5"),
    ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ({"output": "dlr"}, "output must be one of .*'log_odds'.*needs a label.*got 'dlr'"),
    ({"chunk": 0}, "chunk must be at least 1"),
]


@pytest.mark.parametrize(
    ("params", "message"),
    [*MISTAKES, ({"targets": "untargeted"}, r"targets must be one of \('all', 'random'\)")],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fooling(**params)
    if "targets" not in params:
        with pytest.raises(ValueError, match=message):
            fooling(Three(), BLANK, SECOND, **params)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": BLANK.long()}, TypeError, "x must be floating-point"),
        ({"target": SECOND[:3]}, ValueError, r"target must have shape \(20,\)"),
        ({"target": SECOND.float()}, TypeError, "target must be integers"),
        ({"target": SECOND + 8}, ValueError, r"must be in \[0, 2\]"),
        ({"streams": SECOND[:3]}, ValueError, r"streams must have shape \(20,\)"),
    ],
)
def test_inputs_are_checked(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fooling(**{"model": Three(), "x": BLANK, "target": SECOND, **change})


def sources(model: nn.Module, seed: int = 0) -> Sources:
    x = torch.rand(8, FEATURES, generator=torch.Generator().manual_seed(seed))
    return Sources(torch.arange(8) + 30, x, model(x).argmax(1))


def test_the_runner_judges_target_and_confidence_and_compares_with_no_source() -> None:
    model = Three()
    attack = Fooling(confidence=0.97, restarts=2)
    found = attack_sources(model, attack, sources(model), AttackContext(INFO)).records
    assert len(found) == 16
    sure = found["adversarial_confidence"] >= 0.97
    assert found["success"].eq(sure & (found["adversarial_prediction"] == found["target"])).all()
    assert found["success"].eq(found["stop_reason"] == "reached").all()
    assert found["success"].any()
    assert attack.targeted
    assert attack.access == "gradients"
    # The label is lost everywhere where the target wins, but there is no source to be robust on.
    assert not found["misclassified"].any()
    assert worst_case([found], ThreatModel("linf", 1.0), (FEATURES,))["worst_case"] == 1.0


def test_only_the_sample_and_the_target_name_the_noise() -> None:
    attack, context = Fooling(steps=1, step_size=1e-9, restarts=1), AttackContext(INFO)
    first, second = Three(1, hidden=True), Three(2, hidden=True)
    one = sources(first)
    other = Sources(one.ids, 1 - one.x, one.y)
    kept = attack_sources(first, attack, one, context)
    assert torch.equal(kept.x_adv, attack_sources(first, attack, one, context).x_adv)
    assert kept.x_adv.unique(dim=0).shape == (16, FEATURES)
    ids = torch.tensor((kept.records["sample_id"] * 3 + kept.records["target"]).to_numpy())
    assert torch.equal(kept.x_adv, draws.uniform(0, 0, ids, FEATURES).float())
    goal = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    values = [
        attack.perturb(model, given.x, given.y, goal, AttackContext(INFO, sample_ids=given.ids))
        for model, given in ((first, one), (second, other))
    ]
    assert torch.equal(values[0].x_adv, values[1].x_adv)


def test_evaluate_and_the_page_show_no_distance() -> None:
    model = Three()
    given = sources(model)
    frame = bench.evaluate(model, given.x, given.y, [Fooling(), "pgd"])
    fooled, beside = frame.to_dict("records")
    assert fooled["success_rate"] == 1.0
    assert fooled["threat"] == {"norm": "none", "budget": None, "unit": "input"}
    assert fooled["robust_accuracy"] is None or math.isnan(fooled["robust_accuracy"])
    assert beside["robust_accuracy"] < 1
    records = attack_sources(model, Fooling(), given, AttackContext(INFO)).records
    identity = {
        "id": "1", "dataset": "d", "network": "n", "recipe": "r", "defense": "undefended",
        "defense_params": {}, "seed": 0, "attack": "fooling", "attack_params": {},
    }  # fmt: skip
    summary = summarise(records, ThreatModel("none"), FEATURES)
    line = row(identity, Outcome("done"), ThreatModel("none"), summary, {}, {}, 3)
    environment = {
        "matrix": {"name": "m", "description": "", "seeds": [0], "sources": 8}, "dataset": "d",
        "network": "n", "recipe": "r", "retort": "1", "device": "CPU", "libraries": {"torch": "2"},
    }  # fmt: skip
    page = render(Results([line], []), environment)
    assert "## d: any input\n" in page
    assert "There is no source image" in page
    table = page[page.index("## d: any input") :].partition("## The models")[0]
    assert "worst case |" not in table
    assert "| undefended |" in table
    assert "100.0 %" in table
    assert "ρ" not in table


def test_nothing_else_takes_the_norm_of_no_source() -> None:
    assert Fooling().threat((1, 8, 8)) == ThreatModel("none")
    with pytest.raises(ValueError, match="norm must be one of"):
        Noise(norm="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'l0', 'l2' or 'linf'"):
        Panel(norm="none", budgets=[0.1])  # type: ignore[arg-type]
