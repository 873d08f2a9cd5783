"""A run's folder as rows: cells, models and verdicts, every figure made from its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import cast

import pandas as pd

from bench.base.files import check, file_hash, read_json, write_json
from bench.base.fingerprint import digest
from bench.base.rows import CellRow, ModelRow, Results, defense_of
from bench.base.types import (
    DamagedError,
    DataInfo,
    Document,
    Outcome,
    Suspicions,
    ThreatModel,
    spec_of,
)
from bench.evidence.cells import Evidence, Trial, nothing_left
from bench.evidence.finished_run import read_results
from bench.evidence.folder import RunFolder
from bench.measure.logits import keeps
from bench.plan.graph import Node, Plan, data_name
from bench.plan.panel import REFERENCE
from bench.plugins import registry
from bench.plugins.code_hash import source_hash
from bench.plugins.contracts import LEARNT
from bench.plugins.data import Dataset
from bench.results.cell_metrics import (
    DISAGREEMENT,
    UNKNOWN,
    disagreement,
    summarise,
    worst_cases,
)
from bench.results.logit_rows import logit_rows
from bench.results.model_metrics import summarise_model, summarise_probe
from bench.results.pair_rows import pair_rows
from bench.results.source_rows import source_rows
from bench.verdict.flags import ModelFacts, cell_flags, model_flags
from bench.verdict.paired import paired_rates
from bench.verdict.verdict_rows import Model, at_seed, verdict_rows

# Which metrics a cell's row has, and which of its model's; what they mean: bench.base.rows.
METRICS = (
    *("sources", "correct_sources", "attempts", "successes", "success_rate", "success_ci"),
    *("robust_accuracy", "robust_ci", "worst_case", "worst_case_ci"),
    *("rho_adv", "rho_adv_paper", "rho_censored", "features_all", "features_success"),
    *("features_mean", "pixels_mean", "l2_mean", "linf_mean"),
    *("l2_success", "linf_success", "adversarial_confidence", "stop_reasons", "zero_gradients"),
    *("compared", "outcomes_differ", "inputs_differ", "paired"),
)
MODEL_METRICS = ("accuracy", "accuracy_ci", "confidence", "max_logit", "logit_gap")


def results(plan: Plan, data: Dataset, folder: RunFolder) -> Results:
    """Return what the records of a run come to and write it, or reuse it where it stands.

    It stands where it was made of the same records by the same code, and is undamaged.
    """
    note = folder.top("results-key.json")
    code = source_hash(collect)
    key = digest(
        {
            "code": code,
            "plan": digest(plan.document()),
            "report": plan.matrix.report,
            "panels": [asdict(entry) for entry in plan.matrix.entries()],
            "fits": [folder.model(node.id).exists() for node in plan.of("fit")],
            "attacks": [_learnt(folder, node.id) for node in plan.of("attack-fit")],
            "probes": [_files(Evidence(folder, "probe", node.id)) for node in plan.of("probe")],
            "rechecks": [_recheck(folder, node.id) for node in plan.of("fit")],
            "cells": [
                [node.id, _files(Evidence(folder, "cell", node.id))] for node in plan.of("cell")
            ],
        }
    )
    try:
        known = read_json(note)
        if known["key"] == key:
            for name in {*Results.FILES, *known["files"]}:
                check(folder.top(name), known["files"][name])
            return read_results(folder.root)
    except (DamagedError, KeyError, TypeError):
        pass  # never made, or damaged: it is made of the records again
    made = collect(plan, data, folder)
    documents = made.documents()
    for name in Results.FURTHER:
        if name not in documents:  # left by the same matrix with another report
            folder.top(name).unlink(missing_ok=True)
    for name, document in documents.items():
        write_json(folder.top(name), document)
    hashes = {name: file_hash(folder.top(name)) for name in documents}
    write_json(note, {"key": key, "code": code, "files": hashes})
    return made


def _learnt(folder: RunFolder, fit: str) -> Document | None:
    """Return what the passes of an attack's fit were, None where it left nothing."""
    try:
        found: Document = read_json(folder.document("attack-fit", fit))["queries"]
    except (DamagedError, KeyError, TypeError):
        return None
    return found


def _files(evidence: Evidence) -> Document:
    document: Document = evidence.document if evidence.exists else {}
    return {
        name: document.get(name)
        for name in ("outcome", "files", "queries", "errors", "differing", "suspicion")
    }


def _recheck(folder: RunFolder, fit: str) -> Document | None:
    """Return what came of asking a model again, None where it was not asked."""
    try:
        document = read_json(folder.recheck(fit))
        return {name: document[name] for name in ("differing", "reason")}
    except (DamagedError, KeyError, TypeError):
        return None


STATED = ("outcome", "files", "queries", "errors", "differing", "suspicion")
"""What the rows take from the document of a node."""


