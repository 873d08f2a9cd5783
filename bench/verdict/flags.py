"""The evaluation suspects itself: figures that make a result doubtful.

Flags are of three kinds by what they look at: one record set (``cell_flags``), one model
(``model_flags``), and a group of sibling cells (``bench.verdict.panel_flags``). Thresholds, and the
honest networks on which they were measured: docs/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.base.rows import ModelRow, RecheckRow, SuspicionRow
from bench.base.types import Document, Flag, Measured, Severity, Suspicions, ThreatModel
from bench.plugins.contracts import NOT_SUBMITTED, SPENT
from bench.suspicion.difference import LEAST, ROWS

FEW_SOURCES = 60
"""Below this many sources no verdict is given, and below as many correct ones a cell says so."""

NO_OP_SHARE = 0.1
"""Above this share of attempts that changed nothing, the attack did not do its work."""

ROUTED = 0.1
"""From this share of rows of a kind on that other weights answer, a model has several faces."""

ZERO_SHARE = 0.1
COSINE = 0.7
PROBABILITIES = 0.5
ACCURACY_LOSS = 0.1
"""Of one model: thresholds of its gradients, its outputs and its clean accuracy.

``COSINE``: a network that was trained six times as long has a softmax so sure that float32 leaves
a cosine of 0.79 to 0.88, and its naive attack loses nothing; from 0.6 on down it loses much."""


def cell_flags(
    summary: Document,
    probe: Document,
    threat: ThreatModel,
    classes: int,
    differing: int = 0,
    seen: int = 0,
) -> list[Flag]:
    """Return what is suspicious about one cell, given its metrics and its model's.

    ``differing``: rows that the attacked instance answers otherwise than the judging one; ``seen``:
    sources broken by an input that an untargeted attack asked about and did not return.
    """
    found = [
        _invalid(summary),
        _no_op(summary, threat),
        _not_submitted(summary),
        _spent(summary),
        _differing(differing),
        _seen(summary, seen),
        _chance(probe, classes),
        _few(summary),
    ]
    return [flag for flag in found if flag is not None]


def _invalid(summary: Document) -> Flag | None:
    count, attempts = summary["invalid"], summary["attempts"]
    if not count:
        return None
    return Flag(
        "invalid-output", "error", count / attempts, 0.0,
        f"{count} of {attempts} outputs are not finite, leave the box or exceed the budget, "
        "and count as failures",
        "mend the attack: its own report of success cannot be trusted",
    )  # fmt: skip


def _differing(rows: int) -> Flag | None:
    if not rows:
        return None
    return Flag(
        "judged-differently", "error", float(rows), 0.0,
        f"the instance that was attacked answers {rows} rows otherwise than another one of the "
        "same weights",
        "let the answer follow from weights and input alone",
    )  # fmt: skip


def _seen(summary: Document, seen: int) -> Flag | None:
    if not seen:
        return None
    return Flag(
        "found-not-returned", "info", seen / max(1, summary["sources"]), 0.0,
        f"the attack asked about inputs that break {seen} sources, and returned others",
        "what was asked about counts in the worst case; let the attack return the best it saw",
    )  # fmt: skip


def _no_op(summary: Document, threat: ThreatModel) -> Flag | None:
    # An attack that says why it stopped has run, and a minimum-norm attack returns the source
    # where it fails; any other that changes nothing had no gradient, or mistook its labels.
    count, attempts = summary["no_op"], summary["attempts"]
    explained = summary["stop_reasons"] is not None or threat.budget is None
    if explained or not count or count / attempts <= NO_OP_SHARE:
        return None
    return Flag(
        "no-op", "warning", count / attempts, NO_OP_SHARE,
        f"{count} of {attempts} attempts changed nothing at all",
        "look for a gradient of exactly zero (attack the log-odds), or for labels that are "
        "taken for targets",
    )  # fmt: skip


def _not_submitted(summary: Document) -> Flag | None:
    count, attempts = (summary["stop_reasons"] or {}).get(NOT_SUBMITTED, 0), summary["attempts"]
    if not count:
        return None
    return Flag(
        "not-submitted", "warning", count / attempts, 0.0,
        f"{count} of {attempts} attempts have no submitted input and count as failures",
        "submit an input for every attempt (sample_ids are indices in the test split), or read "
        "the success rate as a lower bound",
    )  # fmt: skip


def _spent(summary: Document) -> Flag | None:
    count, attempts = (summary["stop_reasons"] or {}).get(SPENT, 0), summary["attempts"]
    if not count or count / attempts <= NO_OP_SHARE:
        return None
    return Flag(
        "spent", "warning", count / attempts, NO_OP_SHARE,
        f"{count} of {attempts} attempts were stopped at the passes that an attempt may cost",
        "allow more (--max-passes): an attack that was stopped says nothing of what it would do",
    )  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What the flags on a model are made of.

    ``model``: its row of ``models.json``; ``classes``: of the data set; ``stochastic``: whether
    the defense declares it; ``reference``: the accuracy of the undefended network of the same
    seed, None without one.
    """

    model: ModelRow
    classes: int
    stochastic: bool = False
    reference: float | None = None


