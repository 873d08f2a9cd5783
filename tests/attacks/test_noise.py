"""Noise keeps to its budget, spends it, and keeps the worst of its draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.kit.losses import behind
from attacks.noise import Noise
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Evidence, Sources, attack_sources
from bench.plugins.contracts import AttackContext

CONTEXT = AttackContext(DataInfo("linear", (12,), 4, (0.5,), (0.3,)))


def linear(seed: int) -> tuple[nn.Module, Sources]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(12, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 12, generator=generator))
        x = 0.3 + 0.4 * torch.rand(20, 12, generator=generator)
        return model, Sources(torch.arange(50, 70), x, model(x).argmax(1))


def run(attack: Noise, seed: int = 0) -> tuple[Evidence, list[Tensor]]:
    """Attack a linear model; return also the inputs of all its draws."""
    model, sources = linear(1)
    seen: list[Tensor] = []

    class Watched(Noise):
        def perturb(self, model: nn.Module, *rest: Any) -> Any:
            with model.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone())):
                return super().perturb(model, *rest)

    context = AttackContext(CONTEXT.info, seed)
    evidence = attack_sources(model, Watched(**vars(attack)), sources, context)
    return evidence, seen[1:]  # the first one only looks whether the model answers


def test_extreme_values_spend_the_whole_budget() -> None:
    x = linear(1)[1].x
    changes = {
        norm: run(Noise(norm=norm, eps=0.2, draws=3))[0].x_adv - x for norm in ("linf", "l2")
    }  # type: ignore[arg-type]
    assert torch.allclose(changes["linf"].abs(), torch.tensor(0.2), atol=1e-6)
    assert torch.allclose(changes["l2"].norm(dim=1), torch.tensor(0.2), atol=1e-6)
    few = run(Noise(norm="l0", max_features=3, draws=3))[0].x_adv
    assert (few != x).sum(1).eq(3).all()
    assert few[few != x].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    "budget", [{"eps": 0.2}, {"norm": "l2", "eps": 0.29}, {"norm": "l0", "gamma": 0.25}]
)
def test_uniform_values_stay_inside(budget: dict[str, Any]) -> None:
    attack = Noise(**budget, values="uniform", draws=2)
    evidence, _ = run(attack)
    assert evidence.records["in_budget"].all()
    assert evidence.records["in_box"].all()
    assert evidence.backwards == 0
    inner = (evidence.x_adv > 0) & (evidence.x_adv < 1)
    assert inner.all()
    assert (evidence.x_adv[:20] != linear(1)[1].x).any(1).all()  # what was only seen comes after


@pytest.mark.parametrize(("access", "chosen"), [("scores", "worst"), ("decisions", "first")])
def test_what_is_kept_of_a_row_that_stands(access: Any, chosen: str) -> None:
    model, sources = linear(1)
    evidence, seen = run(Noise(eps=0.04, draws=6, access=access))
    stands = torch.from_numpy(~evidence.records["success"].to_numpy())
    assert int(stands.sum()) > 3
    assert set(evidence.records["stop_reason"][stands.numpy()]) == {"budget"}
    tries = torch.tensor(evidence.records["iterations"].tolist())
    assert tries[stands].eq(6).all()
    margins = []
    with torch.no_grad():
        for draw in seen:
            # Rows that succeeded have left; which are still there is known by how near they are.
            near = torch.cdist(sources.x[stands], draw, p=torch.inf) <= 0.04 + 1e-6
            assert near.any(1).all()
            margins.append(behind(model(draw[near.int().argmax(1)]), sources.y[stands]))
        kept = behind(model(evidence.x_adv[stands]), sources.y[stands])
    expected = torch.stack(margins).amax(0) if chosen == "worst" else margins[0]
    assert torch.allclose(kept, expected, atol=1e-6)


def test_a_row_is_done_at_its_first_success() -> None:
    evidence, seen = run(Noise(eps=0.3, draws=50))
    tries = evidence.records["iterations"]
    done = evidence.records["success"]
    assert done.any()
    assert sum(map(len, seen)) == tries.sum() == evidence.forwards - 1
    assert tries[done].min() < 50
    assert set(evidence.records["stop_reason"][done]) == {"reached"}


def test_a_row_depends_on_its_sample_and_the_seed_alone() -> None:
    model, sources = linear(1)
    attack = Noise(eps=0.05, draws=4)
    whole = attack_sources(model, attack, sources, CONTEXT).x_adv
    some = Sources(sources.ids[[7, 2]], sources.x[[7, 2]], sources.y[[7, 2]])
    part = attack_sources(model, Noise(eps=0.05, draws=4, chunk=1), some, CONTEXT).x_adv
    assert torch.equal(part, whole[[7, 2]])
    assert not torch.equal(run(attack, seed=1)[0].x_adv, whole)


def test_a_target_is_what_counts() -> None:
    model, sources = linear(1)
    attack = Noise(eps=0.3, draws=40, targets="all")
    records = attack_sources(model, attack, sources, CONTEXT).records
    hit = records[records["success"]]
    assert len(hit) > 3
    assert hit["adversarial_prediction"].eq(hit["target"]).all()
    still = records[~records["success"]]
    assert still["adversarial_prediction"].ne(still["target"]).all()


def test_threat_models_and_defaults() -> None:
    assert Noise().threat((12,)) == ThreatModel("linf", 0.1)
    assert Noise(norm="l2", eps=2.0).threat((12,)) == ThreatModel("l2", 2.0)
    assert Noise(norm="l0").threat((12,)) == ThreatModel("l0", 0.145, "features")
    assert Noise(norm="l0", max_features=3).threat((12,)) == ThreatModel("l0", 0.25, "features")
    assert Noise(access="decisions").access == "decisions"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"norm": "l1"}, "norm must be one of .*'l0'.*got 'l1'"),
        ({"norm": "l0", "eps": 0.1}, "norm 'l0' takes gamma or max_features, got {'eps': 0.1}"),
        ({"gamma": 0.1}, "norm 'linf' takes eps, got {'gamma': 0.1}"),
        ({"norm": "l0", "gamma": 0.1, "max_features": 2}, "takes gamma or max_features"),
        ({"norm": "l0", "gamma": 1.5}, r"gamma must be in \(0, 1\], got 1.5"),
        ({"eps": 2.0}, r"eps must be in \(0, 1\]"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"access": "gradients"}, "access must be one of"),
        ({"values": "normal"}, "values must be one of"),
        ({"targets": "most"}, "targets must be one of"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Noise(**params)


def test_a_budget_of_no_feature_is_a_mistake() -> None:
    model, sources = linear(1)
    with pytest.raises(ValueError, match="at least 1 of 12 features, got 0"):
        attack_sources(model, Noise(norm="l0", gamma=0.05), sources, CONTEXT)


def test_a_budget_of_more_features_than_there_are_is_all_of_them() -> None:
    x, y = torch.full((3, 1), 0.5), torch.zeros(3, dtype=torch.int64)
    model = torch.nn.Linear(1, 2)
    context = AttackContext(DataInfo("one", (1,), 2, (0.0,), (1.0,)))
    found = Noise(norm="l0", max_features=2).perturb(model, x, y, None, context)
    assert found.x_adv.shape == x.shape
