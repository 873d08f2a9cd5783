"""A run's folder as rows: one object a cell, every figure recomputed from its records."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from bench import registry
from bench.aggregate import (
    DISAGREEMENT,
    disagreement,
    summarise,
    summarise_probe,
    worst_case,
)
from bench.fingerprint import digest, source_hash
from bench.flags import cell_flags
from bench.folder import RunFolder
from bench.plan import Node, Plan
from bench.store import (
    check,
    file_hash,
    read_json,
    read_records,
    write_json,
)
from bench.types import DamagedError, DataInfo, Document, Outcome, Spec, ThreatModel

METRICS = (
    *("sources", "correct_sources", "attempts", "successes", "success_rate", "success_ci"),
    *("robust_accuracy", "robust_ci", "worst_case", "worst_case_ci"),
    *("rho_adv", "rho_adv_paper", "rho_censored", "features_all", "features_success"),
    *("l2_success", "linf_success", "adversarial_confidence", "stop_reasons"),
    *("compared", "outcomes_differ", "inputs_differ"),
)
MODEL_METRICS = ("accuracy", "accuracy_ci", "confidence", "max_logit", "logit_gap")


def results(plan: Plan, info: DataInfo, folder: RunFolder) -> list[Document]:
    """Return the rows of ``results.json`` and write it, or reuse it where it stands.

    It stands where it was made of the same records by the same code, and is undamaged.
    """
    path, note = folder.top("results.json"), folder.top("results-key.json")
    code = source_hash(collect)
    key = digest(
        {
            "code": code,
            "probes": [_files(folder.probe(node.id)) for node in plan.of("probe")],
            "cells": [[node.id, _files(folder.cell(node.id))] for node in plan.of("cell")],
        }
    )
    try:
        known = read_json(note)
        check(path, known["results"])
        if known["key"] == key:
            rows: list[Document] = read_json(path)
            return rows
    except (DamagedError, KeyError, TypeError):
        pass  # never made, or damaged: it is made of the records again
    rows = collect(plan, info, folder)
    write_json(path, rows)
    write_json(note, {"key": key, "code": code, "results": file_hash(path)})
    return rows


def _files(path: Path) -> Document:
    document: Document = read_json(path) if path.exists() else {}
    return {name: document.get(name) for name in ("outcome", "files", "queries")}


def collect(plan: Plan, info: DataInfo, folder: RunFolder) -> list[Document]:
    """Return the rows of ``results.json``, in the order of the plan."""
    fits = {node.id: node for node in plan.of("fit")}
    probes = {node.needs["model"]: _probe(node, folder) for node in plan.of("probe")}
    cells = [_Cell(node, info, folder) for node in plan.of("cell")]
    worst = _worst_cases(cells, info)
    rows = []
    for cell in cells:
        fit = cell.node.needs["model"]
        rows.append(
            row(
                cell.identity(fits[fit]),
                cell.outcome,
                cell.threat,
                cell.summary | worst[fit, cell.threat] | _disagreement(cell, cells),
                probes[fit],
                cell.document.get("queries", {}),
                info.classes,
            )
        )
    return rows


class _Cell:
    """One cell as it lies on disk."""

    def __init__(self, node: Node, info: DataInfo, folder: RunFolder) -> None:
        path = folder.cell(node.id)
        spec = node.document["attack"]
        self.node = node
        self.document: Document = read_json(path)
        self.outcome = Outcome(**self.document["outcome"])
        self.threat = registry.ATTACKS.make(Spec(spec["name"], spec["params"])).threat(info.shape)
        self.output: str | None = spec["params"].get("output")
        self.records: pd.DataFrame | None = None
        self.summary: Document = {}
        if self.outcome.status == "done":
            checksum = self.document["files"]["records"]
            self.records = read_records(path.with_suffix(".parquet"), checksum)
            self.summary = summarise(self.records, self.threat, info.features)

    def identity(self, fit: Node) -> Document:
        """Return who met whom."""
        spec = self.node.document["attack"]
        return {
            "id": self.node.id,
            "dataset": fit.document["dataset"]["name"],
            "network": fit.document["network"]["name"],
            "recipe": fit.document["recipe"]["name"],
            "defense": fit.document["defense"]["name"],
            "defense_params": fit.document["defense"]["params"],
            "attack": spec["name"],
            "attack_params": spec["params"],
            "seed": fit.document["seed"],
        }


def _disagreement(cell: _Cell, cells: list[_Cell]) -> Document:
    """Hold a cell against the first of its model and threat that differentiates the same output.

    Where an attack has no such parameter, or none shares its value, against the first of all.
    """
    fit, output = cell.node.needs["model"], cell.output
    siblings = [c for c in cells if c.node.needs["model"] == fit and c.threat == cell.threat]
    first = next((c for c in siblings if output and c.output == output), siblings[0])
    if first is cell or first.records is None or cell.records is None:
        return dict.fromkeys(DISAGREEMENT)
    return disagreement(cell.records, first.records)


def _worst_cases(cells: list[_Cell], info: DataInfo) -> dict[tuple[str, ThreatModel], Document]:
    """Return the worst case of every model under every threat model."""
    of_model: dict[str, list[_Cell]] = {}
    for cell in cells:
        of_model.setdefault(cell.node.needs["model"], []).append(cell)
    return {
        (model, threat): _worst_case(siblings, threat, info)
        for model, siblings in of_model.items()
        for threat in {cell.threat for cell in siblings}
    }


def _worst_case(siblings: list[_Cell], threat: ThreatModel, info: DataInfo) -> Document:
    # A failed or skipped cell leaves the worst case unknown: a crash must not look like robustness.
    if any(cell.records is None and cell.threat == threat for cell in siblings):
        return {"worst_case": None, "worst_case_ci": None}
    records = [cell.records for cell in siblings if cell.records is not None]
    return worst_case(records, threat, info.shape)


def row(
    identity: Document, outcome: Outcome, threat: ThreatModel, summary: Document, probe: Document,
    queries: Document, classes: int,
) -> Document:  # fmt: skip
    """Return one row: who met whom, how it ended, the metrics, the flags."""
    metrics = {name: summary.get(name) for name in METRICS}
    model = {name: probe.get(name) for name in MODEL_METRICS}
    flags = cell_flags(summary, probe, threat, classes) if outcome.status == "done" else []
    return {
        **identity,
        "threat": {"norm": threat.norm, "budget": threat.budget, "unit": threat.unit},
        "status": outcome.status,
        "reason": outcome.reason,
        **metrics,
        **model,
        "forwards": queries.get("forwards"),
        "backwards": queries.get("backwards"),
        "flags": [asdict(flag) for flag in flags],
    }


def _probe(node: Node, folder: RunFolder) -> Document:
    path = folder.probe(node.id)
    if not path.exists():
        return {}
    checksum = read_json(path)["files"]["records"]
    return summarise_probe(read_records(path.with_suffix(".parquet"), checksum))