NO_ANSWER_SHARE = 0.05
"""Above this share of rows at which no class wins, silence is what the model does."""

ALIKE = 0.9
"""How often a surrogate must answer as its model does."""

MODEL_FLAGS = (
    "zero-gradient", "gradient-direction", "gradient-mismatch", "stochastic", "stateful",
    "batch-dependent", "judged-differently", "no-answer", "surrogate", "routed", "probabilities",
    "chance", "accuracy-loss", "handed-over",
)  # fmt: skip


def model_flags(facts: ModelFacts) -> Suspicions:
    """Return what is suspicious about one fitted model, and what could not be looked at."""
    model = facts.model
    if model["status"] != "done":
        reason = "nothing was measured on the model: its fit or its probe failed"
        return Suspicions((), dict.fromkeys(MODEL_FLAGS, reason))
    found = [
        _stochastic(facts),
        _probabilities(model),
        _chance(model, facts.classes),
        _accuracy_loss(facts),
        _handed_over(model),
    ]
    others = Suspicions(tuple(flag for flag in found if flag), _unknown(facts))
    return gradient_flags(model) + suspicion_flags(facts) + others


def gradient_flags(model: ModelRow) -> Suspicions:
    """Return what the gradients of one fitted model say, with the figures that were looked at."""
    return _zero_gradient(model) + _direction(model)


def suspicion_flags(facts: ModelFacts) -> Suspicions:
    """Return what the harness found when it suspected a model (``bench.suspicion.suspect``)."""
    found = facts.model.get("suspicion")
    if found is None:
        return Suspicions()
    if facts.stochastic:  # such a model answers otherwise every time, and is judged by many draws
        found = {**found, "stateful": 0.0, "batch_dependent": 0.0}
    rows = [
        _share("stateful", "error", found["stateful"], "are answered otherwise after other "
               "questions, or by another instance of the same weights",
               "keep no state between calls: what a model answers must follow from its input"),
        _share("batch-dependent", "error", found["batch_dependent"], "are answered otherwise in "
               "another order, batch or mode",
               "let every row's answer depend on that row alone"),
        _no_answer(found["no_answer"]),
        _surrogate(found),
        _judged_differently(facts.model.get("recheck")),
    ]  # fmt: skip
    flags = tuple(flag for flag in rows if flag is not None)
    unknown = {}
    if "answers" in found["errors"]:
        unknown["batch-dependent"] = found["errors"]["answers"]
    if "routed" in found["errors"]:
        unknown["routed"] = found["errors"]["routed"]
    return _mismatch(found) + _routed(found.get("routed")) + Suspicions(flags, unknown)


def _share(name: str, severity: Severity, share: float, what: str, advice: str) -> Flag | None:
    if not share:
        return None
    return Flag(name, severity, share, 0.0, f"{share:.0%} of the rows {what}", advice)


def _mismatch(found: SuspicionRow) -> Suspicions:
    name, kind = "gradient-mismatch", found["gradient"]
    if kind == "unknown":
        reason = found["errors"].get(name, "the answers moved too little to tell")
        return Suspicions((), {name: reason})
    value = 1.0 if found["value"] is None else found["value"]
    measured = (Measured(name, value, kind != "agrees"),)
    if kind == "agrees":
        return Suspicions(measured=measured)
    at = "" if found["step"] is None else f" at steps of {found['step']:.3g}"
    words = {
        "foreign": f"explains {value:.0%} of how the answers move{at}: it is not theirs",
        "shattered": f"explains {value:.0%} of how the answers move{at}, though it does at 1e-6",
        "partial": f"does not explain how the answers move{at} on {value:.0%} of the rows",
        "broken": f"is missing or no number on {value:.0%} of the rows",
    }
    flag = Flag(
        name, "warning", value, LEAST[0] if kind in ("foreign", "shattered") else ROWS,
        f"the gradient {words[kind]} (at {found['where']})",
        "attack a surrogate whose gradient is that of the answers over the budget: an average of "
        "the neighbourhood, or a network taught by the answers",
    )  # fmt: skip
    return Suspicions((flag,), measured=measured)


