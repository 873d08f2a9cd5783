"""Every flag of one network of known truth, as a run would make it, and the figure behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from bench.base.rows import ModelRow, warns
from bench.base.types import Norm, Spec, Suspicions
from bench.evidence.cells import Trial
from bench.evidence.records import Mask
from bench.measure.cell import Sources, attack_sources
from bench.measure.cell import Subject as Attacked
from bench.measure.probes import Samples, probe
from bench.measure.query import DRAWS
from bench.plan.panel import LATE, Entry, Panel
from bench.plugins import registry
from bench.plugins.contracts import AttackContext, Defense
from bench.plugins.data import Dataset
from bench.results.model_metrics import summarise_model
from bench.runner.worker import attack_seed, attacked
from bench.suspicion.suspect import suspect
from bench.verdict.flags import MODEL_FLAGS, ModelFacts, model_flags
from bench.verdict.panel_flags import panel_flags
from bench.verdict.survivors import Subject

BUDGETS: dict[Norm, float] = {"linf": 0.2, "l0": 4}
ELSEWHERE = ("judged-differently", "accuracy-loss", "handed-over")
"""Flags that compare processes, a model with another or with what its author states."""

LOOKED_AT = [name for name in MODEL_FLAGS if name not in ELSEWHERE]
"""Flags of a model that its own probe decides."""


@dataclass(frozen=True)
class Figure:
    """One flag of one model. ``norm``: of the panel, None where it is the model's own.

    ``value``: the figure that was held against the threshold, or of the flag, None where the flag
    shows none unless it rises; ``raised``: whether it warns, None where it was not evaluated.
    """

    flag: str
    norm: Norm | None
    value: float | None
    raised: bool | None
    p: float | None = None


@dataclass(frozen=True)
class Case:
    """One fitted model: ``anew`` builds an instance of it, ``fitted`` names others by plugin."""

    defense: Defense
    anew: Callable[[], nn.Module]
    fitted: Callable[[Defense | Spec], nn.Module]
    data: Dataset
    sources: Sources


def of_model(case: Case) -> list[Figure]:
    """Return the flags of the model itself."""
    count, sources = len(case.sources.ids), case.sources
    suspicion = suspect(
        case.anew, lambda module: attacked(case.defense, module), sources.x, sources.y,
        BUDGETS["linf"], seed=sources.seed,
    )  # fmt: skip
    found = probe(case.anew(), case.data, Samples(count, count, sources.seed))
    summary = summarise_model(found.rows, sources.ids.tolist())
    row = {"status": "done", "errors": found.errors, **summary, "suspicion": suspicion.document()}
    facts = ModelFacts(
        cast("ModelRow", row), case.data.info.classes, stochastic=case.defense.stochastic
    )
    return list(_figures(model_flags(facts), LOOKED_AT, None))


def of_panel(case: Case, norm: Norm) -> tuple[list[Figure], Mask]:
    """Return the flags that the panel makes at its budget, and which sources survive it.

    Without closers, from which no flag is made.
    """
    panel = Panel(norm=norm, budgets=[BUDGETS[norm]])
    entries = [entry for entry in panel.entries() if entry.role not in LATE]
    placed = [_trial(case, number, entry) for number, entry in enumerate(entries)]
    subject = Subject(panel, case.data.info, case.sources.ids.numpy(), placed)
    found = panel_flags(subject.siblings(BUDGETS[norm]), ())
    names = [measured.flag for measured in found.measured] + list(found.not_evaluated)
    return list(_figures(found, names, norm)), subject.survivors(BUDGETS[norm])


def _trial(case: Case, number: int, entry: Entry) -> Trial:
    attack, defense, model = registry.ATTACKS.make(entry.spec), case.defense, case.anew()
    document = {"attack": registry.ATTACKS.document(attack), "source_seed": case.sources.seed}
    fitted = {role: case.fitted(need) for role, need in attack.requires().items()}
    surrogate = attacked(defense, model) if attack.access == "gradients" else None
    subject = Attacked(model, case.anew, surrogate, DRAWS if defense.stochastic else 1)
    context = AttackContext(case.data.info, attack_seed(document), fitted)
    evidence = attack_sources(subject, attack, case.sources, context)
    row: Any = {
        "id": str(number), "attack": entry.spec.name, "attack_params": registry.parameters(attack),
        "status": "done", "reason": None, "flags": [], "round": 0,
    }  # fmt: skip
    return Trial(row, evidence.records, attack.access, entry)


def _figures(found: Suspicions, names: list[str], norm: Norm | None) -> Iterator[Figure]:
    flags = {flag.id: flag for flag in found.flags}
    measured = {item.flag: item for item in found.measured}
    for name in names:
        flag, figure = flags.get(name), measured.get(name)
        value = figure.value if figure else flag.value if flag else None
        raised = flag is not None and warns({"severity": flag.severity})
        unknown = not raised and name in found.not_evaluated
        yield Figure(name, norm, value, None if unknown else raised, figure.p if figure else None)
