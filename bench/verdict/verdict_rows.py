"""Verdicts as rows: one a defense, norm and budget, over all training seeds of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.fingerprint import digest
from bench.base.rows import DEFENSE, ModelRow, VerdictRow, attack_of, defense_of, warns
from bench.base.types import DataInfo, Document, Suspicions, spec_of
from bench.evidence.cells import Trial
from bench.plan.graph import as_defense
from bench.plan.matrix import MatrixConfig
from bench.plan.panel import Entry, Panel
from bench.plugins import registry
from bench.verdict.paired import Pairs, agresti_min, pairs
from bench.verdict.panel_flags import panel_flags
from bench.verdict.ranking import rank_ranges, widest
from bench.verdict.rates import wilson
from bench.verdict.rule import POWER, Facts, Judgement, combine, judge
from bench.verdict.survivors import Subject


@dataclass(frozen=True)
class Model:
    """One fitted model: its row of ``models.json``, its flags, its cells, the rows of its probe."""

    row: ModelRow
    suspicions: Suspicions
    trials: Sequence[Trial]
    probe: pd.DataFrame | None = None


T = TypeVar("T")

Place = tuple[str, int]
"""Where a cell stands in a panel: the digest of its attack's document, and its round."""


def panel_entries(matrix: MatrixConfig, panel: Panel) -> dict[Place, Entry]:
    """Return the entries of ``panel`` by their place, for look-up."""
    found: dict[Place, Entry] = {}
    for entry in matrix.panel_entries(panel):
        document = registry.ATTACKS.document(registry.ATTACKS.make(entry.spec))
        found.setdefault((digest(document), entry.round), entry)
    return found


def verdict_rows(
    matrix: MatrixConfig, info: DataInfo, sources: Sequence[int], models: Sequence[Model]
) -> list[VerdictRow]:
    """Return one row a defense and budget of every panel of ``matrix``.

    ``sources``: the sample ids that every model was attacked on; ``models``: the fits that have
    cells, in the order of the plan.
    """
    ids = np.asarray(sources, dtype=np.int64)
    return [
        row for panel in matrix.panel for row in _Table(matrix, panel, info, ids, models).rows()
    ]


def at_seed(seeds: Mapping[int, T], seed: int) -> T | None:
    """Return what a reference has at a training seed: its own, or the only one it has."""
    return next(iter(seeds.values())) if len(seeds) == 1 else seeds.get(seed)


