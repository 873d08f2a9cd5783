"""One cell: attempts, independent judgement, the attack's word against the model's."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from bench.base.types import DataInfo, Targets, ThreatModel
from bench.evidence.cells import Trial
from bench.evidence.records import smallest
from bench.measure.cell import NO_TARGET, Sources, attack_sources, choose_attempts
from bench.measure.query import ContractError
from bench.plan.panel import Panel
from bench.plugins.contracts import Attack, AttackContext, Perturbation
from bench.results.cell_metrics import worst_case
from bench.verdict.survivors import Subject

INFO = DataInfo("toy", (3,), 3, (0.0,), (1.0,))
CONTEXT = AttackContext(INFO)


class Identity(nn.Module):
    """Logits are the inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


SOURCES = Sources(
    ids=torch.tensor([10, 20, 30]),
    x=torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.5, 0.2, 0.1]]),
    y=torch.tensor([0, 1, 2]),  # the third is misclassified
)


@dataclass(frozen=True)
class Fake(Attack):
    """Returns what the test says."""

    answer: object = None
    goal: Targets = "untargeted"
    limit: float = 1.0

    @property
    def targets(self) -> Targets:
        return self.goal

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        return ThreatModel("linf", self.limit)

    def perturb(self, model, x, y, target, context) -> Perturbation:
        return self.answer(model, x, y, target)


def swap(model, x, y, target) -> Perturbation:
    wanted = target if target is not None else (y + 1) % 3
    x_adv = torch.zeros_like(x)
    x_adv[torch.arange(len(x)), wanted] = 1.0
    return Perturbation(
        x_adv, iterations=torch.full((len(x),), 4), stop_reason=["reached"] * len(x)
    )


def attack(answer, goal: Targets = "untargeted", limit: float = 1.0):
    return attack_sources(Identity(), Fake(answer, goal, limit), SOURCES, CONTEXT)


def test_all_targets_skip_the_label_and_the_misclassified() -> None:
    records = attack(swap, "all").records
    assert records["sample_id"].tolist() == [10, 10, 20, 20, 30]
    assert records["target"].tolist() == [1, 2, 0, 2, NO_TARGET]
    assert records["status"].tolist() == ["attacked"] * 4 + ["misclassified"]
    assert records["success"].tolist() == [True] * 4 + [False]


def test_runner_up_is_the_best_wrong_class() -> None:
    assert attack(swap, "runner-up").records["target"].tolist() == [2, 2, NO_TARGET]


def test_random_targets_are_the_same_for_every_model_and_never_the_label() -> None:
    labels = torch.arange(300) % 3
    sources = Sources(torch.arange(300), torch.rand(300, 3), labels, seed=5)
    right = nn.functional.one_hot(labels, 3).float()
    first = choose_attempts(right, sources, "random", 3)
    second = choose_attempts(right * 7 + 1, sources, "random", 3)
    assert torch.equal(first.target, second.target)
    assert not (first.target == labels).any()
    assert set(((first.target - labels) % 3).tolist()) == {1, 2}


def test_a_lying_attack_is_not_believed() -> None:
    # It reports success by its stop reason, and returns the source.
    records = attack(
        lambda model, x, y, target: Perturbation(x, stop_reason=["reached"] * len(x))
    ).records
    assert not records["success"].any()
    assert records["stop_reason"].tolist()[:2] == ["reached", "reached"]


def test_outside_the_box_or_the_budget_is_no_success() -> None:
    outside = attack(lambda model, x, y, target: Perturbation(x.flip(1) * 3))
    assert not outside.records["success"].any()
    assert not outside.records["in_box"][:2].any()
    over = attack(swap, limit=0.1)
    assert not over.records["success"].any()
    assert not over.records["in_budget"][:2].any()
    assert over.records["in_box"].all()


def test_nan_is_no_success() -> None:
    records = attack(lambda model, x, y, target: Perturbation(x * float("nan"))).records
    assert not records["success"].any()
    assert not records["finite"][:2].any()


def test_a_tie_is_no_success() -> None:
    records = attack(lambda model, x, y, target: Perturbation(torch.full_like(x, 0.5))).records
    assert not records["misclassified"].any()


def test_a_target_that_is_missed_is_no_success_but_misclassified() -> None:
    def miss(model, x, y, target):
        return swap(model, x, y, 3 - y - target)

    records = attack(miss, "all").records
    assert not records["success"].any()
    assert records["misclassified"].tolist() == [True] * 4 + [False]


