"""An attack that asks on the levels of the data alone: where a model may have another face."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.quantised import OnLevels, Quantised, levels, towards
from bench.base.types import DataInfo, Spec
from bench.measure.cell import Sources, attack_sources
from bench.plugins import discovery, registry
from bench.plugins.contracts import AttackContext

INFO = DataInfo("tiny", (6,), 3, (0.5,), (0.3,))
STEPS = 16


@pytest.fixture(autouse=True, scope="module")
def _plugins() -> None:
    discovery.load_plugins()


def linear() -> nn.Module:
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))
        layer.bias.zero_()
    return layer


def sources() -> Sources:
    drawn = torch.randint(0, STEPS + 1, (40, 6), generator=torch.Generator().manual_seed(2))
    x = drawn / STEPS
    return Sources(torch.arange(40), x, linear()(x).argmax(dim=1))


class OnGrid(nn.Module):
    """The linear model on the levels of the data; between them the label of the nearest source."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.known = linear(), sources()

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.known.x).argmin(dim=1)
        stubborn = 5 * nn.functional.one_hot(self.known.y[nearest], 3) + 0.01 * self.linear(x)
        scaled = x.detach() * STEPS
        on = ((scaled - scaled.round()).abs() < 1e-3).all(dim=1, keepdim=True)
        return torch.where(on, self.linear(x), stubborn)


def broken(model: nn.Module, name: str, **params: Any) -> int:
    attack = registry.ATTACKS.make(Spec(name, params))
    evidence = attack_sources(model, attack, sources(), AttackContext(INFO, 0, {}))
    assert evidence.records["in_budget"].all()
    return int(evidence.records["success"].sum())


def test_a_face_on_the_levels_is_seen_by_this_attack_alone() -> None:
    plain = broken(linear(), "apgd", eps=0.2, steps=20)
    assert plain > 10
    assert broken(OnGrid(), "apgd", eps=0.2, steps=20) < plain / 2
    assert broken(OnGrid(), "quantised", eps=0.2, steps=20) >= plain - 4  # 3 steps are 0.1875
    assert broken(OnGrid(), "quantised", attack="apgd", norm="l2", eps=0.4, steps=20) > 5


def test_what_is_returned_is_what_was_asked() -> None:
    # Decisions alone: the radius that is found lies between two levels, and the nearer one counted.
    plain = broken(linear(), "rays", eps=3 / STEPS, queries=500)
    assert plain > 10
    assert broken(linear(), "quantised", attack="rays", eps=0.2, queries=500) >= plain


INNER: list[dict[str, Any]] = [
    {"attack": "pgd", "eps": 0.2},
    {"attack": "square", "eps": 0.2},
    {"attack": {"name": "pgd", "eps": 0.3, "norm": "l2"}},
]


@pytest.mark.parametrize("params", INNER)
def test_what_it_returns_lies_on_the_levels(params: dict[str, Any]) -> None:
    attack = registry.ATTACKS.make(Spec("quantised", params))
    given = sources()
    found = attack.perturb(linear(), given.x, given.y, None, AttackContext(INFO, 0, {})).x_adv
    scaled = found * STEPS
    assert torch.equal(scaled, scaled.round())
    assert not torch.equal(found, given.x)


def test_the_levels_are_those_of_all_sources() -> None:
    assert levels(sources().x) == STEPS
    assert levels(torch.arange(256).float() / 255) == 255
    assert levels(torch.tensor([0.0, 1.0])) == 1
    assert levels(torch.rand(50, generator=torch.Generator().manual_seed(0))) is None


def test_without_levels_all_is_allowed_and_below_a_step_nothing() -> None:
    context, given = AttackContext(INFO, 0, {}), sources()
    fine = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    attack = Quantised.from_params(eps=0.2)
    free = attack.perturb(linear(), fine, given.y, None, context).x_adv
    assert torch.equal(free, attack.inner.perturb(linear(), fine, given.y, None, context).x_adv)
    found = Quantised.from_params(eps=0.05).perturb(linear(), given.x, given.y, None, context)
    assert found.x_adv is given.x
    # No work was left: that is no attack that did nothing.
    assert found.stop_reason == ["no level within the budget"] * len(given.x)
    carried = {"name": "quantised", "attack": {"name": "pgd", "early_stop": False}}
    transfer = registry.ATTACKS.make(
        Spec("transfer", {"source": "undefended", "attack": carried, "eps": 0.05})
    )
    models = AttackContext(INFO, 0, {"source": linear()})
    records = attack_sources(linear(), transfer, given, models).records
    assert set(records["stop_reason"]) <= {"no level within the budget", ""}


def test_rounding_goes_towards_the_source() -> None:
    clean, x_adv = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.52, 0.4, 0.75, 0.0])
    assert torch.equal(towards(clean, x_adv, 4), torch.tensor([0.5, 0.5, 0.75, 0.0]))
    byte = torch.arange(256).float() / 255
    assert torch.equal(towards(byte, byte, 255), byte)


def test_a_query_is_rounded_and_its_gradient_is_the_identity_s() -> None:
    model = OnLevels(linear(), STEPS)
    x = torch.full((1, 6), 0.51, requires_grad=True)
    answers = model(x)
    assert torch.allclose(answers, linear()(torch.full((1, 6), 0.5)))
    (gradient,) = torch.autograd.grad(answers[0, 0], x)
    assert torch.equal(gradient[0], linear().weight[0])


def test_a_query_lies_exactly_on_a_level_with_gradients_too() -> None:
    seen = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x

    x = (torch.rand(2000, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    OnLevels(Looks(), 255)(x)
    levelled = (x.detach() * 255).round() / 255
    assert torch.equal(seen[0], levelled)


def test_a_wrong_inner_attack_is_refused() -> None:
    with pytest.raises(ValueError, match="which needs other models"):
        Quantised.from_params(attack={"name": "transfer", "attack": "pgd"})
    with pytest.raises(ValueError, match="which learns"):
        Quantised.from_params(attack="universal")
