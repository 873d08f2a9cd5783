"""The rows of a run: what an object of ``results.json``, ``models.json`` or another file holds.

Each class is one kind of object, each annotation a key, its type and its meaning; ``docs/files.md``
is generated from them. Rates are fractions; None stands for what is undefined or not known, never
0; an interval is a pair of its ends, 95 % where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    ClassVar,
    NotRequired,  # typing's own: pydantic wants Python 3.12
)

from typing_extensions import TypedDict

from bench.base.types import Document, Severity, Status, Unit
from bench.base.types import Measure as NormName

Interval = Annotated[tuple[float, float] | None, "ends of an interval"]


class ThreatRow(TypedDict):
    """What the attacker may change, and by how much."""

    norm: Annotated[NormName, "`l0`, `l2`, `linf`, or `none` for inputs without a source"]
    budget: Annotated[float | None, "fraction under `l0`, else length; none for a minimum norm"]
    unit: Annotated[Unit, "what the budget is counted in"]


class FlagRow(TypedDict):
    """One suspicion of the evaluation against itself."""

    id: Annotated[str, "name of the flag"]
    severity: Annotated[Severity, "`info` says something, `warning` and `error` warn"]
    value: Annotated[float, "the figure that raised it"]
    threshold: Annotated[float, "where it warns from"]
    evidence: Annotated[str, "what was seen, in words"]
    advice: Annotated[str, "what to do about it"]
    samples: Annotated[list[int], "sample ids that show it"]


class PairedRow(TypedDict):
    """A cell against the undefended network of its seed, over their common attempts."""

    baseline: Annotated[str, "id of the other cell"]
    delta: Annotated[float, "success rate minus the other's"]
    ci: Annotated[tuple[float, float], "its interval, paired and clustered by source"]
    attempts: Annotated[int, "common attempts"]


class DefenseIdentity(TypedDict):
    """Which defense a row is about, whatever the seed."""

    id: Annotated[str, "of the row; a cell's and a model's also name their files"]
    dataset: Annotated[str, "registered name, or that of the file it was read from"]
    network: Annotated[str, "registered name"]
    recipe: Annotated[str, "how it was trained, by name"]
    defense: Annotated[str, "registered name"]
    defense_params: Annotated[dict[str, Any], "its parameters, complete with defaults"]


class ModelIdentity(DefenseIdentity):
    """Which model a row is about."""

    seed: Annotated[int, "training seed"]


class LearntRow(TypedDict):
    """What an attack learnt about a model before it perturbed."""

    id: Annotated[str, "the id of its fit, which several cells may share"]
    forwards: Annotated[int | None, "forward passes of the model for it, in rows"]
    backwards: Annotated[int | None, "backward passes, in rows"]


class CellRow(ModelIdentity):
    """One object of `results.json`: a model under an attack."""

    attack: Annotated[str, "registered name"]
    attack_params: Annotated[dict[str, Any], "its parameters, complete with defaults"]
    threat: Annotated[ThreatRow, "what the attack may change"]
    status: Annotated[Status, "how the cell ended; not `done`: no figure is known"]
    reason: Annotated[str | None, "why it is not done"]
    sources: Annotated[int | None, "images, those misclassified without an attack among them"]
    correct_sources: Annotated[int | None, "images classified correctly, which were attacked"]
    attempts: Annotated[int | None, "one a source, or one a source and target"]
    successes: Annotated[int | None, "attempts that reached their goal within the budget"]
    success_rate: Annotated[float | None, "successes over attempts"]
    success_ci: Annotated[Interval, "its interval, clustered by source"]
    robust_accuracy: Annotated[float | None, "share of sources that stay classified correctly"]
    robust_ci: Annotated[Interval, "its interval"]
    worst_case: Annotated[float | None, "the same against all attacks on the model together"]
    worst_case_ci: Annotated[Interval, "its interval"]
    rho_adv: Annotated[float | None, "feature-perturbation robustness, over correct sources"]
    rho_adv_paper: Annotated[float | None, "the same, over all sources"]
    rho_censored: Annotated[float | None, "share of correct sources that were never reached"]
    features_all: Annotated[float | None, "mean share of features; a failure counts as the budget"]
    features_success: Annotated[float | None, "mean share of features changed, of successes"]
    features_mean: Annotated[float | None, "mean number of features changed, of successes"]
    pixels_mean: Annotated[float | None, "mean number of pixels changed, of successes"]
    l2_mean: Annotated[float | None, "mean L2 distance, of successes"]
    linf_mean: Annotated[float | None, "mean L∞ distance, of successes"]
    l2_success: Annotated[float | None, "median L2 distance, of successes"]
    linf_success: Annotated[float | None, "median L∞ distance, of successes"]
    adversarial_confidence: Annotated[float | None, "mean top probability, of successes"]
    stop_reasons: Annotated[dict[str, int] | None, "attempts by why the attack stopped"]
    zero_gradients: Annotated[int | None, "gradients that were exactly zero, where it counts them"]
    compared: Annotated[int | None, "attempts held against the model's first cell of the threat"]
    outcomes_differ: Annotated[int | None, "of these, how many end otherwise"]
    inputs_differ: Annotated[int | None, "of these, how many inputs differ in any bit"]
    paired: Annotated[PairedRow | None, "against the undefended network"]
    accuracy: Annotated[float | None, "clean accuracy of the model, on the test split"]
    accuracy_ci: Annotated[Interval, "its interval"]
    confidence: Annotated[float | None, "mean top probability, 0 where the prediction is wrong"]
    max_logit: Annotated[float | None, "mean largest logit"]
    logit_gap: Annotated[float | None, "mean difference of the two largest logits"]
    forwards: Annotated[int | None, "forward passes of the attack, in rows"]
    backwards: Annotated[int | None, "backward passes of the attack, in rows"]
    zero_gradient_share: Annotated[float | None, "zero gradients over backward passes"]
    round: NotRequired[Annotated[int, "of a closer: its round; 0 of all other cells"]]
    differing: NotRequired[
        Annotated[int | None, "rows that the attacked instance answers otherwise"]
    ]
    seen: NotRequired[
        Annotated[int | None, "sources broken by an input that was asked about, not returned"]
    ]
    learnt: NotRequired[
        Annotated[LearntRow | None, "what its attack learnt before, where it learns"]
    ]
    flags: Annotated[list[FlagRow], "what is suspicious about the cell"]


class BinRow(TypedDict):
    """One bin of a reliability curve."""

    low: Annotated[float, "lower edge of the confidence"]
    high: Annotated[float, "upper edge"]
    samples: Annotated[int, "images in the bin"]
    confidence: Annotated[float | None, "their mean confidence"]
    accuracy: Annotated[float, "share that is right"]


class SensitivityRow(TypedDict):
    """The histogram of the mean absolute input gradient, on the test split."""

    samples: Annotated[int, "images measured"]
    median_log10: Annotated[float | None, "median, as a base-10 logarithm"]
    edges_log10: Annotated[list[int], "edges of the bins, base-10 logarithms"]
    counts: Annotated[list[int], "images a bin, below the first edge and above the last too"]
    large: Annotated[int, "images beyond 10⁻²"]
    tiny: Annotated[int, "images below 10⁻⁴⁰"]
    float32_zero: Annotated[int, "images whose gradient is exactly zero in float32"]
    jacobian_samples: Annotated[int, "images whose Jacobian was measured"]
    jacobian_median_log10: Annotated[float | None, "median norm, as a base-10 logarithm"]


class GradientsRow(TypedDict):
    """The gradients of a model on the attacked sources."""

    sources: Annotated[int, "sources measured"]
    zero_share: Annotated[float | None, "share whose cross-entropy gradient is exactly zero"]
    zero_samples: Annotated[list[int], "their sample ids"]
    cosine_median: Annotated[float | None, "of the float32 and the exact gradient"]
    answers_differ: Annotated[float | None, "share where the same query answers otherwise"]
    answers_differ_samples: Annotated[list[int], "their sample ids"]


class SuspicionRow(TypedDict):
    """What the harness found when it suspected a model."""

    gradient: Annotated[str, "`agrees`, or how the gradient is not that of the answers"]
    where: Annotated[str | None, "at which base points that was found"]
    step: Annotated[float | None, "at which step, in input units"]
    value: Annotated[float | None, "share of the change that the gradient explains, or of rows"]
    stochastic: Annotated[float, "share of rows that are answered otherwise at once"]
    stateful: Annotated[float, "share answered otherwise after other questions, or by a copy"]
    batch_dependent: Annotated[float, "share answered otherwise in another order or batch"]
    no_answer: Annotated[float, "share at which no class wins with finite logits"]
    surrogate: Annotated[float | None, "how often a surrogate answers as the model does"]
    averages: Annotated[bool | None, "whether a surrogate is steadier than the model"]
    routed: NotRequired[Annotated[float | None, "share of rows that use other weights than most"]]
    shapes: Annotated[list[list[int]], "shapes of the weights that the answers depend on"]
    errors: Annotated[dict[str, str], "what could not be measured, and why"]


class SuspectRow(TypedDict):
    """A cause that would explain why a trained model is worse than it should be."""

    cause: Annotated[str, "in words"]
    accuracy: Annotated[float, "on the rows tried, once the cause is undone"]
    before: Annotated[float, "the same as things are"]
    mend: Annotated[str, "what to change"]


class HandedRow(TypedDict):
    """What was asked of a model that others trained, on its way in."""

    expected: Annotated[float | None, "accuracy that its author states"]
    suspects: Annotated[list[SuspectRow], "causes under which it is surely better, best first"]


class RecheckRow(TypedDict):
    """What came of asking a model again in a process of its own."""

    differing: Annotated[dict[str, int] | None, "rows answered otherwise than recorded, by cell"]
    reason: Annotated[str | None, "why nothing came of it"]


class ModelRow(ModelIdentity):
    """One object of `models.json`: a fitted model without an attack. All over the test split."""

    status: Annotated[Status, "`failed`: the fit or the probe failed, and nothing was measured"]
    parameters: NotRequired[Annotated[int, "number of weights"]]
    errors: NotRequired[Annotated[dict[str, str], "what could not be measured, and why"]]
    accuracy: NotRequired[Annotated[float | None, "clean accuracy"]]
    accuracy_ci: NotRequired[Annotated[Interval, "its interval"]]
    confidence: NotRequired[Annotated[float | None, "mean top probability, 0 where wrong"]]
    max_logit: NotRequired[Annotated[float | None, "mean largest logit"]]
    logit_gap: NotRequired[Annotated[float | None, "mean difference of the two largest logits"]]
    test_samples: NotRequired[Annotated[int, "images of the test split"]]
    train_accuracy: NotRequired[Annotated[float | None, "accuracy on the training sample"]]
    train_samples: NotRequired[Annotated[int, "images of the training sample"]]
    generalisation_gap: NotRequired[Annotated[float | None, "training minus clean accuracy"]]
    mean_abs_logit: NotRequired[Annotated[float | None, "mean absolute logit"]]
    max_logit_ci: NotRequired[Annotated[Interval, "of `max_logit`"]]
    logit_gap_ci: NotRequired[Annotated[Interval, "of `logit_gap`"]]
    entropy: NotRequired[Annotated[float | None, "mean entropy of the softmax, in nats"]]
    probabilities: NotRequired[Annotated[float | None, "share of outputs that look like one"]]
    ece: NotRequired[Annotated[float | None, "expected calibration error"]]
    reliability: NotRequired[Annotated[list[BinRow], "the reliability curve"]]
    sensitivity: NotRequired[Annotated[SensitivityRow | None, "the input gradient"]]
    gradients: NotRequired[Annotated[GradientsRow, "what the flags on a model look at"]]
    suspicion: NotRequired[Annotated[SuspicionRow, "whether gradient and answers are its own"]]
    recheck: NotRequired[Annotated[RecheckRow | None, "asked again in a process of its own"]]
    handed: NotRequired[Annotated[HandedRow, "of a checkpoint: is it as good as it should be"]]
    flags: Annotated[list[FlagRow], "what is suspicious about the model"]
    not_evaluated: Annotated[dict[str, str], "flags that could not be looked at, and why"]


class BreakerRow(TypedDict):
    """One attack that broke sources of a model."""

    attack: Annotated[str, "name, and what it differentiates, runs or comes from"]
    role: Annotated[str | None, "what it is in the panel, none outside of it"]
    breaks: Annotated[int, "sources that it broke"]
    only: Annotated[int, "of these, sources that no other broke"]
    cells: Annotated[list[str], "ids of its cells that broke any"]


class SeedRow(TypedDict):
    """The verdict on one model."""

    seed: Annotated[int, "training seed"]
    model: Annotated[str, "its id in `models.json`"]
    sources: Annotated[int, "images attacked"]
    worst_case: Annotated[float | None, "share of sources that nothing within the budget breaks"]
    worst_case_ci: Annotated[Interval, "its interval"]
    naive: Annotated[float | None, "share that survives the naive attack"]
    drop: Annotated[float | None, "naive minus worst case"]
    moved: Annotated[float | None, "by how much a greater effort lowers the worst case"]
    unsettled: NotRequired[Annotated[float, "by how much the last round of closers lowered it"]]
    followed_up: NotRequired[
        Annotated[int | None, "sources that only follow-ups broke, none where they were not due"]
    ]
    broken_by: Annotated[list[BreakerRow], "who broke it, most breaks first"]
    undefended: Annotated[float | None, "worst case of the reference, the undefended network"]
    delta: Annotated[float | None, "Δ, the worst case minus the reference's"]
    delta_ci: Annotated[Interval, "its paired 90 % interval"]
    gradient_cosine: Annotated[float | None, "`gradients.cosine_median` of the model"]
    zero_share: Annotated[float | None, "`gradients.zero_share` of the model"]
    forwards: Annotated[int | None, "forward passes of the panel, in rows"]
    backwards: Annotated[int | None, "backward passes of the panel, in rows"]
    flags: Annotated[list[FlagRow], "those of the model and of the panel"]
    not_evaluated: Annotated[dict[str, str], "flags that could not be looked at, and why"]
    verdict: Annotated[str | None, "on this model alone, none for the reference"]
    rule: Annotated[int | None, "number of the rule that gave it"]
    why: Annotated[str | None, "the reason in words"]


class CurveRow(TypedDict):
    """Worst cases against the budget."""

    at: Annotated[list[float], "budgets, 0 among them"]
    worst_case: Annotated[dict[str, list[float] | None], "of the defense, by training seed"]
    undefended: Annotated[dict[str, list[float] | None], "of the undefended network, by seed"]


class VerdictRow(DefenseIdentity):
    """One object of `verdicts.json`: a defense at a budget of a panel, over all training seeds."""

    threat: Annotated[ThreatRow, "what an attack may change"]
    at: Annotated[float, "the budget as the panel counts it: features under `l0`"]
    verdict: Annotated[str, "what a table shows; `reference` for what others are compared with"]
    rule: Annotated[int | None, "number of the rule that gave it"]
    why: Annotated[str | None, "the reason in words"]
    sources_needed: Annotated[int | None, "how many sources would settle what too few left open"]
    reference: NotRequired[
        Annotated[SideRow | None, "what it is compared with, none without a reference"]
    ]
    seeds: Annotated[list[SeedRow], "one a training seed"]
    curve: Annotated[CurveRow | None, "at the largest budget: worst case against the budget"]
    rank: Annotated[tuple[int, int] | None, "best and worst rank, 1 the most robust"]
    headline: Annotated[bool, "whether it is the smallest budget at which the panel has power"]


class LogitRow(ModelIdentity):
    """One object of `logits.json`: the logits of a model on its sources, before or after a cell."""

    model: Annotated[str, "its id in `models.json`"]
    attack: Annotated[str | None, "none for the clean sources, as the next three"]
    attack_params: Annotated[dict[str, Any] | None, "its parameters"]
    threat: Annotated[ThreatRow | None, "what the attack may change"]
    cell: Annotated[str | None, "its id in `results.json`"]
    samples: Annotated[int, "sources counted"]
    max_logit: Annotated[float | None, "mean largest logit"]
    max_logit_ci: Annotated[Interval, "its interval"]
    max_logit_before: Annotated[float | None, "the same without the attack"]
    logit_gap: Annotated[float | None, "mean difference of the two largest logits"]
    logit_gap_ci: Annotated[Interval, "its interval"]
    logit_gap_before: Annotated[float | None, "the same without the attack"]
    confidence: Annotated[float | None, "mean top probability"]
    confidence_ci: Annotated[Interval, "its interval"]
    confidence_before: Annotated[float | None, "the same without the attack"]
    entropy: Annotated[float | None, "mean entropy of the softmax, in nats"]
    entropy_ci: Annotated[Interval, "its interval"]
    entropy_before: Annotated[float | None, "the same without the attack"]
    order_tau: Annotated[float | None, "Kendall's τ of the incorrect classes, before and after"]
    order_tau_ci: Annotated[Interval, "its interval"]
    iterations: Annotated[float | None, "median over the attempts, where the attack counts them"]


class SideRow(TypedDict):
    """One of the two defenses of a pair."""

    defense: Annotated[str, "registered name"]
    defense_params: Annotated[dict[str, Any], "its parameters"]


class PairRow(TypedDict):
    """One object of `pairs.json`: two defenses held against each other, sample by sample."""

    id: Annotated[str, "of the row"]
    why: Annotated[str, "`undefended`, `taught`, or the one parameter in which they differ"]
    first: Annotated[SideRow, "the defense"]
    second: Annotated[SideRow, "what it is held against"]
    seeds: Annotated[list[Document], "how their logits agree on clean images, one a seed"]
    survival: Annotated[list[Document], "difference of their worst cases, one a norm and budget"]


class ReachRow(TypedDict):
    """One attack on every source of a model."""

    attack: Annotated[str, "name, and what it differentiates, runs or comes from"]
    role: Annotated[str | None, "what it is in the panel, none outside of it"]
    breaks: Annotated[
        str,
        "a character a source: the place in `budgets`, from 0, of the smallest that breaks it; "
        "`+` where only more does, `.` where nothing did",
    ]


class ExampleRow(TypedDict):
    """One source that fell, as an input: bytes in base64, one a feature."""

    why: Annotated[str, "`least` change of all, `median` change, or drawn at `random`"]
    sample: Annotated[int, "sample id"]
    label: Annotated[int, "its class"]
    answer: Annotated[int, "the class that the model sees in the adversarial input"]
    attack: Annotated[str, "what broke it, as in `reach`"]
    cell: Annotated[str, "its id in `results.json`"]
    distance: Annotated[float, "how far, in the unit of the threat"]
    clean: Annotated[str | None, "255 times the input; none where it is large"]
    adversarial: Annotated[str | None, "255 times the adversarial input"]
    change: Annotated[str | None, "127 times the change over `largest`, signed"]
    largest: Annotated[float, "largest change of a feature"]


class SourcesRow(ModelIdentity):
    """One object of `sources.json`: which source of a model falls to whom under a norm."""

    model: Annotated[str, "its id in `models.json`"]
    threat: Annotated[ThreatRow, "norm and unit"]
    budgets: Annotated[list[float], "of the panel, or of the cells; fractions under `l0`"]
    shape: Annotated[list[int], "of an input"]
    samples: Annotated[list[int], "sample ids of the sources"]
    labels: Annotated[list[int], "their classes"]
    correct: Annotated[str, "a character a source: `1` where it is right without an attack"]
    reach: Annotated[list[ReachRow], "one an attack that is of the norm, or breaks anything"]
    examples: Annotated[list[ExampleRow], "some that fell"]


FILES: dict[str, type] = {
    "results.json": CellRow, "models.json": ModelRow, "verdicts.json": VerdictRow,
    "sources.json": SourcesRow, "logits.json": LogitRow, "pairs.json": PairRow,
}  # fmt: skip
"""What each object of a file is."""

PARTS: tuple[type, ...] = (
    ThreatRow, FlagRow, PairedRow, LearntRow, BinRow, SensitivityRow, GradientsRow, SuspicionRow,
    RecheckRow, SeedRow, BreakerRow, CurveRow, ReachRow, ExampleRow, SideRow,
)  # fmt: skip
"""What the objects hold in turn."""

DEFENSE = ("dataset", "network", "recipe", "defense", "defense_params")
"""The columns that say which defense a row is about, whatever the seed."""

MODEL = (*DEFENSE, "seed")
"""The columns that say which model a row is about."""


def defense_of(row: Mapping[str, Any]) -> Document:
    """Return the defense that a row is about, as its registry's document: ``name``, ``params``."""
    return {"name": row["defense"], "params": row["defense_params"]}


