"""Runs of one matrix that were made apart, some training seeds here and some there, as one run.

What the runs left is copied, not made again; that it fits together is checked before, and the
whole is for ``verify`` afterwards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.base.files import read_json
from bench.base.fingerprint import digest
from bench.base.places import base
from bench.base.types import DamagedError, Document, UserError
from bench.compose import RunResult, write_results
from bench.evidence.finished_run import FinishedRun, read_run
from bench.evidence.folder import RunFolder
from bench.plan.graph import Node
from bench.plan.options import RunOptions
from bench.plugins import discovery
from bench.runner.prepare import prepare
from bench.runner.schedule import REMARKS, Progress, opened


def merge(folders: Sequence[Path], options: RunOptions) -> RunResult:
    """Unite finished runs of one matrix in ``options.out``; ``options`` say where data lie.

    Raises UserError where the runs are of other matrices, were made of other data, by other code or
    on another class of device, contradict each other, or lack a node of the whole.
    """
    if options.out is None or options.out.absolute() in [item.absolute() for item in folders]:
        raise UserError("merge writes a folder of its own: name one with --out")
    discovery.load_plugins(options.plugin)
    runs = [read_run(folder) for folder in folders]
    starts = base()
    matrix = _matrix(runs)
    _check_made_alike(runs)
    plan, settings, data = prepare(matrix, replace(options, seeds=None), starts)
    holds = _Holders(runs)
    found = {node.id: holds.of(node) for node in plan.nodes}
    _check_data(runs, data.fingerprint)
    folder = RunFolder(settings.run)
    progress = Progress()
    with opened(plan, folder, options.replace):
        for node in plan.nodes:
            _copy(found[node.id].folder, folder, node)
        for run in runs:
            progress.seconds |= _timings(run.folder)
        results = write_results(plan, data, folder, _machines(runs), progress)
    return RunResult(folder.root, results, progress)


def _matrix(runs: Sequence[FinishedRun]) -> Document:
    """Return the matrix of all seeds; raises UserError where two runs differ in more than those."""
    first, *others = [run.plan.matrix.model_dump(mode="json") for run in runs]
    seeds = set(first["seeds"])
    for run, other in zip(runs[1:], others, strict=True):
        for key in first:
            if key not in ("seeds", *REMARKS) and first[key] != other[key]:
                raise UserError(
                    f"{runs[0].folder.root} and {run.folder.root} are runs of other matrices: "
                    f"{key} = {first[key]!r} and {other[key]!r}"
                )
        seeds |= set(other["seeds"])
    return {**first, "seeds": sorted(seeds)}


def _check_made_alike(runs: Sequence[FinishedRun]) -> None:
    """Raise UserError where the same plugin, or the data, is not the same in two runs."""
    known: dict[tuple[str, str, str], tuple[object, Path, str]] = {}
    for run in runs:
        for node in run.plan.nodes:
            key = _document(run.folder, node).get("key", {})
            plugin = node.document.get("attack") or node.document.get("defense") or {}
            for field, value in _flat(key):
                place = (node.kind, digest(plugin), field)
                before, where, _ = known.setdefault(place, (value, run.folder.root, node.id))
                if before != value:
                    name = plugin.get("name", node.kind)
                    raise UserError(
                        f"{where} and {run.folder.root} do not belong together: {field} of {name} "
                        f"is {before!r} in the first and {value!r} in the second"
                    )


def _flat(key: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield what two nodes of one plugin must have in common, by name: data, code, device."""
    for name, value in key.items():
        if name == "files" or name.endswith("source") or name in ("data", "device", "dtype"):
            yield name, value


def _check_data(runs: Sequence[FinishedRun], fingerprint: str) -> None:
    for run in runs:
        for node in run.plan.nodes:
            made_of = _document(run.folder, node).get("key", {}).get("data", fingerprint)
            if made_of != fingerprint:
                raise UserError(
                    f"{run.folder.root} was made of other data than lie here: {made_of[:12]} and "
                    f"{fingerprint[:12]}"
                )


def _machines(runs: Sequence[FinishedRun]) -> Document:
    """Return what did the work of all runs, as the environments of the runs say."""
    told = [run.environment for run in runs]
    device = " and ".join(sorted({str(item.get("device")) for item in told}))
    accelerators = [item["accelerator"] for item in told if "accelerator" in item]
    return {"device": device, **({"accelerator": accelerators[0]} if accelerators else {})}


class _Holders:
    """Which run holds a node."""

    def __init__(self, runs: Sequence[FinishedRun]) -> None:
        self.runs = runs
        self.nodes = [{node.id for node in run.plan.nodes} for run in runs]

    def of(self, node: Node) -> FinishedRun:
        """Return the run that holds ``node``, a finished one where there is one.

        Raises UserError where none does, or two hold other evidence of it.
        """
        holding = [run for run, ids in zip(self.runs, self.nodes, strict=True) if node.id in ids]
        if not holding:
            raise UserError(
                f"no run holds the {node.kind} {node.id} of the united matrix: they were made by "
                "another version of Retort or of a plugin; run them again"
            )
        done = [run for run in holding if "key" in _document(run.folder, node)]
        sums = {digest(_evidence(_document(run.folder, node))) for run in done}
        if len(sums) > 1:
            raise UserError(
                f"{done[0].folder.root} and {done[1].folder.root} both hold the {node.kind} "
                f"{node.id}, and not the same evidence of it: leave one of them out"
            )
        return (done or holding)[0]


def _evidence(document: Document) -> Document:
    return {name: document.get(name) for name in ("weights", "files", "evidence")}


def _document(folder: RunFolder, node: Node) -> Document:
    try:
        found: Document = read_json(folder.document(node.kind, node.id))
        return found
    except DamagedError:
        return {}  # a fit or a probe that failed leaves none


def _copy(source: RunFolder, target: RunFolder, node: Node) -> None:
    """Copy what a node left, and what its model answered when it was asked once more."""
    pairs = [(source.document(node.kind, node.id), target.document(node.kind, node.id))]
    beside = target.files(node.kind, node.id)
    pairs += [(path, beside[name]) for name, path in source.files(node.kind, node.id).items()]
    if node.kind == "fit":
        pairs.append((source.recheck(node.id), target.recheck(node.id)))
    for path, place in pairs:
        place.unlink(missing_ok=True)
        if path.is_file():
            shutil.copyfile(path, place)


def _timings(folder: RunFolder) -> dict[str, float]:
    try:
        found = read_json(folder.top("timings.json"))
    except DamagedError:
        return {}
    return found if isinstance(found, dict) else {}
