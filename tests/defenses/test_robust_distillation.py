"""What each manipulation keeps of a teacher's logits, and that nothing else reaches the student."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.base.types import Spec, UserError
from bench.plugins import registry
from bench.plugins.contracts import FitContext
from bench.plugins.data import Split
from defenses.robust_distillation import Keep, RobustDistillation, manipulate
from defenses.teachers import TeacherError
from tests.defenses.conftest import SHORT, seeded

KEEPS: tuple[Any, ...] = get_args(Keep)
LOOK_AT_OTHERS = sorted(set(KEEPS) - {"all", "label"})


def left(z: Tensor, keep: Keep, temperature: float = 1.0, seed: int = 0) -> Tensor:
    return manipulate(z, keep, temperature, seeded(seed))


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    """Logits (n, classes) in float64, whose largest and smallest differ by some 30 at most."""
    rows, classes = draw(st.integers(1, 8)), draw(st.integers(3, 12))
    scale = draw(st.floats(0.01, 5.0))
    return (
        scale * torch.randn(rows, classes, generator=seeded(draw(st.integers(0, 10**6)))).double()
    )


temperatures = st.floats(0.5, 100.0)
each_way = settings(max_examples=40, deadline=None)


def back(labels: Tensor, z: Tensor, temperature: float) -> Tensor:
    """Return the logits of ``labels``, softmax at ``temperature``, with the largest of ``z``."""
    logs = labels.double().log()
    return z.amax(dim=1, keepdim=True) + temperature * (logs - logs.amax(dim=1, keepdim=True))


def beside(values: Tensor, z: Tensor) -> Tensor:
    """Return ``values`` (n, classes - 1) of the classes beside the largest of ``z``, by number."""
    top = nn.functional.one_hot(z.argmax(dim=1), z.shape[1]).bool()
    return values[~top].view(len(z), -1)


@pytest.mark.parametrize("keep", KEEPS)
@given(z=logits(), temperature=temperatures, shift=st.floats(-1e3, 1e3))
@each_way
def test_rows_are_distributions_led_by_the_same_class(
    keep: Keep, z: Tensor, temperature: float, shift: float
) -> None:
    labels = left(z, keep, temperature)
    assert labels.shape == z.shape
    assert labels.dtype == torch.float32
    assert torch.allclose(labels.sum(dim=1), torch.ones(len(z)), atol=1e-6)
    assert (labels >= 0).all()
    top = z.argmax(dim=1, keepdim=True)
    assert torch.equal(labels.gather(1, top), labels.amax(dim=1, keepdim=True))
    # Logits are known up to a constant a row.
    shifts = shift * torch.linspace(-1, 1, len(z), dtype=torch.float64)[:, None]
    assert torch.allclose(left(z + shifts, keep, temperature), labels, atol=1e-6)


@given(z=logits(), temperature=temperatures)
@each_way
def test_all_is_the_softmax_at_t(z: Tensor, temperature: float) -> None:
    expected = (z / temperature).softmax(dim=1).float()
    assert torch.allclose(left(z, "all", temperature), expected, atol=1e-7)


@given(z=logits(), temperature=temperatures)
@each_way
def test_max_keeps_the_largest_logit_and_the_sum(z: Tensor, temperature: float) -> None:
    kept = back(left(z, "max", temperature), z, temperature)
    mean = beside(z, z).mean(dim=1, keepdim=True)
    assert torch.allclose(beside(kept, z), mean.expand(-1, z.shape[1] - 1), atol=1e-4)
    assert torch.allclose(kept.sum(dim=1), z.sum(dim=1), atol=1e-3)


@given(z=logits(), temperature=temperatures)
@each_way
def test_gap_puts_every_other_class_at_the_runner_up(z: Tensor, temperature: float) -> None:
    kept = back(left(z, "gap", temperature), z, temperature)
    runner_up = z.topk(2, dim=1).values[:, 1:]
    assert torch.allclose(beside(kept, z), runner_up.expand(-1, z.shape[1] - 1), atol=1e-4)


@given(z=logits(), temperature=temperatures)
@each_way
def test_confidence_keeps_the_largest_probability(z: Tensor, temperature: float) -> None:
    labels = left(z, "confidence", temperature)
    top = (z / temperature).softmax(dim=1).amax(dim=1, keepdim=True)
    others = ((1 - top) / (z.shape[1] - 1)).float()
    assert torch.allclose(labels.amax(dim=1, keepdim=True), top.float(), atol=1e-6)
    assert torch.allclose(beside(labels, z), others.expand(-1, z.shape[1] - 1), atol=1e-6)


@pytest.mark.parametrize("keep", ["values", "fixed_order"])
@given(z=logits(), temperature=temperatures)
@each_way
def test_the_values_of_a_row_are_kept(keep: Keep, z: Tensor, temperature: float) -> None:
    labels, expected = left(z, keep, temperature), left(z, "all", temperature)
    assert torch.equal(labels.sort(dim=1).values, expected.sort(dim=1).values)
    assert torch.equal(labels.amax(dim=1), labels.gather(1, z.argmax(dim=1)[:, None])[:, 0])


@given(z=logits(), temperature=temperatures)
@each_way
def test_fixed_order_descends_by_the_number_of_the_class(z: Tensor, temperature: float) -> None:
    others = beside(left(z, "fixed_order", temperature), z)
    assert (others.diff(dim=1) <= 0).all()


@given(z=logits(), temperature=temperatures)
@each_way
def test_order_is_the_average_profile_in_the_order_of_the_row(
    z: Tensor, temperature: float
) -> None:
    labels = left(z, "order", temperature)
    ranked, order = z.sort(dim=1, descending=True)
    profile = (-(ranked[:, :1] - ranked).mean(dim=0) / temperature).softmax(dim=0).float()
    assert torch.allclose(labels.gather(1, order), profile.expand(len(z), -1), atol=1e-6)
    assert torch.equal(labels.amax(dim=1), labels.amax().expand(len(z)))


@given(z=logits(), temperature=temperatures)
@each_way
def test_label_is_one_hot(z: Tensor, temperature: float) -> None:
    expected = nn.functional.one_hot(z.argmax(dim=1), z.shape[1]).float()
    assert torch.equal(left(z, "label", temperature), expected)


def test_values_are_shuffled_by_the_seed_and_for_each_sample() -> None:
    z = torch.tensor([3.0, 0.0, 4.0, 1.0, 2.0]).expand(6000, 5)
    labels = left(z, "values")
    assert torch.equal(left(z, "values"), labels)
    assert not torch.equal(left(z, "values", seed=1), labels)
    # Each of the 24 orders of the other four equally often: 250 times, standard deviation 15.5.
    assert (labels.argmax(dim=1) == 2).all()
    orders = beside(labels, z).argsort(dim=1) @ torch.tensor([64, 16, 4, 1])
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 250).abs().max() < 5 * 15.5


@pytest.mark.parametrize("keep", KEEPS)
def test_no_class_overtakes_the_first_of_equals(keep: Keep) -> None:
    z = torch.tensor([[2.0, 2.0, 0.0, 1.0], [0.0, 3.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    labels = left(z, keep)
    first = torch.tensor([[0], [1], [0]])
    assert torch.equal(labels.gather(1, first), labels.amax(dim=1, keepdim=True))
    if keep == "label":
        assert torch.equal(labels.argmax(dim=1), first[:, 0])
    elif keep != "order":  # which gives every row the average profile
        assert torch.equal(labels[2], torch.full((4,), 0.25))


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e6])
def test_extreme_logits_stay_finite(keep: Keep, temperature: float) -> None:
    largest = torch.finfo(torch.float32).max
    rows = [[1e4, -1e4, 0.0, 9999.0], [-1e4, -1e4, -1e4, 1e4], [largest, -largest, 0.0, 1.0]]
    z = torch.tensor(rows)
    labels = left(z, keep, temperature)
    assert torch.isfinite(labels).all()
    assert torch.allclose(labels.sum(dim=1), torch.ones(3), atol=1e-6)
    top = z.argmax(dim=1, keepdim=True)
    assert torch.equal(labels.gather(1, top), labels.amax(dim=1, keepdim=True))


def fit(defense: RobustDistillation, data: Any, classes: int = 3) -> Any:
    """Return the teacher's logits, and what the training loop is asked to do."""
    asked = SimpleNamespace()

    def train(model: nn.Module, x: Tensor, targets: Tensor, *, temperature: float) -> None:
        asked.x, asked.targets, asked.temperature = x, targets, temperature

    # Right on all that it is asked: the label is the first feature.
    def taught(split: Split) -> Split:
        x = split.x.clone()
        x[:, 0, 0, 0] = (split.y % classes).float() / 2
        return Split(x, split.y % classes)

    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            label = (2 * x[:, 0, 0, 0]).long()
            return 5 * nn.functional.one_hot(label, classes) + x.flatten(1)[:, 1 : 1 + classes]

    info = replace(data.info, classes=classes)
    context = FitContext(
        info, {"teacher": Teacher()}, taught(data.validation), SHORT, seeded(7), train,
        registry.ATTACKS.make,
    )  # fmt: skip
    split = taught(data.train)
    defense.fit(nn.Identity(), split, context)
    assert asked.x is split.x  # clean, every one of them
    asked.logits = Teacher()(split.x)
    return asked


