"""The executor whose machines own nothing: parcels out, bytes back, and one writer, which is here.

Only this process writes the run's folder and the cache. A fit that the cache holds travels nowhere.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from bench.base.files import read_json, write_bytes, write_json
from bench.base.fingerprint import digest
from bench.base.places import base, placed
from bench.base.types import DamagedError, Document, Outcome, UserError
from bench.cluster.engine import Engine, Needs
from bench.cluster.machine import carry_out, inspect, remove
from bench.cluster.parcel import Blob, Delivery, Known, Parcel, Setup, blob_of, facts, left_by
from bench.evidence.folder import RunFolder
from bench.plan.graph import FITS, Kind, Node, Plan
from bench.plugins import registry
from bench.plugins.code_hash import plugin_files
from bench.plugins.contracts import LEARNT
from bench.plugins.data import Dataset, pack
from bench.runner.keys import attack_source, fit_source
from bench.runner.task import Answer, Report, Settings, Task
from bench.runner.worker import cache_document, cached_at, cached_fit, keep_fit, reason_of

T = TypeVar("T")

SPARE = 1.1
"""How much more than similar tasks a task is taken to need."""

GREET = 300.0
"""Seconds in which every machine must say what it has."""

LEAVE = 10.0
"""Seconds in which a machine may remove what was left on it."""

AHEAD = 2
"""Tasks that are submitted for each that can run: none waits for this process."""


@dataclass
class RemoteExecutor:
    """Runs the tasks of a run by an ``engine``, on machines that share nothing with this one.

    ``at_most``: how many tasks at a time, None: as many as the engine can; ``timeout``: seconds for
    a cell. Entering it asks every machine whether it can do the work, and raises UserError, before
    anything runs, where one cannot.
    """

    plan: Plan
    data: Dataset
    settings: Settings
    engine: Engine
    at_most: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.settings.run)
        self._writer = ThreadPoolExecutor(1)
        self._kept: dict[Path, Blob] = {}
        self._needs: dict[tuple[Kind, str], Needs] = {}
        self._devices: set[str] = set()
        self._contents: dict[str, Path | bytes] = {}

    @property
    def workers(self) -> int:
        """How many tasks it is worth to have submitted at a time."""
        return self.at_most or AHEAD * max(1, self.engine.slots)

    @property
    def device(self) -> str:
        """The models of the machines' processors or GPUs."""
        return " and ".join(sorted(self._devices))

    def submit(self, task: Task) -> Future[Report]:
        """Start ``task``; its future is done when its evidence lies in the folder."""
        told: Future[Report] = Future()
        told.set_running_or_notify_cancel()
        self._writer.submit(self._start, task, told)
        return told

    def fresh(
        self, work: Callable[..., T], *args: object, reads: Sequence[tuple[Kind, str]] = ()
    ) -> Future[Answer[T]]:
        """Call ``work(settings, *args)`` in a fresh process of some machine."""
        told: Future[Answer[T]] = Future()
        told.set_running_or_notify_cancel()

        def done(delivery: Delivery | None, reason: str | None) -> None:
            told.set_result((None, reason) if delivery is None else delivery.answer)

        def start() -> None:
            try:
                parcel = Parcel(self.setup, (work, args), dict(self._read(reads)))
            except DamagedError as error:
                told.set_result((None, reason_of(error)))
                return
            self._send(parcel, Needs(), done)

        self._writer.submit(start)
        return told

    def _start(self, task: Task, told: Future[Report]) -> None:
        def done(delivery: Delivery | None, reason: str | None) -> None:
            self._writer.submit(self._finish, task, delivery, reason, told)

        try:
            stored = cached_at(self.settings.cache, task.key)
            if task.kind in FITS and (found := cached_fit(stored, task.key)) is not None:
                keep_fit(self.folder, task, stored, found)
                told.set_result(
                    Report(Outcome("done"), cached=True, training=found.get("training"))
                )
                return
            fits: list[tuple[Kind, str]] = [
                ("attack-fit" if role == LEARNT else "fit", need)
                for role, need in task.needs.items()
            ]
            parcel = Parcel(self.setup, task, dict(self._read(fits)))
            self._send(parcel, self._needs.get(_similar(task), Needs()), done)
        except BaseException as error:  # noqa: BLE001 (a future that is never done stops the run)
            told.set_result(Report(Outcome("failed", reason_of(error))))

    def _finish(
        self, task: Task, delivery: Delivery | None, reason: str | None, told: Future[Report]
    ) -> None:
        """Write what came back of ``task``, and say how it ended."""
        try:
            if delivery is None or delivery.report is None:
                told.set_result(Report(Outcome("failed", reason)))
                return
            report = delivery.report
            if report.outcome.status == "done":
                self._keep(task, delivery.files, report)
                self._learn(task, report)
            if delivery.log:
                with self.folder.top("workers.log").open("a", encoding="utf-8") as log:
                    log.write(delivery.log)
            told.set_result(report)
        except BaseException as error:  # noqa: BLE001 (as above)
            told.set_result(Report(Outcome("failed", reason_of(error))))

    def _keep(self, task: Task, files: Mapping[str, bytes], report: Report) -> None:
        """Write the evidence of ``task``, each document last; raises DamagedError where torn."""
        sums = {
            f"{leaves} {name}": sha256
            for leaves in task.leaves
            for name, sha256 in _checksums(files, task, leaves).items()
        }
        for name, sha256 in sums.items():
            if hashlib.sha256(files.get(name, b"")).hexdigest() != sha256:
                raise DamagedError(f"of {task.id} the {name} was damaged on its way")
        if task.kind in FITS:
            name = f"{task.id} weights"
            stored = cached_at(self.settings.cache, task.key)
            write_bytes(stored, files[name])
            queries = json.loads(files[f"{task.id} document"]).get("queries")
            document = cache_document(task, sums[name], report.training, queries)
            write_json(stored.with_suffix(".json"), document)
            keep_fit(self.folder, task, stored, document)
            return
        for name, path in left_by(task, self.folder):
            write_bytes(path, files[name])

    def _learn(self, task: Task, report: Report) -> None:
        """Remember what a task needed, for those like it."""
        before = self._needs.get(_similar(task), Needs())
        memory = max(before.memory or 0, int(SPARE * report.memory)) or None
        gpu = max(before.gpu or 0.0, SPARE * report.gpu) or None
        self._needs[_similar(task)] = Needs(memory, gpu)

    def _send(
        self, parcel: Parcel, needs: Needs, done: Callable[[Delivery | None, str | None], None]
    ) -> None:
        """Let a machine carry out ``parcel``; send again with what it lacks."""

        def arrived(future: Future[Delivery]) -> None:
            error = future.exception()
            if error is not None:
                done(None, f"the executor lost it: {reason_of(error)}")
                return
            delivery = future.result()
            if delivery.missing:
                self._writer.submit(self._send, self._with(parcel, delivery.missing), needs, done)
            else:
                done(delivery, delivery.refused)

        try:
            self.engine.submit(carry_out, parcel, needs=needs).add_done_callback(arrived)
        except Exception as error:  # noqa: BLE001 (an engine is other people's code)
            done(None, f"the executor takes nothing: {reason_of(error)}")

    def _with(self, parcel: Parcel, missing: Iterable[str]) -> Parcel:
        """Return ``parcel`` with the contents of what is ``missing``."""
        sent = {sha256: self._content(sha256) for sha256 in missing}

        def full(blobs: Mapping[str, Blob]) -> dict[str, Blob]:
            return {
                name: replace(blob, content=sent.get(blob.sha256, blob.content))
                for name, blob in blobs.items()
            }

        data = full({"data": parcel.setup.data})["data"]
        setup = replace(parcel.setup, data=data, files=full(parcel.setup.files))
        return replace(parcel, setup=setup, reads=full(parcel.reads))

    def _content(self, sha256: str) -> bytes:
        found = self._contents[sha256]
        return found if isinstance(found, bytes) else found.read_bytes()

    def _read(self, nodes: Sequence[tuple[Kind, str]]) -> Iterator[tuple[str, Blob]]:
        """Yield the files of ``nodes`` and of all fits that these rest on, by their place."""
        todo, seen = list(nodes), set[tuple[Kind, str]]()
        while todo:
            kind, node = todo.pop()
            if (kind, node) in seen:
                continue
            seen.add((kind, node))
            path = self.folder.document(kind, node)
            if kind in FITS:
                document = read_json(path)["key"]["document"]
                todo += [("fit", fit) for fit in document.get("requires", {}).values()]
            for item in (path, *self.folder.files(kind, node).values()):
                yield item.relative_to(self.folder.root).as_posix(), self._blob(item, kind in FITS)

    def _blob(self, path: Path, keep: bool) -> Blob:
        """Return a file as it travels; ``keep``: many tasks will read it."""
        if path in self._kept:
            return self._kept[path]
        try:
            blob = blob_of(path.read_bytes(), self.engine.store)
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error}") from error
        self._contents[blob.sha256] = path
        if keep:
            self._kept[path] = blob
        return blob

    def __enter__(self) -> Self:
        packed = pack(self.data)
        paths = {*plugin_files(), *(placed(path) for path in _named_files(self.plan))}
        self.setup = Setup(
            run=secrets.token_hex(8),
            facts=facts(),
            settings=replace(self.settings, base=base()),
            data=blob_of(packed, self.engine.store),
            files={str(path): self._blob(path, keep=True) for path in sorted(paths)},
            known=tuple(_known(self.plan)),
            timeout=self.timeout,
        )
        self._contents[self.setup.data.sha256] = packed
        try:
            self._greet()
        except BaseException:
            self._end(cancel=True)
            raise
        return self

    def _greet(self) -> None:
        """Ask every machine what it has; raises UserError that names those that lack something."""
        call = (inspect, (self.setup.known,))
        parcel = Parcel(self.setup, call, {})
        asked = {name: self.engine.on(name, carry_out, parcel) for name in self.engine.machines()}
        lacking = []
        for name, future in asked.items():
            try:
                delivery = future.result(GREET)
                if delivery.missing:
                    sent = self._with(parcel, delivery.missing)
                    delivery = self.engine.on(name, carry_out, sent).result(GREET)
            except TooLateError:
                lacking.append(f"{_called(name)} has not answered in {GREET:g} s")
                continue
            except Exception as error:  # noqa: BLE001 (an engine is other people's code)
                lacking.append(f"{_called(name)} cannot carry out anything: {reason_of(error)}")
                continue
            found, reason = delivery.answer
            if delivery.refused or reason:
                lacking.append(f"{_called(name)}: {delivery.refused or reason}")
                continue
            device, problems = found
            lacking += [f"{_called(name)}: {problem}" for problem in problems]
            self._devices.add(device)
        if lacking:
            raise UserError(
                "nothing was run, for not every machine can do the work: install the same Python, "
                "torch, Retort and plugins there as here, or leave it out\n  "
                + "\n  ".join(dict.fromkeys(lacking))
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what the run left on the machines."""
        self._end(cancel=kind is not None)

    def _end(self, cancel: bool) -> None:
        self._writer.shutdown(cancel_futures=cancel)
        try:
            left = [self.engine.on(m, remove, self.setup.run) for m in self.engine.machines()]
            for future in left:
                future.exception(LEAVE)
        except Exception:  # noqa: BLE001, S110 (a machine that is gone: the next run sweeps there)
            pass


def _called(machine: str) -> str:
    return f"node {machine[:12]}" if machine else "the executor"


def _similar(task: Task) -> tuple[Kind, str]:
    """Return what tasks have in common that need alike: the kind, and the plugin."""
    of = task.document.get("attack") or task.document.get("defense") or {"name": ""}
    return task.kind, str(of["name"])


def _checksums(files: Mapping[str, bytes], task: Task, leaves: str) -> Mapping[str, str]:
    """Return the checksums in a document that came back; raises DamagedError where it is another.

    By the names of the files beside it.
    """
    try:
        document = json.loads(files[f"{leaves} document"])
        if document["id"] == leaves and document["evidence"] == digest(task.key):
            found: Mapping[str, str] = (
                {"weights": document["weights"]} if task.kind in FITS else document["files"]
            )
            return found
    except (KeyError, ValueError, TypeError):
        pass
    raise DamagedError(f"what came back of {leaves} is not its evidence")


def _named_files(plan: Plan) -> Iterator[Path]:
    """Yield the files that plugins of ``plan`` read, as they name them."""
    for node in (*plan.of("fit"), *plan.of("cell")):
        plugin = node.fitted() if node.kind == "fit" else node.attack()
        with registry.asking(plugin, "files"):
            yield from (Path(path) for path in plugin.files())


def _known(plan: Plan) -> Iterator[Known]:
    """Yield every plugin of ``plan`` once, with the hash of its code here."""
    seen: set[str] = set()
    for node in (*plan.of("fit"), *plan.of("cell")):
        name = digest([node.kind, _plugin(node)])
        if name in seen:
            continue
        seen.add(name)
        if node.kind == "fit":
            yield Known("fit", _plugin(node), fit_source(node.document))
        else:
            with registry.asking(node.attack(), "unavailable"):
                unavailable = node.attack().unavailable()
            yield Known("cell", _plugin(node), attack_source(node.document), unavailable)


def _plugin(node: Node) -> Document:
    """Return of a node's document what its code depends on."""
    names = ("defense", "network") if node.kind == "fit" else ("attack",)
    return {name: node.document[name] for name in names}