def collect(plan: Plan, data: Dataset, folder: RunFolder) -> Results:
    """Return the rows of a run's cells, models and verdicts, in the order of the plan."""
    info = data.info
    fits = {node.id: node for node in plan.of("fit")}
    probes = {node.needs["model"]: _Probe(node, folder) for node in plan.of("probe")}
    told = plan.matrix.report == "findings"
    cells = [_Cell(node, info, folder, logits=told) for node in plan.of("cell")]
    of_model: dict[str, list[_Cell]] = {fit: [] for fit in fits}
    for cell in cells:
        of_model[cell.fit].append(cell)
    worst = _worst_cases(of_model, info)
    plain = _Plain(of_model, fits, plan.reference or _undefended())
    rows = []
    for cell in cells:
        fit = cell.fit
        rows.append(
            row(
                {"id": cell.node.id, **identity(fits[fit]), **cell.identity()} | cell.watched(),
                cell.outcome,
                cell.threat,
                cell.summary
                | worst[fit, cell.threat]
                | _disagreement(cell, of_model[fit])
                | {"paired": plain.paired(cell)},
                probes[fit].summary,
                cell.evidence.document.get("queries", {}),
                info.classes,
            )
        )
    sources = data.sources(
        None if plan.matrix.sources == "all" else plan.matrix.sources, plan.matrix.source_seed
    ).tolist()
    models = [
        cast(
            "ModelRow",
            {
                "id": fit,
                **identity(fits[fit]),
                **probes[fit].model(sources),
                "recheck": _recheck(folder, fit),
            },
        )
        for fit in probes
    ]
    suspected = [_suspicions(row, models, info.classes, plan.reference) for row in models]
    trials = [Trial(r, cell.records, cell.access) for r, cell in zip(rows, cells, strict=True)]
    judged = [
        Model(
            model,
            found,
            [t for t, cell in zip(trials, cells, strict=True) if cell.fit == model["id"]],
            probes[model["id"]].records,
        )
        for model, found in zip(models, suspected, strict=True)
    ]
    return Results(
        rows,
        [
            cast("ModelRow", {**m, **found.document()})
            for m, found in zip(models, suspected, strict=True)
        ],
        verdict_rows(plan.matrix, info, sources, judged),
        logit_rows(judged, sources) if told else [],
        pair_rows(plan.matrix, info, sources, judged) if told else [],
        source_rows(plan.matrix, data, sources, judged, folder),
    )


def _suspicions(
    model: ModelRow, models: list[ModelRow], classes: int, plain: Document | None
) -> Suspicions:
    """Return the flags of one model, given the others: one may be its ``plain`` counterpart."""
    defense = registry.DEFENSES.make(spec_of(defense_of(model)))
    others = {m["seed"]: m for m in models if defense_of(m) == (plain or _undefended())}
    reference = at_seed(others, model["seed"])
    return model_flags(
        ModelFacts(
            model=model,
            classes=classes,
            stochastic=defense.stochastic,
            reference=reference.get("accuracy") if reference else None,
        )
    )


def identity(fit: Node) -> Document:
    """Return what says which model a row is about."""
    return {
        "dataset": data_name(fit.document["dataset"]),
        "network": fit.document["network"]["name"],
        "recipe": fit.document["recipe"]["name"],
        "defense": fit.document["defense"]["name"],
        "defense_params": fit.document["defense"]["params"],
        "seed": fit.document["seed"],
    }


class _Cell:
    """One cell as it lies on disk; without its ``logits``, which cost time, where none are told."""

    def __init__(self, node: Node, info: DataInfo, folder: RunFolder, *, logits: bool) -> None:
        attack = node.attack()
        self.node = node
        self.evidence = Evidence(folder, "cell", node.id)
        self.outcome = self.evidence.outcome
        self.fit = node.needs["model"]
        with registry.asking(attack, "threat"):
            self.threat = attack.threat(info.shape)
        self.access = attack.access
        self.output: str | None = node.document["attack"]["params"].get("output")
        self.records: pd.DataFrame | None = None
        self.summary: Document = {}
        if self.outcome.status == "done":
            self.records = self.evidence.records(None if logits else lambda name: not keeps(name))
            self.summary = summarise(self.records, self.threat, info.features)
            if node.closes:  # it was given what others left: a share of that is no accuracy
                self.summary |= {"robust_accuracy": None, "robust_ci": None}

    def identity(self) -> Document:
        """Return what says which attack a row is about."""
        spec = self.node.document["attack"]
        return {"attack": spec["name"], "attack_params": spec["params"]}

    @property
    def unknown(self) -> bool:
        """Whether the cell should have broken sources, and did not come to it."""
        return self.records is None and not nothing_left(self.outcome)

    def watched(self) -> Document:
        """Return what the runner saw beside the attack's own words."""
        closes = self.node.closes
        seen = None
        if self.records is not None:
            rows = (self.records["status"] == "seen").to_numpy(bool)
            seen = int(self.records["misclassified"].to_numpy(bool)[rows].sum())
        return {
            **self._learnt(),
            "round": closes.round if closes else 0,
            "differing": self.evidence.document.get("differing"),
            "seen": seen,
        }

    def _learnt(self) -> Document:
        """Return what the attack learnt before, of one that learns."""
        fit = self.node.needs.get(LEARNT)
        if fit is None:
            return {}
        queries = _learnt(self.evidence.folder, fit) or {}  # it failed, or was skipped
        counts = {name: queries.get(name) for name in ("forwards", "backwards")}
        return {"learnt": {"id": fit, **counts}}