@dataclass(frozen=True)
class Sure(Fake):
    """Wants a probability of its target; with ``free`` nothing is held against the source."""

    least: float | None = None
    free: bool = False

    @property
    def confidence(self) -> float | None:
        return self.least

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        return ThreatModel("none") if self.free else super().threat(shape)


@pytest.mark.parametrize("free", [False, True])
def test_a_target_wins_with_at_least_the_confidence_asked_for(free: bool) -> None:
    won = math.e / (math.e + 2)  # logits 1, 0, 0: 57.6 %
    for least, reached in ((won - 1e-6, True), (won + 1e-6, False)):
        sure = Sure(swap, "all", least=least, free=free)
        records = attack_sources(Identity(), sure, SOURCES, CONTEXT).records
        assert records["success"].tolist() == [reached] * 4 + [False]
        # Without a source there is no version of it that could be misclassified.
        assert records["misclassified"].tolist() == [not free] * 4 + [False]

    def miss(model, x, y, target):
        return swap(model, x, y, 3 - y - target)

    missed = attack_sources(Identity(), Sure(miss, "all", least=0.1), SOURCES, CONTEXT).records
    assert not missed["success"].any()  # another class has the probability


def test_inputs_without_a_source_count_in_no_worst_case() -> None:
    free = attack_sources(Identity(), Sure(swap, "all", free=True), SOURCES, CONTEXT).records
    bound = attack_sources(Identity(), Sure(swap, "all"), SOURCES, CONTEXT).records
    whole, ids = ThreatModel("linf", 1.0), np.array([10, 20, 30])
    assert free["success"].sum() == bound["success"].sum() == 4
    assert worst_case([free], whole, (3,))["worst_case"] == pytest.approx(2 / 3)
    assert worst_case([bound, free], whole, (3,))["worst_case"] == 0
    assert worst_case([bound], ThreatModel("none"), (3,))["worst_case"] is None
    assert smallest(free, ids, whole, (3,)).tolist() == [np.inf] * 3
    assert np.isfinite(smallest(bound, ids, whole, (3,))).tolist() == [True, True, False]
    # The same cells in a verdict: they break nothing, and only what they got wrong counts.
    named = {"attack": "fooling", "attack_params": {}, "status": "done", "flags": []}
    trial = Trial({**named, "id": "1"}, free, "gradients")
    found = Subject(Panel(norm="linf", budgets=[1.0]), INFO, ids, [trial])
    assert found.survivors(1.0).tolist() == [True, True, False]
    assert found.breakers(1.0) == []


def test_queries_are_counted_by_the_runner() -> None:
    def query(model, x, y, target):
        x = x.requires_grad_()
        logits = model(x)
        torch.autograd.grad(logits[:, 0].sum(), x, retain_graph=True)
        torch.autograd.grad(logits[:, 1].sum(), x)
        model(x.detach())
        return Perturbation(x.detach())

    evidence = attack(query)
    assert (evidence.forwards, evidence.backwards) == (4, 4)


def test_the_clean_input_is_kept_even_if_the_attack_writes_into_it() -> None:
    before = SOURCES.x.clone()

    def overwrite(model, x, y, target):
        x.fill_(0.0)
        x[:, 2] = 1.0
        return Perturbation(x)

    records = attack(overwrite).records
    assert torch.equal(SOURCES.x, before)
    assert records["success"].tolist() == [True, True, False]
    assert (records["linf"][:2] > 0.5).all()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda m, x, y, t: x, "bench.Perturbation"),
        (lambda m, x, y, t: Perturbation(x[:1]), "x_adv must be"),
        (lambda m, x, y, t: Perturbation(x.double()), "x_adv must be"),
        (lambda m, x, y, t: Perturbation(x, stop_reason=["a"]), "stop_reason must have"),
        (lambda m, x, y, t: Perturbation(x, iterations=torch.ones(9)), "iterations must have"),
    ],
)
def test_a_broken_contract_says_what_was_expected(answer, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        attack(answer)


def test_a_model_that_gets_nothing_right_leaves_no_attempt() -> None:
    sources = Sources(torch.arange(2), torch.eye(3)[:2], torch.tensor([2, 2]))
    evidence = attack_sources(Identity(), Fake(swap), sources, CONTEXT)
    assert evidence.records["status"].tolist() == ["misclassified"] * 2
    assert torch.equal(evidence.x_adv, sources.x)
