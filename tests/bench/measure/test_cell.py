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
from bench.measure.cell import Subject as Attacked
from bench.measure.query import DRAWS, NO_ANSWER, ContractError, ask
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


def test_a_tie_is_no_success_and_no_survival_either() -> None:
    records = attack(lambda model, x, y, target: Perturbation(torch.full_like(x, 0.5))).records
    assert not records["success"].any()
    assert records["misclassified"].tolist() == [True, True, False]
    assert records["adversarial_prediction"].tolist()[:2] == [NO_ANSWER] * 2


@pytest.mark.parametrize("silence", [math.nan, math.inf, 0.0])
def test_an_answer_that_is_none_is_an_error(silence: float) -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            near = torch.cdist(x, SOURCES.x).amin(dim=1, keepdim=True) < 1e-3
            return torch.where(near, x * 1.0, torch.full_like(x, silence))

    records = attack_sources(Silent(), Fake(swap), SOURCES, CONTEXT).records
    assert records["misclassified"].tolist() == [True, True, False]
    assert not records["success"].any()


def test_what_was_seen_counts_although_it_was_not_returned() -> None:
    near = Sources(torch.tensor([1, 2]), torch.tensor([[0.5, 0.4, 0.0], [0, 0.4, 0.5]]),
                   torch.tensor([0, 2]))  # fmt: skip

    def forgetful(model, x, y, target):
        found = x.clone()
        found[:, 1] = 0.55
        model(found)
        return Perturbation(x)

    evidence = attack_sources(Identity(), Fake(forgetful, limit=0.2), near, CONTEXT)
    assert evidence.records["status"].tolist() == ["attacked"] * 2 + ["seen"] * 2
    assert evidence.records["misclassified"].tolist() == [False, False, True, True]
    assert evidence.x_adv[2:, 1].tolist() == pytest.approx([0.55, 0.55])
    close = attack_sources(Identity(), Fake(forgetful, limit=0.1), near, CONTEXT)
    assert len(close.records) == 2  # beyond the budget
    assert "seen" not in set(attack(swap).records["status"])


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_what_is_returned_too_far_hides_nothing_that_was_seen(factor: float) -> None:
    near = Sources(torch.tensor([1]), torch.tensor([[0.5, 0.4, 0.0]]), torch.tensor([0]))

    def over(model, x, y, target) -> Perturbation:
        change = torch.tensor([[-0.1, 0.1, 0.0]])
        model(x + change)
        return Perturbation(x + factor * change)

    records = attack_sources(Identity(), Fake(over, limit=0.1), near, CONTEXT).records
    broken = records["misclassified"] & records["in_budget"] & records["in_box"]
    assert broken.any()
    assert (len(records) == 2) is (factor > 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_an_input_counts_for_every_source_within_whose_budget_it_lies(norm: str) -> None:
    # Three versions of one image: what breaks the first lies nearest to another.
    x = torch.tensor([[0.50, 0.4, 0.0], [0.47, 0.4, 0.0], [0.44, 0.4, 0.0]])
    near = Sources(torch.tensor([1, 2, 3]), x, torch.zeros(3, dtype=torch.int64))
    budget = {"linf": 0.15, "l2": 0.15, "l0": 1 / 3}[norm]

    @dataclass(frozen=True)
    class Gives(Attack):
        def threat(self, shape: tuple[int, ...]) -> ThreatModel:
            return ThreatModel(norm, budget, "features" if norm == "l0" else "input")

        def perturb(self, model, x, y, target, context) -> Perturbation:
            model(torch.tensor([[0.38, 0.4, 0.0]]))
            return Perturbation(x)

    records = attack_sources(Identity(), Gives(), near, CONTEXT).records
    assert records["status"].tolist() == ["attacked"] * 3 + ["seen"] * 3


def test_a_model_that_remembers_is_judged_by_another_instance() -> None:
    class Remembers(nn.Module):
        """Answers as it did first, whatever it is asked."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "first"):
                self.first = x.clone()
            return self.first[torch.cdist(x, self.first).argmin(dim=1)] * 1.0

    evidence = attack_sources(Remembers(), Fake(swap), SOURCES, CONTEXT)
    assert evidence.records["misclassified"].tolist() == [True, True, False]


def test_no_model_is_asked_about_no_rows() -> None:
    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.size(0), -1) * 1.0  # raises for no rows

    empty = Sources(SOURCES.ids[:0], SOURCES.x[:0], SOURCES.y[:0])
    assert not len(attack_sources(Refuses(), Fake(swap), empty, CONTEXT).records)
    wrong = Sources(SOURCES.ids[2:], SOURCES.x[2:], SOURCES.y[2:])
    assert len(attack_sources(Refuses(), Fake(swap), wrong, CONTEXT).records) == 1


def test_an_attack_stops_when_its_passes_are_spent() -> None:
    def endless(model, x, y, target):
        while True:
            model(x)

    subject = Attacked(Identity(), most_passes=3)
    evidence = attack_sources(subject, Fake(endless), SOURCES, CONTEXT)
    assert evidence.records["stop_reason"].tolist()[:2] == ["max-passes"] * 2
    assert evidence.forwards <= 3 * 2 + 2


def test_a_stochastic_model_is_judged_by_what_it_says_most_often() -> None:
    """It answers the label in every third question, whatever it is asked."""
    asked = []

    class Fickle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            near = torch.cdist(x, SOURCES.x).amin(dim=1, keepdim=True) < 1e-3
            asked.append(int((~near).sum()))
            right = torch.tensor([[1.0, 0.5, 0.0]]) if sum(asked) % 3 else x
            return torch.where(near, x * 1.0, right * torch.ones_like(x))

    model = Fickle()
    subject = Attacked(model, anew=lambda: model, draws=DRAWS)
    one = Sources(SOURCES.ids[:1], SOURCES.x[:1], SOURCES.y[:1])
    records = attack_sources(subject, Fake(swap), one, CONTEXT).records
    assert sum(asked) == 2 * DRAWS  # what the attacked instance says, and what the judge does
    assert records["adversarial_prediction"].tolist() == [0]
    assert not records["misclassified"].any()


def test_an_attack_on_a_stochastic_model_goes_on_after_its_first_success() -> None:
    stopped = []

    @dataclass(frozen=True)
    class Hasty(Fake):
        early_stop: bool = True

        def perturb(self, model, x, y, target, context) -> Perturbation:
            stopped.append(self.early_stop)
            return swap(model, x, y, target)

    for draws in (1, DRAWS):
        attack_sources(Attacked(Identity(), draws=draws), Hasty(), SOURCES, CONTEXT)
        attack_sources(Attacked(Identity(), draws=draws), Fake(swap), SOURCES, CONTEXT)
    assert stopped == [True, False]


def test_of_several_draws_the_mean_of_the_usual_answer_is_kept() -> None:
    answers = iter([[[3.0, 0.0]], [[0.0, 9.0]], [[1.0, 0.0]]])

    class Draws(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor(next(answers))

    assert ask(Draws(), torch.zeros(1, 2), 2, draws=3).tolist() == [[2.0, 0.0]]


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