def _disagreement(cell: _Cell, cells: list[_Cell]) -> Document:
    """Hold a cell against the first of its threat that differentiates the same output.

    Where an attack has no such parameter, or none shares its value, against the first of all.
    ``cells``: all of its model.
    """
    if cell.node.closes:
        return dict.fromkeys(DISAGREEMENT)
    output = cell.output
    siblings = [c for c in cells if c.threat == cell.threat and not c.node.closes]
    first = next((c for c in siblings if output and c.output == output), siblings[0])
    if first is cell or first.records is None or cell.records is None:
        return dict.fromkeys(DISAGREEMENT)
    return disagreement(cell.records, first.records)


def _undefended() -> Document:
    """Return what a cell without a panel is held against, where the run has it."""
    return registry.DEFENSES.document(registry.DEFENSES.make(REFERENCE))


class _Plain:
    """The cells of the networks that others are held against, those of the defense ``plain``."""

    def __init__(
        self, of_model: Mapping[str, list[_Cell]], fits: Mapping[str, Node], plain: Document
    ) -> None:
        self.fits = fits
        plains = [fit for fit in fits if fits[fit].document["defense"] == plain]
        self.only = len({fits[fit].document["seed"] for fit in plains}) == 1
        self.cells = [cell for fit, cells in of_model.items() if fit in plains for cell in cells]

    def paired(self, cell: _Cell) -> Document | None:
        """Hold a cell against the plain network of its seed under the same attack.

        The difference of the success rates over their common attempts, or None where there is none.
        """
        if cell.node.closes:
            return None  # two closers are given other sources
        seed = self.fits[cell.fit].document["seed"]
        for other in self.cells:
            if (
                other.fit != cell.fit
                and (self.only or self.fits[other.fit].document["seed"] == seed)
                and other.node.document["attack"] == cell.node.document["attack"]
            ):
                if cell.records is None or other.records is None:
                    return None
                rates = paired_rates(cell.records, other.records)
                return rates and {"baseline": other.node.id, **rates}
        return None


def _worst_cases(
    of_model: Mapping[str, list[_Cell]], info: DataInfo
) -> dict[tuple[str, ThreatModel], Document]:
    """Return the worst case of every model under every threat model."""
    found = {}
    for model, cells in of_model.items():
        records = [cell.records for cell in cells if cell.records is not None]
        cases = worst_cases(records, {cell.threat for cell in cells}, info.shape)
        # A failed or skipped cell leaves it unknown: a crash must not look like robustness.
        gaps = {cell.threat for cell in cells if cell.unknown}
        found.update(
            {(model, t): UNKNOWN if t in gaps else document for t, document in cases.items()}
        )
    return found


def row(
    identity: Document, outcome: Outcome, threat: ThreatModel, summary: Document, probe: Document,
    queries: Document, classes: int,
) -> CellRow:  # fmt: skip
    """Return one row: who met whom, how it ended, the metrics, the flags."""
    metrics = {name: summary.get(name) for name in METRICS}
    model = {name: probe.get(name) for name in MODEL_METRICS}
    flags = []
    if outcome.status == "done":
        watched = (identity.get(name) or 0 for name in ("differing", "seen"))
        flags = cell_flags(summary, probe, threat, classes, *watched)
    made = {
        **identity,
        "threat": {"norm": threat.norm, "budget": threat.budget, "unit": threat.unit},
        "status": outcome.status,
        "reason": outcome.reason,
        **metrics,
        **model,
        "forwards": queries.get("forwards"),
        "backwards": queries.get("backwards"),
        "zero_gradient_share": _share(metrics["zero_gradients"], queries.get("backwards")),
        "flags": [asdict(flag) for flag in flags],
    }
    return cast("CellRow", made)  # that they have the columns, a test holds


def _share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else part / whole


class _Probe:
    """One probe as it lies on disk; nothing is known where it failed."""

    def __init__(self, node: Node, folder: RunFolder) -> None:
        self.evidence = Evidence(folder, "probe", node.id)
        self.records = self.evidence.records() if self.evidence.exists else None

    @cached_property
    def summary(self) -> Document:
        """What stands beside every cell of the model."""
        return {} if self.records is None else summarise_probe(self.records)

    def model(self, sources: list[int]) -> Document:
        """Return all that was measured on the model."""
        if self.records is None:
            return {"status": "failed"}
        told = self.evidence.document
        return {
            "status": "done",
            **{name: told[name] for name in ("parameters", "errors", "suspicion")},
            **{name: told[name] for name in ("handed",) if name in told},
            **summarise_model(self.records, sources),
        }
