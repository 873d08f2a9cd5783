"""The two losses by hand, and what the soft one tends to as T grows."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.base.types import Spec, UserError
from bench.plugins import registry
from bench.plugins.contracts import FitContext
from bench.training.networks import Mlp
from defenses.knowledge_distillation import KnowledgeDistillation
from tests.defenses.conftest import SHORT, seeded

Z = [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]]
TEACHER = [[0.5, 0.5, -1.0], [-1.0, 3.0, 1.0]]
Y = [2, 1]


def softmax(z: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in z]
    return [power / sum(powers) for power in powers]


def by_hand(temperature: float, weight: float) -> float:
    total = 0.0
    for z, teacher, y in zip(Z, TEACHER, Y, strict=True):
        hard = -math.log(softmax(z, 1.0)[y])
        pairs = zip(softmax(teacher, temperature), softmax(z, temperature), strict=True)
        soft = -sum(p * math.log(q) for p, q in pairs)
        total += (1 - weight) * hard + weight * temperature**2 * soft
    return total / len(Z)


def targets(teacher: Tensor, y: Tensor, temperature: float) -> Tensor:
    hard = nn.functional.one_hot(y, teacher.shape[1]).float()
    return torch.stack([hard, (teacher / temperature).softmax(dim=1)], dim=1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_objective_by_hand(temperature: float, weight: float) -> None:
    defense = KnowledgeDistillation(temperature=temperature, weight=weight)
    given = targets(torch.tensor(TEACHER), torch.tensor(Y), temperature)
    loss = defense.objective(nn.Identity(), torch.tensor(Z), given)
    assert loss.item() == pytest.approx(by_hand(temperature, weight), rel=1e-5)


def gradient(defense: KnowledgeDistillation, z: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    loss = defense.objective(nn.Identity(), leaf, targets(teacher, y, defense.temperature))
    return torch.autograd.grad(loss, leaf)[0] * len(z)


def test_weight_0_is_deaf_to_the_teacher_and_weight_1_to_the_labels() -> None:
    z, teacher, y = torch.tensor(Z), torch.tensor(TEACHER), torch.tensor(Y)
    hard, soft = KnowledgeDistillation(weight=0.0), KnowledgeDistillation(weight=1.0)
    expected = z.softmax(dim=1) - nn.functional.one_hot(y, 3)
    for answers in (teacher, -teacher):
        assert torch.allclose(gradient(hard, z, answers, y), expected, atol=1e-6)
    expected = 4 * ((z / 4).softmax(dim=1) - (teacher / 4).softmax(dim=1))
    for labels in (y, torch.tensor([0, 0])):
        assert torch.allclose(gradient(soft, z, teacher, labels), expected, atol=1e-6)


def test_the_soft_gradient_tends_to_matching_logits() -> None:
    # Section 2.1 of the paper, eq. 4: with zero-mean logits it is (z - v) / C, up to O(1 / T).
    z, teacher = torch.randn(2, 8, 10, generator=seeded())
    z, teacher = (v - v.mean(dim=1, keepdim=True) for v in (z, teacher))
    y = torch.zeros(8, dtype=torch.int64)

    def error(temperature: float) -> float:
        found = gradient(KnowledgeDistillation(temperature=temperature, weight=1.0), z, teacher, y)
        return float((found - (z - teacher) / 10).abs().max())

    assert error(1000.0) < 1e-3 * float((z - teacher).abs().max())
    assert error(10.0) / error(100.0) == pytest.approx(10, rel=0.2)


def test_labels_and_answers_go_to_the_loop_together(data) -> None:
    asked = SimpleNamespace()

    def train(model: nn.Module, x: Tensor, targets: Tensor, *, objective: Any) -> None:
        asked.x, asked.targets, asked.objective = x, targets, objective

    class Teacher(nn.Module):
        """Right where it is asked: it knows the validation split."""

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == len(data.validation):
                return nn.functional.one_hot(data.validation.y, 3).float()
            return x.flatten(1)[:, :3]

    context = FitContext(
        data.info, {"teacher": Teacher()}, data.validation, SHORT, seeded(), train,
        registry.ATTACKS.make,
    )  # fmt: skip
    assert len(data.train) != len(data.validation)
    defense = KnowledgeDistillation(temperature=2.0)
    defense.fit(nn.Identity(), data.train, context)
    assert asked.x is data.train.x
    assert asked.objective == defense.objective
    expected = targets(data.train.x.flatten(1)[:, :3], data.train.y, 2.0)
    assert torch.equal(asked.targets, expected)


def test_its_code_is_the_networks() -> None:
    assert KnowledgeDistillation(network="mlp").code() == (Mlp,)
    assert KnowledgeDistillation().code() == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weight": -0.1}, r"weight must be in \[0, 1\], got -0.1"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\], got 1.5"),
        ({"weight": math.nan}, r"weight must be in \[0, 1\], got nan"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.inf}, "temperature must be positive and finite, got inf"),
        ({"network": "mlq"}, "network: unknown network 'mlq': did you mean 'mlp'"),
        ({"teacher": "undefende"}, "teacher: unknown defense 'undefende'"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^defense 'knowledge_distillation': {message}"):
        registry.DEFENSES.make(Spec("knowledge_distillation", params))
