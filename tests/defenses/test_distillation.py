"""Defensive distillation and its controls."""

import math

import pytest
import torch

from bench.plugins.contracts import DataSettings, FitContext
from bench.plugins.data import Split
from bench.plugins.recipes import RECIPES
from bench.training.datasets import Digits
from defenses.distillation import Distillation, TemperatureOnly, soften
from defenses.label_smoothing import LabelSmoothing, SoftLabel, smooth, soft_label

Z = torch.tensor(
    [-0.1192, -1.8580, 1.2193, 14.3442, -4.9071, 0.4101, 3.7067, -4.6348, -4.5286, -1.6535]
)


def test_the_papers_softmax_vector() -> None:
    # Papernot et al. 2016, section III-B.
    cold = [
        5.2313e-07, 9.1931e-08, 1.9949e-06, 9.9997e-01, 4.3577e-09,
        8.8815e-07, 2.3998e-05, 5.7215e-09, 6.3626e-09, 1.1279e-07,
    ]  # fmt: skip
    warm = [0.0995, 0.0978, 0.1009, 0.1150, 0.0949, 0.1001, 0.1034, 0.0951, 0.0952, 0.0980]
    assert soften(Z.double(), 1.0).tolist() == pytest.approx(cold, rel=2e-4)
    assert soften(Z.double(), 100.0).tolist() == pytest.approx(warm, abs=5.1e-5)
    # The paper prints 0.1000 for the fifth, which is 0.09995: half a unit of its last digit.
    hot = [0.1, 0.1, 0.1, 0.1001, *[0.1] * 6]
    assert soften(Z.double(), 10000.0).tolist() == pytest.approx(hot, abs=5.5e-5)


class Recorder:
    """Stands for the training loop, and remembers what it was asked to do."""

    def __call__(self, model, x, targets, *, temperature=1.0) -> None:
        self.x, self.targets, self.temperature = x, targets, temperature


@pytest.fixture(scope="module")
def train() -> Split:
    return Digits().load(DataSettings()).train.take(slice(0, 50))


def fit(defense, train: Split, **fitted: torch.nn.Module) -> Recorder:
    recorder = Recorder()
    info = Digits().load(DataSettings()).info
    generator = torch.Generator()
    context = FitContext(info, fitted, train, RECIPES["smoke"], generator, recorder, None)
    defense.fit(torch.nn.Identity(), train, context)
    return recorder


def test_the_student_learns_the_teachers_probabilities_at_t(train: Split) -> None:
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    asked = fit(Distillation(20.0), train, teacher=teacher)
    expected = torch.softmax(teacher(train.x) / 20.0, dim=1)
    assert asked.temperature == 20.0
    assert torch.allclose(asked.targets, expected)
    assert not asked.targets.requires_grad


def test_the_teacher_learns_hard_labels_at_t(train: Split) -> None:
    assert Distillation(30.0).requires() == {"teacher": TemperatureOnly(30.0)}
    asked = fit(TemperatureOnly(30.0), train)
    assert asked.temperature == 30.0
    assert torch.equal(asked.targets, train.y)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("defense", [Distillation, TemperatureOnly])
def test_an_impossible_temperature_is_refused(defense, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        defense(temperature)


def test_label_smoothing_by_hand(train: Split) -> None:
    assert smooth(torch.tensor([1]), 4, 0.2).tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05])]
    asked = fit(LabelSmoothing(0.1), train)
    assert asked.targets.sum(dim=1).tolist() == pytest.approx([1.0] * 50)
    for amount in (0.0, 1.0):
        with pytest.raises(ValueError, match="amount must be in"):
            LabelSmoothing(amount)


def test_the_papers_soft_label_is_normalised(train: Split) -> None:
    row = soft_label(torch.tensor([3]), 10)[0]
    assert row[3].item() == pytest.approx(0.9 / 0.99)
    assert row[0].item() == pytest.approx(0.01 / 0.99)
    assert fit(SoftLabel(), train).targets.sum(dim=1).tolist() == pytest.approx([1.0] * 50)
