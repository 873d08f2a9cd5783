"""Cells and fits of a run made anew by the runner, and held against what the run says of them.

Plan, code, data and seeds determine a result: on a machine like the run's what is made anew has the
same bytes. So a figure that nobody measured has to be measured somewhere else to pass.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from bench.audit.verify_rows import OTHERWISE, Difference, Mode, compare
from bench.base.files import read_json
from bench.base.fingerprint import digest
from bench.base.json_changes import changes
from bench.base.places import base
from bench.base.rows import CellRow, ModelRow
from bench.base.types import DamagedError, Document
from bench.evidence.cells import Evidence
from bench.evidence.finished_run import FinishedRun
from bench.evidence.folder import RunFolder
from bench.measure.cell import REPORTED, Sources, attack_sources
from bench.measure.query import predict
from bench.plan.graph import FITS, Node
from bench.plugins.contracts import AttackContext
from bench.plugins.data import Dataset
from bench.plugins.unpickle import trusted
from bench.results.collect import collect
from bench.runner import processes
from bench.runner.rebuild import Rebuilder
from bench.runner.schedule import execute
from bench.runner.task import Settings
from bench.runner.worker import reason_of

Outcome = Literal["identical", "within tolerance", "differs"]

TOGETHER = ("worst_case", "worst_case_ci", "compared", "outcomes_differ", "inputs_differ", "paired")
"""What a cell's row says of other cells too: a few of them do not make it."""

TRIED = 200
"""Inputs on which two fits of an attack are compared."""

OF_OTHERS = ("recheck", "flags")
"""What a model's row says of all its cells and of other models."""


@dataclass(frozen=True)
class Choice:
    """How many cells and fits are made anew, and the seed, in [0, 2^32), that draws them."""

    cells: int
    fits: int
    seed: int

    def drawn(self, run: FinishedRun) -> dict[str, list[str]]:
        """Return the ids of the fits and the cells, whatever their outcome, in the order drawn.

        Of a published run without closers, which attack what is left of all others' evidence, and
        without fits of attacks, of which nothing is published.
        """
        published = is_published(run.folder)
        cells = [row for row in run.rows if not (published and row.get("round"))]
        drawn = self.of_rows(cells, run.results.models)
        if published:
            models = {row["id"] for row in run.results.models}
            drawn["fit"] = [fit for fit in drawn["fit"] if fit in models]
        return drawn

    def of_rows(self, cells: Sequence[CellRow], models: Sequence[ModelRow]) -> dict[str, list[str]]:
        """Return the ids that are drawn of rows, fits first, those of attacks among them."""
        learnt = {found["id"] for row in cells if (found := row.get("learnt"))}
        fits = [*(row["id"] for row in models), *learnt]
        return {
            "fit": self._some(fits, self.fits),
            "cell": self._some([row["id"] for row in cells], self.cells),
        }

    def _some(self, ids: Sequence[str], count: int) -> list[str]:
        order = np.random.RandomState(self.seed).permutation(len(ids))[:count]
        known = sorted(ids)
        return [known[place] for place in order]


@dataclass(frozen=True)
class Repeated:
    """One node that was made anew, and what differs."""

    kind: Literal["fit", "cell"]
    id: str
    outcome: Outcome
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where nodes are made anew: what workers share, how many there are, seconds for a cell.

    ``unpickle``: whether modules that were handed over in memory may be loaded.
    """

    settings: Settings
    workers: int = 1
    cell_timeout: float | None = None
    unpickle: bool = False


def seed_of(run: FinishedRun) -> int:
    """Return the seed that publishing draws by: of the results, so that nobody picks the cells."""
    return int(digest([run.rows, run.results.models])[:8], 16)


def is_published(folder: RunFolder) -> bool:
    """Return whether a folder holds what is published of a run, and no evidence."""
    return not folder.top("plan.json").exists()


def repeat(run: FinishedRun, bench: Bench, choice: Choice, mode: Mode) -> list[Repeated]:
    """Make the chosen fits and cells of ``run`` anew in a folder of their own.

    Fits from an empty cache; cells on the weights that the run holds, else on those that
    ``bench.settings.cache`` holds or that are learnt for it. What a closer comes after is taken
    from the run.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="retort-again-") as name:
        for kind, ids in choice.drawn(run).items():
            kinds = FITS if kind == "fit" else ("cell",)
            nodes = {node.id: node for node in run.plan.nodes if node.kind in kinds}
            chosen = [nodes[item] for item in ids if item in nodes]
            if not chosen:
                continue
            root = Path(name) / kind
            settings = replace(bench.settings, run=root, base=base(), trusted=tuple(trusted()))
            if kind == "fit":
                settings = replace(settings, cache=Path(name) / "cache")
            there = Anew(run, replace(bench, settings=settings), chosen)
            there.make()
            found += [there.held(node, mode) for node in chosen]
    return found


