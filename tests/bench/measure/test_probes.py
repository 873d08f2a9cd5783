"""Probes against closed forms: a linear network's gradients are known to any precision."""

import math

import mpmath
import pytest
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo
from bench.measure.probes import Samples, describe, jacobian, probe, sensitivity
from bench.measure.recast import View
from bench.plugins.data import Dataset, Split

INPUTS, CLASSES = 5, 4


def linear(scale: float) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(INPUTS, CLASSES)
    with torch.no_grad():
        model.weight.mul_(scale)
        model.bias.mul_(scale)
    return model


def inputs(count: int = 6) -> Tensor:
    return torch.rand(count, INPUTS, generator=torch.Generator().manual_seed(1))


def exact(model: nn.Linear, x: Tensor) -> tuple[float, float]:
    """Return log10 of mean |dF_p/dx| and of the Jacobian's norm, in 1,500 digits: 1 - F is tiny."""
    with mpmath.workdps(1500):
        w = [[mpmath.mpf(float(v)) for v in row] for row in model.weight.tolist()]
        logits = [
            mpmath.fsum(a * mpmath.mpf(float(b)) for a, b in zip(row, x.tolist(), strict=True))
            + mpmath.mpf(float(bias))
            for row, bias in zip(w, model.bias.tolist(), strict=True)
        ]
        total = mpmath.fsum(mpmath.exp(z) for z in logits)
        probs = [mpmath.exp(z) / total for z in logits]
        mean = [mpmath.fsum(p * row[i] for p, row in zip(probs, w, strict=True)) for i in range(5)]
        rows = [[p * (row[i] - mean[i]) for i in range(5)] for p, row in zip(probs, w, strict=True)]
        top = max(range(CLASSES), key=lambda c: probs[c])
        slope = mpmath.fsum(abs(v) for v in rows[top]) / INPUTS
        norm = mpmath.sqrt(mpmath.fsum(v * v for row in rows for v in row))
        return float(mpmath.log10(slope)), float(mpmath.log10(norm))


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_sensitivity_and_jacobian_equal_exact_arithmetic(scale: float) -> None:
    # At 3000 the gradients lie below what float64 can hold.
    model, x = linear(scale), inputs()
    found, norms = sensitivity(model, x)[:, 0], jacobian(model, x)
    wanted = [exact(model, row) for row in x]
    # The logits themselves are float32: a relative error of 1e-7 of a logit of 3000.
    slack = 1e-5 + 1e-6 * scale
    assert found.tolist() == pytest.approx([a for a, _ in wanted], abs=slack)
    assert norms.tolist() == pytest.approx([b for _, b in wanted], abs=slack)
    assert scale < 3000 or found.min() < -330


def test_a_gradient_that_float32_loses_is_counted() -> None:
    assert not sensitivity(linear(1.0), inputs())[:, 1].any()
    lost = sensitivity(linear(3000.0), inputs())
    assert lost[:, 1].all()
    assert torch.isfinite(lost[:, 0]).all()


class Detached(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Crash(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if logits.requires_grad:
            logits.register_hook(lambda _: (_ for _ in ()).throw(RuntimeError("no way back")))
        return logits


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(len(x), 1)


def dataset() -> Dataset:
    info = DataInfo("tiny", (INPUTS,), CLASSES, (0.0,), (1.0,))
    split = Split(inputs(8), torch.arange(8) % CLASSES)
    return Dataset(info, split, split, split, "tiny")


def found(model: nn.Module, sources: int = 4, gradients: int | None = 6):
    return probe(model.eval(), dataset(), Samples(gradients, sources, 0))


def test_rows_of_both_splits_and_gradients_on_the_first_sources() -> None:
    rows = found(linear(1.0)).rows
    test, train = rows[rows["split"] == "test"], rows[rows["split"] == "train"]
    assert len(test) == len(train) == 8
    assert train["sensitivity"].isna().all()
    order = dataset().sources(None, 0).tolist()
    assert set(test.loc[test["sensitivity"].notna(), "sample_id"]) == set(order[:6])
    assert set(test.loc[test["gradient_cosine"].notna(), "sample_id"]) == set(order[:4])
    assert test["gradient_cosine"].dropna().tolist() == pytest.approx([1.0] * 4, abs=1e-4)


def test_a_detached_gradient_is_zero_and_no_error() -> None:
    result = found(Detached(INPUTS, CLASSES))
    assert result.errors == {}
    rows = result.rows.dropna(subset=["cross_entropy_zero"])
    assert (rows["cross_entropy_zero"] == 1).all()
    assert (rows["gradient_cosine"] == 0).all()
    assert (rows["sensitivity"] == -math.inf).all()


def test_a_crash_in_backward_is_named_and_leaves_the_rest() -> None:
    result = found(Crash(INPUTS, CLASSES))
    assert "no way back" in result.errors["gradients"]
    assert result.rows["sensitivity"].isna().all()
    assert result.rows["prediction"].notna().all()


def test_a_model_that_answers_otherwise_the_second_time_is_noticed() -> None:
    assert (found(Noisy(INPUTS, CLASSES)).rows["answer_differs"].dropna() == 1).all()
    assert (found(linear(1.0)).rows["answer_differs"].dropna() == 0).all()


def test_probabilities_in_place_of_logits_are_noticed() -> None:
    model = nn.Sequential(linear(1.0), nn.Softmax(dim=1))
    data = dataset()
    assert describe(model, data.test, CLASSES)["sums_to_one"].all()
    assert not describe(linear(1.0), data.test, CLASSES)["sums_to_one"].any()


def test_a_view_is_the_same_network_in_float64_at_a_temperature() -> None:
    model, x = linear(3.0), inputs()
    seen = View(model, torch.float64, temperature=2.0)(x.double())
    truth = x.double() @ model.weight.double().T + model.bias.double()
    torch.testing.assert_close(seen, truth / 2, rtol=1e-14, atol=1e-14)
    calls = []
    with model.register_forward_hook(lambda *_: calls.append(1)):
        View(model)(x)
    assert calls == [1]  # the runner counts queries by such a hook
    with pytest.raises(ValueError, match="temperature must be positive"):
        View(model, temperature=0.0)
