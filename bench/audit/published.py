"""What is published of a run: rows, pages and figures, without the evidence that they rest on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.audit.repeat import Choice, seed_of
from bench.audit.verify_folder import Shown, Verification, alike, check_figures, check_pages
from bench.base.files import file_hash, read_json, write_json
from bench.base.types import DamagedError, Document, UserError
from bench.evidence.finished_run import FinishedRun, read_results
from bench.evidence.folder import RunFolder
from bench.plan.graph import Plan, make_plan
from bench.plan.matrix import parse_matrix

RECORD = "audit.json"
"""What was verified and made anew when a run was published, and the SHA-256 of every other file."""


def read_published(root: Path) -> FinishedRun:
    """Read what is published of a run; its plan holds no node until ``planned`` expands it."""
    folder = RunFolder(root.absolute())
    try:
        results = read_results(folder.root)
        environment = read_json(folder.top("environment.json"))
        matrix = parse_matrix(environment["matrix"], "environment.json")
    except (DamagedError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{root} is no finished run: {error}") from error
    return FinishedRun(folder, Plan(matrix, {}, {}, "", ()), results, environment)


def planned(run: FinishedRun) -> FinishedRun:
    """Return a published run with the plan of its matrix; asks the plugins that it names."""
    return replace(run, plan=make_plan(run.plan.matrix))


def record(found: Verification | None, environment: Document) -> Document:
    """Return what ``audit.json`` says of a verification, None of one that was not asked for.

    ``environment``: where it took place, as ``bench.evidence.environment`` describes it.
    """
    if found is None or found.choice is None:
        return {"verified": None}
    choice = found.choice
    return {
        "verified": {"mode": found.mode, "counts": found.counts, "notes": found.notes},
        "again": {"cells": choice.cells, "fits": choice.fits, "seed": choice.seed},
        "repeated": [
            {"kind": item.kind, "id": item.id, "outcome": item.outcome} for item in found.repeated
        ],
        "environment": {k: environment[k] for k in ("device", "platform", "python", "libraries")},
    }


def seal(folder: Path, document: Document) -> None:
    """Write ``audit.json`` to a folder that is otherwise ready."""
    write_json(folder / RECORD, {**document, "files": _hashes(folder)})


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in files
        if path.name != RECORD
    }


def check_published(run: FinishedRun, shown: Shown, found: Verification) -> None:
    """Check the pages, the figures made of rows alone, every checksum, and the record itself."""
    root = run.folder.root
    made = check_pages(run, shown.pages, found)
    found.count("pages", len(list(made)))
    libraries = run.environment.get("libraries") or {}
    same = found.mode == "exact" and alike(libraries, ("matplotlib",))
    check_figures(run, shown.draw, None, found, same=same)
    if not run.folder.top(RECORD).exists():
        found.notes.append(f"there is no {RECORD}: nothing says who made what anew, and rows and "
                           "figures of inputs are guarded by nothing")  # fmt: skip
        return
    try:
        document = read_json(run.folder.top(RECORD))
        noted = dict(document["files"])
        _check_record(run, document, found)
    except (DamagedError, AttributeError, KeyError, TypeError, ValueError) as error:
        found.add(RECORD, "document", "unreadable", str(error))
        return
    hashes = _hashes(root)
    found.count("files", len(hashes))
    for name in sorted({*noted, *hashes}):
        if noted.get(name) != hashes.get(name):
            found.add(RECORD, f"SHA-256 of {name}", noted.get(name), hashes.get(name))


def _check_record(run: FinishedRun, document: Document, found: Verification) -> None:
    """Hold what a record says of nodes that were made anew against the seed that drew them."""
    if document["verified"] is None:
        found.notes.append("nothing was made anew when this was published")
        return
    choice = Choice(**document["again"])
    if choice.seed != seed_of(run):
        found.notes.append(f"what was made anew was drawn by a chosen seed, {choice.seed}")
    drawn = choice.of_rows(run.results.cells, run.results.models)
    told: dict[str, list[Any]] = {"fit": [], "cell": []}
    for item in document["repeated"]:
        told[item["kind"]].append(item["id"])
        if item["outcome"] not in ("identical", "within tolerance"):
            found.add(item["id"], f"outcome in {RECORD}", item["outcome"], "published nevertheless")
    for kind, ids in drawn.items():
        if told[kind] != ids:
            found.add(RECORD, f"{kind}s drawn by seed {choice.seed}", told[kind], ids)