@dataclass
class Anew:
    """Some nodes of a run in a folder of their own, with all that they rest on."""

    run: FinishedRun
    bench: Bench
    chosen: Sequence[Node]

    def __post_init__(self) -> None:
        self.published = is_published(self.run.folder)
        self.models = Rebuilder(self.bench.settings)
        self.data: Dataset = self.models.data(self.run.plan.dataset)
        matrix = self.run.plan.matrix.model_copy(update={"panel": [], "report": None})
        self.plan = replace(self.run.plan, matrix=matrix, nodes=self._needed())
        self.folder = self.models.folder
        self._rows: dict[str, Mapping[str, Any]] = {}

    def _needed(self) -> tuple[Node, ...]:
        by_id = {node.id: node for node in self.run.plan.nodes}
        todo, found = [node.id for node in self.chosen], set[str]()
        while todo:
            item = todo.pop()
            if item not in found:
                found.add(item)
                todo += by_id[item].after
        if self.published:  # whose rows say of each model what its probe saw
            found |= {n.id for n in self.run.plan.of("probe") if n.needs["model"] in found}
        return tuple(node for node in self.run.plan.nodes if node.id in found)

    def make(self) -> None:
        """Run the chosen nodes; what else they need is taken where its key is that of this code."""
        self.folder.prepare(self.plan.matrix.name)
        for node in self.plan.nodes:
            if node not in self.chosen and not self.published:
                _take(self.run.folder, self.folder, node)
        bench = self.bench
        with processes.LocalExecutor(bench.settings, bench.workers, bench.cell_timeout) as executor:
            execute(self.plan, self.data, bench.settings, executor)
        if self.published:
            made = collect(self.plan, self.data, self.folder)
            self._rows = {row["id"]: row for row in (*made.cells, *made.models)}

    def held(self, node: Node, mode: Mode) -> Repeated:
        """Hold a node that was made anew against what the run holds of it."""
        try:
            if self.published:
                differing, same = self._row(node, mode), False
            elif node.kind == "cell":
                differing, same = self._cell(node, mode)
            else:
                differing, same = self._fit(node, mode)
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            differing, same = [Difference(node.id, "again", "unreadable", reason_of(error))], False
        kind: Literal["fit", "cell"] = "fit" if node.kind in FITS else "cell"
        if differing:
            return Repeated(kind, node.id, "differs", tuple(differing))
        exact = same or (self.published and mode == "exact")
        return Repeated(kind, node.id, "identical" if exact else "within tolerance")

    def _row(self, node: Node, mode: Mode) -> list[Difference]:
        table = self.run.rows if node.kind == "cell" else self.run.results.models
        apart = TOGETHER if node.kind == "cell" else OF_OTHERS
        stored, made = (
            {name: value for name, value in row.items() if name not in apart}
            for row in (
                next(row for row in table if row["id"] == node.id),
                json.loads(json.dumps(self._rows[node.id])),
            )
        )
        found = changes(stored, made)
        if mode != "exact":
            found = {name: pair for name, pair in found.items() if _far(name, *pair)}
        return [Difference(node.id, f"again: {name}", *pair) for name, pair in found.items()]

    def _fit(self, node: Node, mode: Mode) -> tuple[list[Difference], bool]:
        path, made = (
            folder.document(node.kind, node.id) for folder in (self.run.folder, self.folder)
        )
        if not (path.exists() and made.exists()):
            there = path.exists()
            if there == made.exists():
                return [], True
            told = ("a model", "its fit failed")
            return [Difference(node.id, "again: model", *(told if there else told[::-1]))], False
        documents = [read_json(item) for item in (path, made)]
        weights = [document["weights"] for document in documents]
        if weights[0] == weights[1]:
            return [], True
        if mode == "exact":
            return [_other(node, "weights", *weights, *documents)], False
        what, differ = (self._reaches if node.kind == "attack-fit" else self._answers)(node)
        if abs(differ[0] - differ[1]) <= OTHERWISE:
            return [], False
        return [Difference(node.id, f"again: {what}, at most {OTHERWISE}", *differ)], False

    def _answers(self, node: Node) -> tuple[str, list[float]]:
        """Return what is compared of a model made anew: the share of answers that differ."""
        answers = []
        for folder in (self.run.folder, self.folder):
            models = Rebuilder(replace(self.bench.settings, run=folder.root))
            _, model = models.load_model(node.id)
            answers.append(predict(model, self.data.test.x, self.data.info.classes).argmax(dim=1))
        share = float((answers[0] != answers[1]).double().mean())
        return "share of answers that differ", [0.0, share]

    def _reaches(self, node: Node) -> tuple[str, list[float]]:
        """Return what is compared of what an attack learnt anew: how often it succeeds."""
        shares = [self._reached(node, folder) for folder in (self.run.folder, self.folder)]
        return "success of the attack with what it learnt, apart", shares

    def _reached(self, node: Node, folder: RunFolder) -> float:
        """Return how often an attack succeeds with what it learnt in ``folder``."""
        models = Rebuilder(replace(self.bench.settings, run=folder.root))
        _, model = models.load_model(node.needs["model"])
        split = self.data.test.take(slice(0, TRIED))
        sources = Sources(torch.arange(len(split)), split.x, split.y)
        fitted = models.fitted(node.document["requires"], node.id)
        context = AttackContext(self.data.info, 0, fitted)
        found = attack_sources(model, node.attack(), sources, context).records
        return float(found["success"].mean())

    def _cell(self, node: Node, mode: Mode) -> tuple[list[Difference], bool]:
        kept, made = (
            Evidence(folder, "cell", node.id) for folder in (self.run.folder, self.folder)
        )
        told = [f"{item.outcome.status}: {item.outcome.reason}" for item in (kept, made)]
        if kept.outcome.status != made.outcome.status:
            return [Difference(node.id, "again: outcome", *told)], False
        if kept.outcome.status != "done":
            return [], True
        found = _apart(node, kept, made)
        if mode == "exact" or not found:
            return found, True
        return _too_far(node, kept, made), False


