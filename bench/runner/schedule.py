"""Carry out a plan: reuse what stands, run the rest, and let no failure end the others."""

from __future__ import annotations

import concurrent.futures
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import filelock

from bench.base.files import STALE, check, locked, read_json, sweep, write_json
from bench.base.fingerprint import digest
from bench.base.places import base, named
from bench.base.text import cut, one_line
from bench.base.types import DamagedError, Document, Outcome, UnwritableError, UserError
from bench.evidence.environment import hardware
from bench.evidence.folder import SCHEMA, RunFolder
from bench.evidence.parts import join, standing
from bench.evidence.standing import Standing
from bench.plan.graph import FITS, Node, Plan
from bench.plugins import registry
from bench.plugins.contracts import LEARNT, Defense, LearningAttack
from bench.plugins.data import Dataset
from bench.runner.keys import Keys
from bench.runner.task import Executor, Report, Settings, Task
from bench.runner.worker import reason_of
from bench.training.fit import untaught

Observer = Callable[[Node, Report, bool], None]
"""Called as each node ends: the node, its report, whether it was reused."""


REMARKS = ("description", "report")
"""Keys of a matrix that change no result."""


def no_observer(node: Node, report: Report, reused: bool) -> None:
    """Watch nothing."""


@dataclass
class Progress:
    """Where a run stands: how each node ended, and the weights that finished fits left.

    ``notes``: what a reader should know, as that a file is not the one that the folder's run read.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    traces: dict[str, str] = field(default_factory=dict)
    training: dict[str, Document] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def execute(
    plan: Plan,
    data: Dataset,
    settings: Settings,
    executor: Executor,
    observer: Observer = no_observer,
    fresh: bool = False,
    renew: bool = False,
) -> Progress:
    """Run every node of ``plan`` into ``settings.run``; ``fresh`` reuses nothing of that folder.

    Raises UserError as ``opened`` does.
    """
    folder = RunFolder(settings.run)
    with opened(plan, folder, renew):
        sweep(settings.cache / "fits", STALE)
        progress = Progress()
        standing = Standing(folder, data)
        keys = Keys(data, hardware(settings.device, executor.device), progress.weights, standing)
        run = _Run(plan, folder, keys, executor, observer, progress, fresh, settings.shards)
        run.drive()
    return progress


@contextmanager
def opened(plan: Plan, folder: RunFolder, renew: bool = False) -> Iterator[None]:
    """Have a results folder for oneself, ready for the evidence of ``plan``.

    Raises UserError where it is in use or cannot be written, and, without ``renew``, where it holds
    results that this plan would leave out.
    """
    folder.prepare(plan.matrix.name)
    with _exclusive(folder):
        if not renew:
            check_kept(plan, folder)
        folder.sweep()
        write_json(
            folder.top("plan.json"), {"schema": SCHEMA, **_base(plan, folder), **plan.document()}
        )
        yield


def check_kept(plan: Plan, folder: RunFolder) -> None:
    """Raise UserError where another matrix of that name left results that would be lost."""
    try:
        before = read_json(folder.top("plan.json"))
        matrix, nodes = before["matrix"], {node["id"] for node in before["nodes"]}
        finished = folder.top("results.json").exists()
    except (DamagedError, KeyError, TypeError):
        return  # torn, or never written
    here = plan.matrix.model_dump(mode="json")
    other = [key for key in here if key in matrix and matrix[key] != here[key]]
    lost = nodes - {node.id for node in plan.nodes}
    if finished and lost and (differing := [key for key in other if key not in REMARKS]):
        told = "; ".join(f"{key} = {matrix[key]!r}, and now {here[key]!r}" for key in differing)
        raise UserError(
            f"results folder {folder.root} holds a run of another {plan.matrix.name!r} ({told}): "
            "choose another --out, or say --replace"
        )


def _base(plan: Plan, folder: RunFolder) -> Document:
    """Return where relative paths start, as seen from ``folder``; nothing where none is named."""
    if next(named([node.document for node in plan.nodes]), None) is None:
        return {}
    return {"base": os.path.relpath(base(), folder.root)}


@contextmanager
def _exclusive(folder: RunFolder) -> Iterator[None]:
    try:
        with locked(folder.top(".lock"), timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(
            f"another run is writing {folder.root}: wait for it, or choose another --out"
        ) from error


@dataclass
class _Run:
    plan: Plan
    folder: RunFolder
    keys: Keys
    executor: Executor
    observer: Observer
    progress: Progress
    fresh: bool
    most_shards: int | None = None

    def __post_init__(self) -> None:
        self.fits = {node.id: node for node in self.plan.of("fit")}
        self.shards: dict[str, _Shards] = {}

    def drive(self) -> None:
        """Submit nodes as what they need is done, fits first, until none is left."""
        # Fits first: everything else waits for them, and cells for what their attacks learn.
        order = {kind: place for place, kind in enumerate(FITS)}
        waiting = sorted(self.plan.nodes, key=lambda node: order.get(node.kind, len(order)))
        ready: deque[tuple[Node, Task]] = deque()
        running: dict[concurrent.futures.Future[Report], tuple[Node, Task]] = {}
        while waiting or ready or running:
            while len(running) < self.executor.workers:
                if ready:
                    node, task = ready.popleft()
                    running[self.executor.submit(task)] = (node, task)
                elif found := next(filter(self._ready, waiting), None):
                    waiting.remove(found)
                    ready.extend((found, task) for task in self._settle(found))
                else:
                    break
            finished, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                self._ended(*running.pop(future), future.result())

    def _ended(self, node: Node, task: Task, report: Report) -> None:
        """Finish the node of a task, or, where it was split, remember how this shard ended."""
        if task.blocks is None:
            self._finish(node, report)
            return
        shards = self.shards[node.id]
        shards.reports.append(report)
        if len(shards.reports) == shards.count:
            self._finish(node, shards.joined(self.folder, node.id))

    def _ready(self, node: Node) -> bool:
        return all(need in self.progress.outcomes for need in node.after)

    def _settle(self, node: Node) -> Sequence[Task]:
        """Return the tasks of ``node``, none where it needs none: reused, skipped, hopeless."""
        try:
            task = self._task(node)
            return [] if task is None else self._split(node, task)
        except UserError as error:  # a method of its plugin, a file that is gone
            if isinstance(error, UnwritableError):
                raise
            self._finish(node, Report(Outcome("failed", reason_of(error))))
            return []

    def _split(self, node: Node, task: Task) -> Sequence[Task]:
        """Return the shards of a cell that falls into blocks, of those that are not there yet."""
        blocks = self.keys.blocks(node, task.only) if node.kind == "cell" else 1
        if blocks == 1:
            return [task]
        there = set() if self.fresh else standing(self.folder, node.id, blocks, task.key)
        todo = [block for block in range(blocks) if block not in there]
        count = min(len(todo), self.most_shards or len(todo))
        shards = self.shards[node.id] = _Shards(blocks, count)
        if not todo:
            self._finish(node, shards.joined(self.folder, node.id))
        return [
            replace(task, blocks=tuple(todo[len(todo) * i // count : len(todo) * (i + 1) // count]))
            for i in range(count)
        ]

    def _task(self, node: Node) -> Task | None:
        for role, need in node.needs.items():
            outcome = self.progress.outcomes[need]
            if outcome.status == "failed":
                whose = "the attack's" if role == LEARNT else "its"
                told = f"{whose} fit failed: {outcome.reason}"
                self._finish(node, Report(Outcome("failed", told)))
                return None
        if reason := incompatible(self.fits, node, self.keys.data):
            self._finish(node, Report(Outcome("skipped", reason)))
            return None
        left = self.keys.left(node)
        if left is not None and (reason := self.keys.needless(node, left)):
            self._finish(node, Report(Outcome("skipped", reason)))
            return None
        key = self.keys.of(node)
        if not self.fresh and self._stands(node, key):
            self._finish(node, Report(Outcome("done")), reused=True)
            return None
        self._note_changes(node, key)
        return Task(node.id, node.kind, node.document, dict(node.needs), key, left)

    def _note_changes(self, node: Node, key: Document) -> None:
        """Name the files of a plugin that are not those of the folder's earlier run."""
        try:
            before = read_json(self.folder.document(node.kind, node.id))["key"]["files"]
        except (DamagedError, KeyError, TypeError):
            return
        for path, found in key.get("files", {}).items():
            if before.get(path, found) != found:
                note = f"{path} has changed since this folder's last run: its results are new"
                if note not in self.progress.notes:
                    self.progress.notes.append(note)

    def _stands(self, node: Node, key: Document) -> bool:
        """Whether the folder holds this node's evidence, made of the same things, undamaged."""
        try:
            document = read_json(self.folder.document(node.kind, node.id))
            # A fit has one file beside it, whose checksum stands at the top of its document.
            checksums = document if node.kind in FITS else document["files"]
            for name, path in self.folder.files(node.kind, node.id).items():
                check(path, checksums[name])
            done = Outcome(**document["outcome"]).status == "done"
            return done and _made_of(document, key)
        except (DamagedError, KeyError, TypeError):
            return False

    def _put_aside(self, node: Node, outcome: Outcome) -> None:
        """Say how a cell ended; an earlier document of a fit or a probe must not speak for it."""
        if node.kind == "cell":
            document = {"id": node.id, "outcome": asdict(outcome), "document": node.document}
            if not self._says(node, document):
                write_json(self.folder.cell(node.id), document)
            return
        self.folder.document(node.kind, node.id).unlink(missing_ok=True)

    def _says(self, node: Node, document: Document) -> bool:
        """Return whether the document of a node is this one already: a write takes its time."""
        try:
            return bool(read_json(self.folder.document(node.kind, node.id)) == document)
        except DamagedError:
            return False

    def _finish(self, node: Node, report: Report, reused: bool = False) -> None:
        self.progress.outcomes[node.id] = report.outcome
        if report.outcome.status == "done" and node.kind in FITS:
            document = read_json(self.folder.document(node.kind, node.id))
            self.progress.weights[node.id] = document["weights"]
        if report.outcome.status != "done":
            self._put_aside(node, report.outcome)
        if not reused and report.seconds:
            self.progress.seconds[node.id] = report.seconds
        if report.training is not None:
            self.progress.training[node.id] = report.training
        if report.trace:
            self.progress.traces[node.id] = report.trace
        self.observer(node, report, reused)


