"""Attacks by the gradient of a surrogate: the model answers, something like it leads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.surrogate import Backward, Neighbourhood, Surrogate
from bench.base.types import DataInfo, Spec, ThreatModel, UserError
from bench.measure.cell import Sources, attack_sources
from bench.plugins import discovery, registry
from bench.plugins.contracts import AttackContext

INFO = DataInfo("tiny", (6,), 3, (0.5,), (0.3,))


@pytest.fixture(autouse=True, scope="module")
def _plugins() -> None:
    discovery.load_plugins()


def make(**params: Any) -> Surrogate:
    attack = registry.ATTACKS.make(Spec("surrogate", params))
    assert isinstance(attack, Surrogate)
    return attack


class Rippled(nn.Module):
    """A linear model behind a ripple: 3/4 of its slopes point the wrong way, none of its answers.

    The input moves by 0.0012 at most; the derivative lies between -2 and 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(self, x: Tensor) -> Tensor:
        turns = 2 * torch.pi * 400
        logits: Tensor = self.linear(x + 3 / turns * (turns * x).sin())
        return logits


def linear() -> nn.Module:
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))
        layer.bias.zero_()
    return layer


def sources(model: nn.Module) -> Sources:
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(2))
    return Sources(torch.arange(40), x, model(x).argmax(dim=1))


def left(model: nn.Module, name: str, params: dict[str, Any], student: nn.Module) -> int:
    attack = registry.ATTACKS.make(Spec(name, params))
    given = sources(model)
    torch.manual_seed(0)
    context = AttackContext(INFO, 0, {"student": student} if attack.requires() else {})
    records = attack_sources(model, attack, given, context).records
    assert records["in_budget"].all()
    return len(given.ids) - int(records["misclassified"].sum())


@pytest.mark.parametrize("gradient", ["neighbourhood", "student"])
@pytest.mark.parametrize(
    ("inner", "params"),
    [("apgd", {"eps": 0.1, "steps": 10}), ("sigma_zero", {"max_features": 1, "steps": 50})],
)
def test_it_breaks_through_a_ripple_what_the_network_behind_it_loses(
    gradient: str, inner: str, params: dict[str, Any]
) -> None:
    student = linear()  # of the same data
    with torch.no_grad():
        student.weight += torch.randn(3, 6, generator=torch.Generator().manual_seed(4))
    bare = left(linear(), inner, params, student)
    hidden = left(Rippled(), inner, params, student)
    through = left(
        Rippled(), "surrogate", {"gradient": gradient, "attack": inner, **params}, student
    )
    assert hidden >= bare + 5
    assert 2 * (through - bare) <= hidden - bare  # at least half of what was hidden


def test_a_student_is_a_copy_and_the_fitted_network_stays_as_it_is() -> None:
    student = nn.Linear(6, 3)
    before = student.weight.detach().clone()
    left(Rippled(), "surrogate", {"gradient": "student", "steps": 2, "draws": 4}, student)
    assert torch.equal(student.weight, before)


def test_backward_answers_as_the_model_with_the_gradient_of_the_other() -> None:
    model, like = linear(), nn.Linear(6, 3)
    x = torch.rand(4, 6, requires_grad=True)
    logits = Backward(model, like)(x)
    assert torch.allclose(logits, model(x), atol=1e-6)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert torch.allclose(gradient, like.weight[0].expand(4, 6))  # type: ignore[operator]
    with torch.no_grad():
        assert torch.equal(Backward(model, like)(x), model(x))


def test_a_neighbourhood_stays_in_the_box_and_keeps_the_gradient_at_its_border() -> None:
    seen: list[Tensor] = []
    model = linear()
    model.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].detach()))
    x = torch.zeros(2, 6, requires_grad=True)
    logits = Neighbourhood(model, 0.5, 8)(x)
    assert logits.shape == (2, 3)
    assert seen[0].shape == (16, 6)
    assert 0 == seen[0].min() < seen[0].max() <= 1
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert torch.allclose(gradient, model.weight[1].expand(2, 6))  # type: ignore[operator,index]


def test_goal_threat_and_access_are_told() -> None:
    attack = make(attack="sigma_zero", max_features=2, targets="all", gradient="student")
    assert attack.threat((8,)) == ThreatModel("l0", 0.25, "features")
    assert attack.targeted
    assert attack.access == "scores"
    assert set(attack.requires()) == {"student"}
    assert make().access == "gradients"
    assert not make().requires()


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"attack": "square"}, "follows gradients"),
        ({"attack": "transfer"}, "which needs other models"),
        ({"attack": "patch"}, "which learns before it attacks"),
        ({"gradient": "twin"}, "gradient must be"),
        ({"sigma": 0.0}, "sigma"),
        ({"draws": 0}, "draws"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_is_refused(params: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        make(**params)


def test_without_a_network_to_teach_it_says_what_to_do() -> None:
    with pytest.raises(UserError, match="undefended network to teach"):
        attack_sources(linear(), make(gradient="student"), sources(linear()), AttackContext(INFO))
