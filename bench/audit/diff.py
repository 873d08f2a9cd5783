"""Two runs side by side: which numbers changed, and which key fields explain it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bench.base.files import read_json
from bench.base.fingerprint import digest
from bench.base.json_changes import changes
from bench.base.rows import CellRow
from bench.base.types import DamagedError, Document
from bench.evidence.finished_run import FinishedRun
from bench.plan.graph import Node

Changes = dict[str, tuple[object, object]]
IDENTITY = ("dataset", "defense", "defense_params", "attack", "attack_params", "seed")
"""What makes two cells of two runs the same question; network, recipe and sources explain."""

NAMES = (*IDENTITY, "id", "network", "recipe")
SHARED = ("worst_case", "worst_case_ci", "compared", "outcomes_differ", "inputs_differ", "flags")
"""Numbers of a row that other cells of its model enter."""

MACHINE = ("device", "python", "platform", "retort")


@dataclass(frozen=True)
class CellPair:
    """A cell of one run and its counterpart: what changed in the row, and in the key documents.

    ``environment`` holds what is recorded and not keyed: libraries, device model.
    """

    first: CellRow
    second: CellRow
    numbers: Changes
    keys: Changes
    environment: Changes

    @property
    def failure(self) -> bool:
        """Whether numbers changed and nothing that is recorded did."""
        return bool(self.numbers) and not self.keys and not self.environment


@dataclass(frozen=True)
class RunComparison:
    """The pairs of two runs, and the rows without a counterpart."""

    pairs: list[CellPair]
    only_first: list[CellRow]
    only_second: list[CellRow]


def compare_runs(first: FinishedRun, second: FinishedRun) -> RunComparison:
    """Match the cells of two runs and compare rows and key documents.

    Cells match by data set, defense, attack, all their parameters and the seed; of the rest, those
    of the same defense and attack that differ in one of these alone, a budget say.
    """
    environment = changes(_machine(first), _machine(second))
    matched = _match(first.rows, second.rows)
    pairs = [_pair((first, a), (second, b), environment) for a, b in matched]
    taken = [{pair[side]["id"] for pair in matched} for side in (0, 1)]
    rest = [
        [row for row in run.rows if row["id"] not in ids]
        for run, ids in zip((first, second), taken, strict=True)
    ]
    return RunComparison(pairs, *rest)


def _pair(
    first: tuple[FinishedRun, CellRow], second: tuple[FinishedRun, CellRow], environment: Changes
) -> CellPair:
    rows = (first[1], second[1])
    numbers = changes(*(_numbers(row) for row in rows))
    keys = changes(*(_key(run, row["id"]) for run, row in (first, second)))
    if any(path.partition(".")[0] in SHARED for path in numbers):
        keys |= changes(*({"siblings": _siblings(run, row)} for run, row in (first, second)))
    return CellPair(*rows, numbers, keys, environment)


def _siblings(run: FinishedRun, row: CellRow) -> Document:
    """Return the evidence of the other cells of a row's model, by what they are."""
    same = [other for other in run.rows if _model(other) == _model(row) and other is not row]
    nodes = {node.id: node for node in run.plan.of("cell")}
    return {
        f"{other['attack']} {json.dumps(other['attack_params'])}": digest(
            _stored(run, nodes[other["id"]]) if other["id"] in nodes else {}
        )
        for other in same
    }


def _model(row: CellRow) -> tuple[object, ...]:
    return tuple(row.get(name) for name in ("dataset", "defense", "defense_params", "seed"))


def _match(first: list[CellRow], second: list[CellRow]) -> list[tuple[CellRow, CellRow]]:
    pairs: list[tuple[CellRow, CellRow]] = []
    left = list(second)
    for allowed in (0, 1):
        for row in first:
            if any(row is known for known, _ in pairs):
                continue
            found = next((item for item in left if _apart(row, item) <= allowed), None)
            if found is not None:
                pairs.append((row, found))
                left = [item for item in left if item is not found]
    order = {id(row): place for place, row in enumerate(first)}
    return sorted(pairs, key=lambda pair: order[id(pair[0])])


def _apart(first: CellRow, second: CellRow) -> float:
    """Return in how many fields two rows ask something else."""
    if (first["defense"], first["attack"]) != (second["defense"], second["attack"]):
        return float("inf")
    return len(changes(*({name: row.get(name) for name in IDENTITY} for row in (first, second))))


def _numbers(row: CellRow) -> Document:
    numbers = {name: value for name, value in row.items() if name not in NAMES}
    flags = {
        flag["id"]: {name: flag[name] for name in ("severity", "value")}
        for flag in row.get("flags") or []
    }
    return {**numbers, "flags": flags}


def _machine(run: FinishedRun) -> Document:
    environment = run.environment
    try:
        code = read_json(run.folder.top("results-key.json")).get("code")
    except (DamagedError, AttributeError):
        code = None
    recorded = {name: environment.get(name) for name in MACHINE}
    return {"aggregation code": code, **recorded, **(environment.get("libraries") or {})}


def _key(run: FinishedRun, cell: str) -> Document:
    node = next((node for node in run.plan.of("cell") if node.id == cell), None)
    return {} if node is None else key_document(run, node)


def key_document(run: FinishedRun, node: Node) -> Document:
    """Return a cell's key document with its fits' own in the place of their plan ids.

    Where the cell has none, for it failed or was skipped, what was asked stands for it.
    """
    key = _stored(run, node)
    document = {name: value for name, value in key["document"].items() if name != "fit"}
    models = {name: value for name, value in key.get("model", {}).items() if name != "fit"}
    fits = {role: _fit(run, need) for role, need in node.needs.items()}
    plain = {name: value for name, value in key.items() if name != "plan"}
    document.pop("requires", None)
    required = {
        role: {name: value for name, value in model.items() if name != "fit"}
        for role, model in key.get("required", {}).items()
    }
    return {**plain, "document": document, "model": models, "required": required,
            "fit": fits.pop("model", {}), "required_fits": fits}  # fmt: skip


def _fit(run: FinishedRun, fit: str) -> Document:
    node = run.fits().get(fit)
    if node is None:
        return {}
    document = {name: value for name, value in node.document.items() if name != "requires"}
    key = _stored(run, node)
    return {
        **document,
        "source": key.get("source"),
        "files": key.get("files", {}),
        "requires": {role: _fit(run, need) for role, need in node.needs.items()},
    }


def _stored(run: FinishedRun, node: Node) -> Document:
    try:
        key = read_json(run.folder.document(node.kind, node.id))["key"]
        return key if isinstance(key, dict) and "document" in key else {"document": node.document}
    except (DamagedError, KeyError, TypeError):
        return {"document": node.document}
