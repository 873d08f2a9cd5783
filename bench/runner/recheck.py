"""Every model asked once more, in a process that has seen nothing, on inputs of all its cells.

A cell's judge is a new instance, but its process has trained, attacked and asked before: what a
model keeps outside of itself, in its class, a module or a file, it could find again there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import torch

from bench.base.files import read_json, read_tensors, write_json
from bench.base.fingerprint import digest
from bench.base.types import DamagedError, Document
from bench.evidence.cells import Evidence
from bench.evidence.folder import RunFolder
from bench.measure.logits import keeps, read
from bench.measure.query import ask, differs
from bench.plan.graph import Kind, Node, Plan
from bench.plugins.code_hash import source_hash
from bench.runner.rebuild import Rebuilder
from bench.runner.task import Answer, Executor, Settings
from bench.suspicion.bare import ask_bare

SEED = 20
"""Of which inputs are asked, and in which order."""

ROWS = 2000
"""Inputs that a model is asked about, from all its cells alike: at least one of each."""


def recheck(plan: Plan, folder: RunFolder, executor: Executor, fresh: bool = False) -> None:
    """Ask every model of a finished run again, and write what differs to ``rechecks/FIT.json``.

    Models that declare themselves stochastic answer otherwise every time, and are left out. What
    was asked before about the same evidence and answered is not asked again, unless ``fresh``.
    """
    waiting: dict[str, tuple[Document, Future[Answer[dict[str, int]]]]] = {}
    for fit in plan.of("fit"):
        cells = rechecked(plan, folder, fit)
        if not cells:
            continue
        key = key_of(cells)
        path = folder.recheck(fit.id)
        try:
            before = read_json(path)
            # A time-out or a death may not come again.
            stands = not fresh and before["key"] == key and before["reason"] is None
        except (DamagedError, KeyError, TypeError):
            stands = False
        if not stands:
            read: list[tuple[Kind, str]] = [("fit", fit.id), *(("cell", cell) for cell in cells)]
            waiting[fit.id] = (key, executor.fresh(answers, fit.id, list(cells), reads=read))
    for fit_id, (key, future) in waiting.items():
        differing, reason = future.result()
        document = {"key": key, "differing": differing, "reason": reason}
        write_json(folder.recheck(fit_id), document)


def answers(settings: Settings, fit: str, cells: Sequence[str]) -> dict[str, int]:
    """Return by cell in how many rows the model ``fit`` now answers otherwise than is recorded.

    Inputs of all ``cells`` are asked together, shuffled, before a record is read; then another
    instance is asked as a user would, with nothing of the harness in sight.
    """
    models = Rebuilder(settings)
    evidence = [Evidence(models.folder, "cell", cell) for cell in cells]
    share = -(-ROWS // len(cells))
    inputs, chosen = [], []
    for item in evidence:
        x_adv = read_tensors(models.folder.files("cell", item.id)["inputs"])["x_adv"]
        rows = np.random.RandomState(SEED).permutation(len(x_adv))[:share]
        inputs.append(x_adv[torch.from_numpy(rows)])
        chosen.append(rows)
    _, model = models.load_model(fit)
    x = torch.cat(inputs).to(models.device)
    info = models.info(fit)
    sizes = [len(part) for part in inputs]
    here = torch.split(ask(model, x, info.classes, SEED), sizes)
    bare = torch.split(ask_bare(models.load_model(fit)[1], x), sizes)
    found = {}
    for item, rows, *said in zip(evidence, chosen, here, bare, strict=True):
        stored = torch.from_numpy(np.ascontiguousarray(read(item.records(keeps))[rows]))
        other = torch.stack([differs(stored, logits.cpu()) for logits in said])
        found[item.id] = int(other.any(dim=0).sum())
    return found


def key_of(cells: Mapping[str, Document]) -> Document:
    """Return what asking again about these cells depends on: their evidence, and our code."""
    return {"cells": digest(dict(cells)), "source": source_hash(answers)}


def rechecked(plan: Plan, folder: RunFolder, fit: Node) -> Mapping[str, Document]:
    """Return the checksums of the cells that a model is asked about again, by id.

    Its finished ones; none where it declares itself stochastic.
    """
    found: dict[str, Document] = {}
    if fit.defense().stochastic:
        return found
    for node in plan.of("cell"):
        if node.needs["model"] != fit.id:
            continue
        evidence = Evidence(folder, "cell", node.id)
        try:
            if evidence.outcome.status == "done":
                found[node.id] = evidence.document["files"]
        except (DamagedError, KeyError, TypeError):
            continue
    return found