def _take(source: RunFolder, target: RunFolder, node: Node) -> None:
    """Copy what a node left, as far as it is there: what is torn is made anew."""
    paths, places = (
        [folder.document(node.kind, node.id), *folder.files(node.kind, node.id).values()]
        for folder in (source, target)
    )
    for path, place in zip(paths, places, strict=True):
        if path.is_file():
            shutil.copyfile(path, place)


def _other(node: Node, what: str, stored: Any, made: Any, *documents: Document) -> Difference:
    """Return a difference that says whether other code is named beside it."""
    keys = [document.get("key") or {} for document in documents]
    sources = [{k: v for k, v in key.items() if k.endswith("source")} for key in keys]
    by = "" if sources[0] == sources[1] else " (the run says that other code made it)"
    return Difference(node.id, f"again: {what}{by}", stored, made)


def _apart(node: Node, kept: Evidence, made: Evidence) -> list[Difference]:
    """Say what differs between a cell's evidence and what was made anew."""
    documents = (kept.document, made.document)
    told = [{name: item.get(name) for name in ("queries", "differing")} for item in documents]
    found = [_other(node, *item, *documents) for item in _flat(changes(*told))]
    first, second = kept.records(), made.records()
    if len(first) != len(second):
        return [*found, _other(node, "records", len(first), len(second), *documents)]
    old, new = (frame.drop(columns=list(REPORTED), errors="ignore") for frame in (first, second))
    # The hash of every input is among the columns.
    found += [
        _other(node, item.what, item.stored, item.recomputed, *documents)
        for item in compare(node.id, old, new, "exact").differences
    ]
    for name in REPORTED:
        if not first[name].equals(second[name]):
            unequal = first[name].fillna(pd.NA).astype(str) != second[name].astype(str)
            row = int(unequal.to_numpy().argmax())
            pair = (str(first[name].iloc[row]), str(second[name].iloc[row]))
            found.append(_other(node, f"{name} in {int(unequal.sum())} rows", *pair, *documents))
    return found


def _too_far(node: Node, kept: Evidence, made: Evidence) -> list[Difference]:
    """Say what differs by more than other hardware explains."""
    first, second = (_attacked(item.records()) for item in (kept, made))
    both = first.merge(second, left_index=True, right_index=True, suffixes=(" there", " here"))
    moved = len(first) + len(second) - 2 * len(both)
    for name in ("success", "misclassified"):
        moved += int((both[f"{name} there"] != both[f"{name} here"]).sum())
    allowed = max(1.0, OTHERWISE * len(first))
    found = []
    if moved > allowed:
        what = f"outcomes of {len(first)} attempts, at most {allowed:g} otherwise"
        found.append(_other(node, what, 0, moved, kept.document, made.document))
    figures = [
        {
            **{name: float(frame[name].mean()) for name in ("l0_features", "l2", "linf")},
            **(item.document.get("queries") or {}),
        }
        for frame, item in ((first, kept), (second, made))
    ]
    for name, old, new in _flat(changes(*figures)):
        if _far(name, old, new):
            found.append(_other(node, name, old, new, kept.document, made.document))
    return found


def _flat(changed: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, Any, Any]]:
    return ((name, *pair) for name, pair in changed.items())


def _attacked(records: pd.DataFrame) -> pd.DataFrame:
    attacked = records[(records["status"] == "attacked").to_numpy()]
    names = ["success", "misclassified", "l0_features", "l2", "linf"]
    return attacked.set_index(["sample_id", "target"])[names]


def _far(name: str, stored: Any, made: Any) -> bool:
    """Return whether two figures of a row are further apart than other hardware explains."""
    if name.startswith(("flags", "stop_reasons")):
        return False
    if not all(isinstance(value, int | float) for value in (stored, made)):
        return bool(stored != made) and isinstance(stored, str)
    return bool(abs(stored - made) > OTHERWISE * max(1.0, abs(stored), abs(made)))