@pytest.mark.parametrize("keep", KEEPS)
def test_the_student_learns_what_is_left_at_t(data, keep: Keep) -> None:
    asked = fit(RobustDistillation("undefended", 3.0, keep), data)
    assert asked.temperature == 3.0
    assert torch.equal(asked.targets, left(asked.logits, keep, 3.0, seed=7))


@pytest.mark.parametrize("keep", LOOK_AT_OTHERS)
def test_two_classes_have_nothing_beside_the_largest_to_change(data, keep: Keep) -> None:
    message = f'keep = "{keep}" .* at least 3 classes, got 2: use "all" or "label"'
    with pytest.raises(TeacherError, match=message):
        fit(RobustDistillation("undefended", 1.0, keep), data, classes=2)


@pytest.mark.parametrize("keep", ["all", "label"])
def test_two_classes_can_be_taught(data, keep: Keep) -> None:
    asked = fit(RobustDistillation("undefended", 1.0, keep), data, classes=2)
    assert torch.equal(asked.targets, left(asked.logits, keep))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        RobustDistillation(temperature=temperature)


def test_an_unknown_manipulation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep must be one of \('all', .*'label'\), got 'some'"):
        RobustDistillation(keep="some")
    with pytest.raises(UserError, match=r"keep: .*'all', 'max'.*, got 'some'"):
        registry.DEFENSES.make(Spec("robust_distillation", {"keep": "some"}))