class _Table:
    """One panel: every defense at every training seed."""

    def __init__(
        self, matrix: MatrixConfig, panel: Panel, info: DataInfo, ids: npt.NDArray[np.int64],
        models: Sequence[Model],
    ) -> None:  # fmt: skip
        self.matrix = matrix
        self.panel = panel
        self.info = info
        entries = panel_entries(matrix, panel)
        expected = list(entries.values())
        self.models: dict[str, dict[int, Model]] = {}
        self.subjects: dict[str, dict[int, Subject]] = {}
        for model in models:
            name, seed = defense_name(model.row), model.row["seed"]
            trials = [placed(trial, entries) for trial in model.trials]
            self.models.setdefault(name, {})[seed] = model
            self.subjects.setdefault(name, {})[seed] = Subject(panel, info, ids, trials, expected)
        spec = matrix.compared_with()
        self.compared = spec is not None
        self.reference = None
        if spec is not None:
            document = registry.DEFENSES.document(registry.DEFENSES.make(spec))
            self.reference = next((n for n, s in self.models.items() if _is(s, document)), None)
        self.references = {
            name: plain
            for name, seeds in self.models.items()
            if (plain := _plain(seeds, self.models)) is not None
        }

    def rows(self) -> list[VerdictRow]:
        """Return the rows, by budget and then by defense."""
        headline = self._headline()
        found = []
        for budget in self.panel.budgets:
            ranks = self._ranks(budget)
            for name in self.models:
                row = self._row(name, budget)
                place = {"rank": ranks.get(name), "headline": budget == headline}
                found.append(cast("VerdictRow", row | place))
        return found

    def _headline(self) -> float | None:
        """Return the smallest budget at which the panel has power at every seed."""
        for budget in self.panel.budgets:
            left = [self._left(subject, budget) for subject in self._undefended().values()]
            if left and all(value is not None and value <= POWER for value in left):
                return budget
        return None

    def _undefended(self, name: str | None = None) -> Mapping[int, Subject]:
        """Return by seed what the defense ``name`` is compared with: the run's, or its own."""
        found = self._compared_with(name or "")
        return {} if found is None else self.subjects.get(found, {})

    def _compared_with(self, name: str) -> str | None:
        return self.references.get(name, self.reference)

    def _is_reference(self, name: str) -> bool:
        return name == self._compared_with(name)

    def _like(self, name: str, seed: int) -> bool:
        """Return whether a model has the architecture of what it is compared with."""
        other = at_seed(self.models.get(self._compared_with(name) or "", {}), seed)
        return _contains(_shapes(self.models[name][seed]), _shapes(other))

    def _left(self, subject: Subject | None, budget: float) -> float | None:
        """Return the worst case of a model; None where a cell of the panel did not do its work."""
        if subject is None or subject.missing(budget) or not len(subject.ids):
            return None
        return float(subject.survivors(budget).mean())

    def _ranks(self, budget: float) -> dict[str, tuple[int, int]]:
        complete = {
            name: seeds
            for name, seeds in self.subjects.items()
            if not any(subject.missing(budget) for subject in seeds.values())
        }
        seeds = sorted({seed for group in complete.values() for seed in group})
        by_seed = [
            rank_ranges(
                {n: group[seed].survivors(budget) for n, group in complete.items() if seed in group}
            )
            for seed in seeds
        ]
        return {n: widest([found[n] for found in by_seed if n in found]) for n in complete}

    def _row(self, name: str, budget: float) -> Document:
        seeds = self.models[name]
        judged = {seed: self._seed(name, seed, budget) for seed in seeds}
        verdict: Document = dict.fromkeys(("verdict", "rule", "why", "sources_needed"))
        verdict["verdict"] = "reference"
        if not self._is_reference(name):
            whole = combine([judgement for _, judgement in judged.values()])
            verdict = {
                "verdict": whole.label,
                "rule": whole.rule,
                "why": whole.why,
                "sources_needed": whole.sources_needed,
            }
        model = next(iter(seeds.values())).row
        identity = {key: value for key, value in model.items() if key in DEFENSE}
        place = {"norm": self.panel.norm, "at": budget}
        threat = self.panel.threat(budget, self.info.features)
        return {
            "id": digest({**identity, **place})[:16],
            **identity,
            "threat": {"norm": threat.norm, "budget": threat.budget, "unit": threat.unit},
            "at": _number(self.panel, budget),
            **verdict,
            "reference": self._named(self._compared_with(name)),
            "seeds": [document for document, _ in judged.values()],
            "curve": self._curve(name) if budget == self.panel.budgets[-1] else None,
        }

    def _named(self, name: str | None) -> Document | None:
        """Return what says which defense is called ``name``."""
        if name is None or name not in self.models:
            return None
        row = next(iter(self.models[name].values())).row
        return {"defense": row["defense"], "defense_params": row["defense_params"]}

    def _seed(self, name: str, seed: int, budget: float) -> tuple[Document, Judgement]:
        model, subject = self.models[name][seed], self.subjects[name][seed]
        compared = self.compared or name in self.references
        reference = at_seed(self._undefended(name), seed)
        missing = subject.missing(budget)
        suspicions = model.suspicions + panel_flags(subject.siblings(budget), missing)
        table = None
        if (reference is not None or not compared) and len(subject.ids):
            left = subject.survivors(budget)
            table = pairs(left, reference.survivors(budget) if reference else np.zeros_like(left))
        complete = not missing and reference is not None and not reference.missing(budget)
        judgement = judge(
            Facts(
                sources=len(subject.ids),
                pairs=table,
                reference=self._left(reference, budget),
                missing=(*missing, *_of_undefended(reference, subject, budget)),
                warnings=_warnings(suspicions, subject.members(budget)),
                not_evaluated=frozenset(suspicions.not_evaluated),
                moved=subject.unsettled(budget),
                like=self._like(name, seed),
                compared=compared,
            )
        )
        followed = subject.followed_up(budget)
        if followed is not None:
            told = f"the panel followed the gradients of surrogates, which broke {followed} more"
            judgement = replace(judgement, why=f"{judgement.why}; {told}")
        gradients: Mapping[str, Any] = model.row.get("gradients") or {}
        itself = self._is_reference(name)
        against = table if complete and not itself else None
        document = {
            "seed": seed,
            "model": model.row["id"],
            **self._figures(subject, budget),
            "undefended": self._left(reference, budget),
            "delta": None if against is None else against.delta,
            "delta_ci": None if against is None else _interval(against),
            "gradient_cosine": gradients.get("cosine_median"),
            "zero_share": gradients.get("zero_share"),
            **subject.queries(budget),
            **suspicions.document(),
            "unsettled": subject.unsettled(budget),
            "followed_up": followed,
            "verdict": None if itself else judgement.verdict,
            "rule": None if itself else judgement.rule,
            "why": None if itself else judgement.why,
        }
        return document, judgement

    def _figures(self, subject: Subject, budget: float) -> Document:
        """Return worst case, naive accuracy, the drop between them, and who made it."""
        total, left = len(subject.ids), self._left(subject, budget)
        naive = subject.naive(budget)
        easy = None if naive is None or not total else float(naive.mean())
        harder = self.matrix.effort > 1 and left is not None
        before = float(subject.survivors(budget, effort=1).mean()) if harder else None
        return {
            "sources": total,
            "worst_case": left,
            "worst_case_ci": None if left is None else wilson(round(left * total), total),
            "naive": easy,
            "drop": _minus(easy, left),
            "moved": _minus(before, left),
            "broken_by": subject.breakers(budget),
        }

    def _curve(self, name: str) -> Document:
        """Return the worst case of every seed against the budget, beside the undefended one.

        At 0 and at the budgets of the panel: in between, nothing was tried that spends them whole.
        """
        grid = [0.0, *self.panel.budgets]
        groups = {"worst_case": self.subjects[name], "undefended": self._undefended(name)}
        curves: dict[str, Any] = {
            key: {str(seed): self._line(subject, grid) for seed, subject in group.items()}
            for key, group in groups.items()
        }
        return {"at": [_number(self.panel, value) for value in grid], **curves}

    def _line(self, subject: Subject, grid: Sequence[float]) -> list[float] | None:
        if any(subject.missing(budget) for budget in self.panel.budgets) or not len(subject.ids):
            return None
        return [
            float((subject.survivors(value) if value else subject.correct).mean()) for value in grid
        ]