def attack_of(row: Mapping[str, Any]) -> Document:
    """Return the attack that a row is about, as its registry's document: ``name``, ``params``."""
    return {"name": row["attack"], "params": row["attack_params"]}


def warns(flag: Mapping[str, Any]) -> bool:
    """Return whether a flag, as a row holds it, warns: ``info`` only says something."""
    return bool(flag["severity"] in ("warning", "error"))


@dataclass(frozen=True)
class Results:
    """What a run's records come to, each a file of the folder; ``bench.base.rows`` says its keys.

    ``cells``: one object a cell; ``models``: one a fitted model; ``verdicts``: one a defense and
    budget of the matrix's panels; ``sources``: one a model and norm, none of what was published
    without it. Only where the matrix's report is ``findings``, and otherwise empty: ``logits``, one
    a model and attack; ``pairs``, one a pair of defenses.
    """

    cells: list[CellRow]
    models: list[ModelRow]
    verdicts: list[VerdictRow] = field(default_factory=list)
    logits: list[Document] = field(default_factory=list)
    pairs: list[Document] = field(default_factory=list)
    sources: list[SourcesRow] = field(default_factory=list)

    FILES: ClassVar[tuple[str, ...]] = ("results.json", "models.json", "verdicts.json")
    FURTHER: ClassVar[tuple[str, ...]] = ("logits.json", "pairs.json", "sources.json")

    def documents(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Return what each file holds; of the further ones, those that hold something."""
        rows: tuple[Sequence[Mapping[str, Any]], ...] = (
            self.cells, self.models, self.verdicts, self.logits, self.pairs, self.sources,
        )  # fmt: skip
        every = dict(zip((*self.FILES, *self.FURTHER), rows, strict=True))
        return {name: found for name, found in every.items() if found or name in self.FILES}
