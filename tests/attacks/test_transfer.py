"""Transfer crafts on the source alone, is judged on the model, and says all it depends on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from attacks.fgsm import FGSM
from attacks.jsma.plugin import Jsma
from attacks.pgd import PGD
from attacks.transfer import Transfer
from bench.base.types import DataInfo, Document, Spec, ThreatModel, UserError
from bench.conformance import tiny_data
from bench.measure.cell import Sources, attack_sources
from bench.plan.graph import make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import AttackContext
from bench.runner.keys import Keys

INFO = DataInfo("linear", (7,), 4, (0.5,), (0.3,))


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    doors.load_plugins()


def make(**params: Any) -> Transfer:
    attack = registry.ATTACKS.make(Spec("transfer", params))
    assert isinstance(attack, Transfer)
    return attack


def models(seed: int) -> tuple[nn.Module, nn.Module, Sources]:
    """Return a model, a source that resembles it, and inputs on which both are right."""
    generator = torch.Generator().manual_seed(seed)
    model, source = nn.Linear(7, 4), nn.Linear(7, 4)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 7, generator=generator))
        source.weight.copy_(model.weight + 0.3 * torch.randn(4, 7, generator=generator))
        source.bias.copy_(model.bias)
        x = torch.rand(40, 7, generator=generator)
        y = model(x).argmax(1)
        right = source(x).argmax(1) == y
    return model, source, Sources(torch.arange(40)[right], x[right], y[right])


def test_it_hands_over_what_the_inner_attack_makes_on_the_source() -> None:
    model, source, sources = models(0)
    queries: list[int] = []
    context = AttackContext(INFO, 5, {"source": source})
    inner: dict[str, Any] = {"eps": 0.1, "steps": 5, "early_stop": False}
    with source.register_forward_hook(lambda *_: queries.append(1)):
        evidence = attack_sources(model, make(**inner), sources, context)
    assert queries
    assert (evidence.forwards, evidence.backwards) == (0, 0)
    direct = attack_sources(source, PGD(**inner), sources, AttackContext(INFO, 5))
    assert torch.equal(evidence.x_adv, direct.x_adv)
    assert evidence.records["iterations"].eq(5).all()
    # Judged on the model: some of what fools the source does not fool it.
    wrong = torch.tensor(evidence.records["success"].tolist())
    assert torch.equal(wrong, model(evidence.x_adv).argmax(1) != sources.y)
    assert not torch.equal(wrong, torch.tensor(direct.records["success"].tolist()))


def test_goal_and_threat_are_the_inner_attacks() -> None:
    targeted = make(attack="jsma", max_features=2, targets="all")
    assert targeted.threat((8,)) == ThreatModel("l0", 0.25, "features")
    assert targeted.targets == "all"
    assert targeted.targeted
    assert targeted.access == "transfer"
    assert not make().targeted
    model, source, sources = models(1)
    context = AttackContext(INFO, 0, {"source": source})
    records = attack_sources(model, targeted, sources, context).records
    assert len(records) == 3 * len(sources.y)
    assert (records["l0_features"] > 0).any()


def test_an_inner_attack_climbs_past_the_boundary_of_the_source() -> None:
    assert make(eps=0.2).attack["early_stop"] is False
    assert make(early_stop=True).attack["early_stop"] is True
    assert "early_stop" not in make(attack="fgsm").attack


def test_the_document_is_complete_and_makes_the_same_attack() -> None:
    attack = make(source={"name": "temperature_only"}, attack="fgsm", eps=0.3)
    document = registry.parameters(attack)
    assert document["source"] == {"name": "temperature_only", "temperature": 20.0}
    assert document["attack"] == {"name": "fgsm", **asdict(FGSM(0.3))}
    assert make(**document) == attack
    assert set(document) == {"source", "attack"}
    assert attack != make(source={"name": "temperature_only"}, attack="fgsm", eps=0.2)
    nested = make(attack={"name": "art", "attack": "DeepFool", "epsilon": 0.01})
    assert nested.attack["params"]["epsilon"] == 0.01
    assert make(**registry.parameters(nested)) == nested
    assert hash(nested) == hash(make(**registry.parameters(nested)))


def test_the_source_is_planned_and_keyed_with_the_code_of_the_inner_attack() -> None:
    matrix = {
        "name": "t",
        "sources": 3,
        "defense": ["distillation"],
        "attack": [
            {"name": "transfer", "source": ["undefended", "twin"], "attack": "fgsm"},
            {"name": "transfer", "attack": "jsma", "gamma": [0.1, 0.2]},
        ],
    }
    plan = make_plan(parse_matrix(matrix, "t"))
    defenses = {node.id: node.document["defense"]["name"] for node in plan.of("fit")}
    cells = plan.of("cell")
    assert [defenses[cell.needs["source"]] for cell in cells] == [
        "undefended", "twin", "undefended", "undefended",
    ]  # fmt: skip
    keys = Keys(tiny_data(), "cpu", {node.id: node.id for node in plan.of("fit")})
    found: dict[str, Document] = {node.id: keys.of(node) for node in plan.nodes}
    fast, other, jsma, wider = (found[cell.id] for cell in cells)
    assert fast["attack_source"] == other["attack_source"] != jsma["attack_source"]
    assert jsma["attack_source"] == wider["attack_source"]
    assert fast["required"]["source"]["fit"] == cells[0].needs["source"]
    assert make(attack="jsma", gamma=0.1).code() == (Jsma,)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"attack": "pgb"}, "unknown attack 'pgb': did you mean 'pgd'"),
        ({"source": "undefende"}, "unknown defense 'undefende': did you mean 'undefended'"),
        ({"epz": 0.1}, "attack 'pgd' has no parameter 'epz': did you mean 'eps'"),
        ({"eps": 3.0}, r"attack 'pgd': eps must be in \(0, 1\], got 3.0"),
        (
            {"source": {"name": "distillation", "temp": 5}},
            "defense 'distillation' has no parameter 'temp'",
        ),
        ({"source": 3}, 'must be a name or a table with a name, as in source = { name = "unde.*3'),
        ({"attack": {"eps": 0.1}}, 'as in attack = { name = "pgd" }, got {'),
        ({"attack": "transfer"}, "needs an attack that looks at its model itself, got 'transfer'"),
        ({"attack": "advgan"}, "got 'advgan', which learns before it attacks"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**params)


def test_the_goal_is_the_inner_attacks() -> None:
    # It was lost: an inner attack on the confidence was judged by the label alone.
    assert make(attack={"name": "pgd", "confidence": 0.5}).confidence == 0.5
    assert make(attack="fooling").confidence == 0.99
    assert make().confidence is None


def test_a_bare_model_has_no_source() -> None:
    model, _, sources = models(2)
    with pytest.raises(UserError, match="needs its source 'undefended' fitted"):
        attack_sources(model, make(), sources, AttackContext(INFO))