def defense_name(row: Mapping[str, Any]) -> str:
    """Return the digest of what says which defense a row is about."""
    return digest({key: row[key] for key in DEFENSE})


def _plain(seeds: Mapping[int, Model], models: Mapping[str, Mapping[int, Model]]) -> str | None:
    """Return the name of a defense's own undefended counterpart, None where it has none."""
    defense = registry.DEFENSES.make(spec_of(defense_of(next(iter(seeds.values())).row)))
    plain = as_defense(defense.plain())
    if plain is None:
        return None
    document = registry.DEFENSES.document(plain)
    return next((name for name, other in models.items() if _is(other, document)), "not in the run")


def _is(seeds: Mapping[int, Model], defense: Document) -> bool:
    return _document(seeds) == defense


def _document(seeds: Mapping[int, Model]) -> Document:
    return defense_of(next(iter(seeds.values())).row)


def placed(trial: Trial, entries: Mapping[Place, Entry]) -> Trial:
    """Return ``trial`` with its place in the panel."""
    place = (digest(attack_of(trial.row)), trial.row.get("round", 0))
    return replace(trial, entry=entries.get(place))


def _shapes(model: Model | None) -> Sequence[Sequence[int]]:
    found = model.row.get("suspicion") if model else None
    return found["shapes"] if found else []


def _contains(shapes: Sequence[Sequence[int]], part: Sequence[Sequence[int]]) -> bool:
    """Return whether a model has weights of all the shapes of another one."""
    counts = Counter(tuple(shape) for shape in shapes)
    return bool(part) and not Counter(tuple(shape) for shape in part) - counts


def _of_undefended(reference: Subject | None, subject: Subject, budget: float) -> list[str]:
    if reference is None or reference is subject:
        return []
    return [f"undefended: {why}" for why in reference.missing(budget)]


def _warnings(suspicions: Suspicions, members: Sequence[Trial]) -> frozenset[str]:
    flags: list[Mapping[str, Any]] = [asdict(flag) for flag in suspicions.flags]
    flags += [flag for trial in members for flag in trial.row["flags"]]
    return frozenset(flag["id"] for flag in flags if warns(flag))


def _interval(table: Pairs) -> tuple[float, float]:
    return agresti_min(table)


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _number(panel: Panel, budget: float) -> float | int:
    return int(budget) if panel.norm == "l0" else budget