def _no_answer(share: float) -> Flag | None:
    if not share:
        return None
    return Flag(
        "no-answer", "warning" if share >= NO_ANSWER_SHARE else "info", share, NO_ANSWER_SHARE,
        f"at {share:.0%} of the rows within the budget no class wins with finite logits",
        "an answer that is none counts as an error: name a class for every input",
    )  # fmt: skip


def _surrogate(found: SuspicionRow) -> Flag | None:
    alike = found["surrogate"]
    if alike is None or (alike >= ALIKE and found["averages"] is not False):
        return None
    why = f"answers as the model does on {alike:.0%} of the rows"
    if found["averages"] is False:
        why += ", and no more steadily than one draw"
    return Flag(
        "surrogate", "error", alike, ALIKE,
        f"what gradient attacks are given instead of the model {why}",
        "give the defense a surrogate that is the model's average, or its differentiable likeness",
    )  # fmt: skip


def _routed(share: float | None) -> Suspicions:
    if share is None:
        return Suspicions()
    measured = (Measured("routed", share, share >= ROUTED),)
    if share < ROUTED:
        return Suspicions(measured=measured)
    flag = Flag(
        "routed", "warning", share, ROUTED,
        f"of one kind of rows near the data {share:.0%} are answered by other weights than most: "
        "one network or another answers",
        "judge each of them by itself: attacks meet one, and no gradient leads from it to another",
    )  # fmt: skip
    return Suspicions((flag,), measured=measured)


def _judged_differently(found: RecheckRow | None) -> Flag | None:
    if found is None:
        return None
    rows = sum((found["differing"] or {}).values())
    if not rows and found["reason"] is None:
        return None
    told = found["reason"] or f"answers {rows} recorded inputs otherwise than it did"
    return Flag(
        "judged-differently", "error", float(rows), 0.0,
        f"asked again in a process of its own, the model {told}",
        "let the answer follow from weights and input alone: no memory in a class, a module or a "
        "file, no clock",
    )  # fmt: skip


def _unknown(facts: ModelFacts) -> dict[str, str]:
    gradients, errors = facts.model["gradients"], facts.model["errors"]
    reasons = {}
    if gradients["zero_share"] is None:
        reasons["zero-gradient"] = errors.get("gradients", "no source was measured")
    if gradients["cosine_median"] is None:
        reasons["gradient-direction"] = errors.get(
            "gradients", errors.get("float64", "no source was measured")
        )
    if facts.reference is None or facts.model["accuracy"] is None:
        reasons["accuracy-loss"] = "needs the undefended network of the same seed"
    return reasons


def _zero_gradient(model: ModelRow) -> Suspicions:
    share = model["gradients"]["zero_share"]
    if share is None:
        return Suspicions()
    measured = Measured("zero-gradient", share, share >= ZERO_SHARE)
    if not measured.raised:
        return Suspicions(measured=(measured,))
    flag = Flag(
        "zero-gradient", "warning", share, ZERO_SHARE,
        f"the cross-entropy gradient is exactly zero on {share:.0%} of the sources",
        "attack the log-odds, or a surrogate that has a gradient",
        tuple(model["gradients"]["zero_samples"]),
    )  # fmt: skip
    return Suspicions((flag,), measured=(measured,))


def _direction(model: ModelRow) -> Suspicions:
    cosine = model["gradients"]["cosine_median"]
    if cosine is None:
        return Suspicions()
    measured = Measured("gradient-direction", cosine, cosine < COSINE)
    if not measured.raised:
        return Suspicions(measured=(measured,))
    flag = Flag(
        "gradient-direction", "warning", cosine, COSINE,
        f"the float32 cross-entropy gradient and the float64 log-odds gradient have a median "
        f"cosine of {cosine:.3f}",
        "attack the log-odds: what the deployed output's gradient points at is rounding",
    )  # fmt: skip
    return Suspicions((flag,), measured=(measured,))