@dataclass
class _Shards:
    """A cell that is split: its blocks, how many tasks attack them, how these ended."""

    blocks: int
    count: int
    reports: list[Report] = field(default_factory=list)

    def joined(self, folder: RunFolder, cell: str) -> Report:
        """Make the cell of its blocks, where all are done; else say why one is not."""
        seconds = sum(report.seconds for report in self.reports)
        for report in self.reports:
            if report.outcome.status != "done":
                return replace(report, seconds=seconds)
        try:
            join(folder, cell, self.blocks)
        except DamagedError as error:
            return Report(Outcome("failed", reason_of(error)), seconds)
        return Report(Outcome("done"), seconds)


def incompatible(fits: Mapping[str, Node], node: Node, data: Dataset) -> str | None:
    """Return why a cell is skipped, or None where attack, defense and data go together.

    An attack's fit is skipped for the same reasons; a defense's and a probe never are.
    """
    if node.kind not in ("cell", "attack-fit"):
        return None
    defense, attack = fits[node.needs["model"]].defense(), node.attack()
    with registry.asking(attack, "unavailable"):
        if reason := attack.unavailable():
            return cut(one_line(str(reason)))
    adaptive = type(defense).surrogate is not Defense.surrogate
    if attack.access == "gradients" and not defense.differentiable and not adaptive:
        return "the attack needs gradients, and the defense declares none and no surrogate"
    if isinstance(attack, LearningAttack) and not len(data.train):
        return untaught(data.info.name)
    return None


def _made_of(document: Document, key: Document) -> bool:
    return bool(digest(document["key"]) == document["evidence"] == digest(key))
