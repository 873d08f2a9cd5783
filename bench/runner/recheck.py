"""Every model asked once more, in a process that has seen nothing, on all inputs of its cells.

A cell's judge is a new instance, but its process has trained, attacked and asked before: what a
model keeps outside of itself, in its class, a module or a file, it could find again there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from bench.base.files import read_json, read_tensors, write_json
from bench.base.fingerprint import digest
from bench.base.types import DamagedError, Document
from bench.evidence.cells import Evidence
from bench.evidence.folder import RunFolder
from bench.measure.logits import read
from bench.measure.query import ask, differs
from bench.plan.graph import Plan
from bench.plugins.code_hash import source_hash
from bench.runner.processes import Answer, LocalExecutor
from bench.runner.rebuild import Rebuilder
from bench.runner.task import Settings
from bench.suspicion.bare import ask_bare

SEED = 20
"""Of the order in which the inputs are asked."""


def recheck(plan: Plan, folder: RunFolder, executor: LocalExecutor) -> None:
    """Ask every model of a finished run again, and write what differs to ``rechecks/FIT.json``.

    Models that declare themselves stochastic answer otherwise every time, and are left out. What
    was asked before about the same evidence is not asked again.
    """
    waiting: dict[str, tuple[str, Future[Answer[dict[str, int]]]]] = {}
    for fit in plan.of("fit"):
        cells = _done(plan, folder, fit.id)
        if not cells or fit.defense().stochastic:
            continue
        key = digest({"cells": cells, "source": source_hash(answers)})
        path = folder.recheck(fit.id)
        try:
            stands = read_json(path)["key"] == key
        except (DamagedError, KeyError, TypeError):
            stands = False
        if not stands:
            waiting[fit.id] = (key, executor.fresh(answers, fit.id, list(cells)))
    for fit_id, (key, future) in waiting.items():
        asked = executor.outcome(future)
        differing, reason = asked
        document = {"key": key, "differing": differing, "reason": reason}
        write_json(folder.recheck(fit_id), document)


def answers(settings: Settings, fit: str, cells: Sequence[str]) -> dict[str, int]:
    """Return by cell in how many rows the model ``fit`` now answers otherwise than is recorded.

    All inputs of the ``cells`` are asked together, shuffled, before a record is read; then another
    instance is asked as a user would, with nothing of the harness in sight.
    """
    models = Rebuilder(settings)
    evidence = [Evidence(models.folder, "cell", cell) for cell in cells]
    inputs = [
        read_tensors(models.folder.files("cell", item.id)["inputs"])["x_adv"] for item in evidence
    ]
    _, model = models.load_model(fit)
    x = torch.cat(inputs).to(models.device)
    info = models.info(fit)
    sizes = [len(part) for part in inputs]
    here = torch.split(ask(model, x, info.classes, SEED), sizes)
    bare = torch.split(ask_bare(models.load_model(fit)[1], x), sizes)
    found = {}
    for item, *said in zip(evidence, here, bare, strict=True):
        stored = torch.from_numpy(np.ascontiguousarray(read(item.records())))
        other = torch.stack([differs(stored, logits.cpu()) for logits in said])
        found[item.id] = int(other.any(dim=0).sum())
    return found


def _done(plan: Plan, folder: RunFolder, fit: str) -> Mapping[str, Any]:
    """Return the checksums of the finished cells of a model, by id."""
    found: dict[str, Document] = {}
    for node in plan.of("cell"):
        if node.needs["model"] != fit:
            continue
        evidence = Evidence(folder, "cell", node.id)
        try:
            if evidence.outcome.status == "done":
                found[node.id] = evidence.document["files"]
        except (DamagedError, KeyError, TypeError):
            continue
    return found