def _stochastic(facts: ModelFacts) -> Flag | None:
    gradients = facts.model["gradients"]
    found = facts.model.get("suspicion")
    at_once = found["stochastic"] if found else 0.0
    share = max(gradients["answers_differ"] or 0.0, at_once)
    if not share and not facts.stochastic:
        return None
    return Flag(
        "stochastic", "info" if facts.stochastic else "warning", share, 0.0,
        f"the same query answers differently on {share:.0%} of the sources"
        + (", as declared" if facts.stochastic else ", which is not declared"),
        "gradient attacks follow an average of draws, and several draws judge"
        if facts.stochastic
        else "declare it: then gradient attacks follow an average, and several draws judge",
        tuple(gradients["answers_differ_samples"]),
    )  # fmt: skip


def _probabilities(model: ModelRow) -> Flag | None:
    share = model["probabilities"]
    if share is None or share < PROBABILITIES:
        return None
    return Flag(
        "probabilities", "error", share, PROBABILITIES,
        f"the outputs of {share:.0%} of the test images are not negative and sum to one: they "
        "look like probabilities, where logits are due",
        "return logits: a softmax is applied to what the model answers",
    )  # fmt: skip


def _accuracy_loss(facts: ModelFacts) -> Flag | None:
    accuracy = facts.model["accuracy"]
    if accuracy is None or facts.reference is None or facts.reference - accuracy < ACCURACY_LOSS:
        return None
    return Flag(
        "accuracy-loss", "info", facts.reference - accuracy, ACCURACY_LOSS,
        f"clean accuracy {accuracy:.1%} where the undefended network has {facts.reference:.1%}",
        "read robustness beside accuracy: what is misclassified already needs no attack",
    )  # fmt: skip


def _handed_over(model: ModelRow) -> Flag | None:
    found, bounds = model.get("handed"), model.get("accuracy_ci")
    accuracy = model["accuracy"]
    if found is None or accuracy is None or bounds is None:
        return None
    expected = found["expected"]
    if expected is not None and bounds[1] < expected:
        said = f"clean accuracy is {accuracy:.1%} where its author states {expected:.1%}"
    elif found["suspects"]:
        said = f"clean accuracy is {accuracy:.1%}"
    else:
        return None
    first = next(iter(found["suspects"]), None)
    if first is None:
        cause = "; no usual cause explains it"
        mend = "look at the weights, the builder and how the data were prepared"
    else:
        cause = (
            f"; likely {first['cause']}: on some rows it goes from {first['before']:.0%} to "
            f"{first['accuracy']:.0%} when that is undone"
        )
        mend = first["mend"]
    return Flag(
        "handed-over", "warning", accuracy, expected or (first or {"accuracy": 1.0})["accuracy"],
        said + cause, mend,
    )  # fmt: skip


def chance(classes: int, images: int = 0) -> float:
    """Return the accuracy on ``images`` up to which a model counts as guessing ``classes``.

    1 / classes, three standard errors of it, and a tenth of what is left to learn, for classes may
    be uneven; at most twice 1 / classes and half of the way to 1, which is what it is where
    ``images`` are not told.
    """
    share = 1 / classes
    room = min(share, (1 - share) / 2)
    if images:
        room = min(room, (1 - share) / 10 + 3 * math.sqrt(share * (1 - share) / images))
    return share + room


def _chance(probe: Mapping[str, Any], classes: int) -> Flag | None:
    accuracy = probe.get("accuracy")  # none where the probe failed
    threshold = chance(classes, probe.get("test_samples", 0))
    if accuracy is None or accuracy > threshold:
        return None
    return Flag(
        "chance", "error", accuracy, threshold,
        f"clean accuracy {accuracy:.1%} is at chance: there is nothing to defend",
        "train longer or with another recipe; no robustness can be read off this row",
    )  # fmt: skip


def _few(summary: Document) -> Flag | None:
    count = summary["correct_sources"]
    if count >= FEW_SOURCES:
        return None
    return Flag(
        "few-sources", "info", count, FEW_SOURCES,
        f"only {count} correctly classified sources were attacked",
        "raise --sources before comparing rows",
    )  # fmt: skip
