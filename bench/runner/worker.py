"""What a worker process does with one node of the plan: it gets specs, never instances."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.base import text
from bench.base.files import (
    check,
    locked,
    place,
    read_json,
    write_json,
    write_records,
    write_tensors,
    writing,
)
from bench.base.fingerprint import digest
from bench.base.offline import forbid_network
from bench.base.places import placed, start_at
from bench.base.text import LONGEST, cut, one_line, plain
from bench.base.types import DamagedError, Document, Outcome, UserError, fewer_rows, spec_of
from bench.evidence.environment import device_name
from bench.evidence.folder import RunFolder
from bench.handed.diagnose import doubt
from bench.measure.arithmetic import make_exact
from bench.measure.cell import Sources, Subject, attack_sources
from bench.measure.query import DRAWS, ContractError
from bench.measure.watch import Passes
from bench.plan.graph import FITS
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import (
    LEARNT,
    Attack,
    AttackContext,
    Defense,
    HandedOver,
    LearningAttack,
)
from bench.plugins.data import Dataset
from bench.plugins.recipes import find_recipe
from bench.plugins.unpickle import trust
from bench.runner.keys import attack_fit_source, attack_source, fit_source
from bench.runner.rebuild import Rebuilder, make_defense
from bench.runner.state import Peak, ProcessState, checksum
from bench.runner.task import Report, Settings, Task
from bench.suspicion.average import LEAST_DRAWS, Average
from bench.suspicion.suspect import suspect
from bench.training.fit import derive_seed, fit, fit_attack, refuse_infinite
from bench.training.loop import DivergedError

T = TypeVar("T")

LESS = 8
"""Of how many rows one is asked at a time, once a device had no room for all of them."""

IMPORTED = {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}
"""What scikit-learn puts into the environment as it is imported, by ART in its first cell for one.

No plugin is to be blamed for it, and no process replaced.
"""


def serve(connection: Connection, settings: Settings, environment: Mapping[str, str]) -> None:
    """Make this process a worker, and answer what ``connection`` asks until its other end closes.

    First None, or why the process cannot start. Then for each (function, arguments): the value,
    why there is none, and whether the process is as it was before and may be asked again.
    """
    global _worker  # noqa: PLW0603 (one worker a process, made when the process starts)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()  # a process that was forked has that of the process it was forked from
    os.environ.update(environment)
    try:
        _initialise(settings)
        _worker = Worker(settings)
        state = ProcessState()
    except BaseException as error:  # noqa: BLE001 (other people's code)
        connection.send(f"its worker process cannot start: {reason_of(error)}")
        return
    connection.send(None)
    while True:
        try:
            work, args = connection.recv()
        except (EOFError, OSError):
            return
        with warnings.catch_warnings():
            value, reason = _attempt(work, args, state)
        stays = _stays(state, args)
        connection.send((value, reason, stays))


_worker: Worker | None = None


def _end_with_parent() -> None:
    # Whatever ended it: nobody else may write to a folder that its lock says is free.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _initialise(settings: Settings) -> None:
    """One thread, no Ctrl-C, deterministic, output to a log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends a run, not the terminal
    with writing(settings.run / "workers.log"):
        _redirect(settings.run / "workers.log")
    start_at(settings.base, settings.root)
    forbid_network(settings.data.offline)
    trust(settings.trusted)
    make_exact()
    torch.set_num_threads(1)
    for name, value in IMPORTED.items():
        os.environ.setdefault(name, value)
    _use_optimizers()
    doors.load_plugins(settings.plugins)
    if settings.sealed:
        doors.seal()


def _use_optimizers() -> None:
    # The first one of its class wraps that class's step: no plugin is to be blamed for it.
    weight = torch.zeros(1, requires_grad=True)
    for cls in vars(torch.optim).values():
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer):
            with contextlib.suppress(Exception):  # abstract, or for matrices alone
                cls([weight], lr=0.1)  # type: ignore[call-arg]


def _attempt(
    work: Callable[..., T], args: tuple[Any, ...], state: ProcessState
) -> tuple[T | None, str | None]:
    try:
        if work is run_task:
            _named(args[0])
            state.admit()
        return work(*args), None
    except BaseException as error:  # noqa: BLE001 (other people's code)
        return None, reason_of(error)


def _named(task: Task) -> None:
    """Import what the parameters of a task and of its fits name: known before it has run."""
    assert _worker is not None, "this process is no worker"
    with contextlib.suppress(Exception):  # the task itself says what is wrong
        fits = [_worker.models.document(role, fit) for role, fit in task.needs.items()]
        for document in (task.document, *fits):
            for kind, registries in (("defense", registry.DEFENSES), ("attack", registry.ATTACKS)):
                if kind in document:
                    registries.make(spec_of(document[kind])).code()


def _stays(state: ProcessState, args: tuple[Any, ...]) -> bool:
    try:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # an error of the device stays with its process: raises again
        changes = state.changes()
        if changes:
            what = getattr(args[0], "id", "a task") if args else "a task"
            print(f"{what} left other than it was: {', '.join(changes)}")  # noqa: T201 (the log)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # noqa: BLE001 (what cannot even be asked is not as it was)
        return False
    return not changes


def run_task(task: Task) -> Report:
    """Run ``task`` in this worker process. An error of a plugin is a value: a failed outcome."""
    assert _worker is not None, "this process is no worker"
    return _worker.run(task)


def call(work: Callable[..., T], *args: object) -> T:
    """Return ``work(*args)``: what a process that serves is asked for."""
    return work(*args)


def _redirect(log: Path) -> None:
    # Plugins print; the run's progress bar must survive it.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    if descriptor > 2:
        os.close(descriptor)
    # None where the run was started with its own closed.
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


class Worker:
    """Runs tasks against one data set, kept in memory on the device."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = RunFolder(settings.run)
        self.models = Rebuilder(settings)
        self._training: Document | None = None
        self._loaded: list[tuple[nn.Module, int]] = []

    def run(self, task: Task) -> Report:
        """Run one task, and write what it leaves."""
        start = time.perf_counter()
        peak = Peak(self.models.device)
        self._training = None
        try:
            _check_files(task)
            self._check_source(task)
            cached = self._with_room(task)
        except BaseException as error:  # noqa: BLE001 (other people's code)
            self.models.changed()  # and if so, loaded anew for the next task
            trace = cut(plain(traceback.format_exc(limit=-30)), 100 * LONGEST)
            return Report(
                Outcome("failed", reason_of(error)), time.perf_counter() - start, trace=trace
            )
        seconds = time.perf_counter() - start
        return Report(
            Outcome("done"), seconds, cached, None, self._training, peak.memory(), peak.gpu()
        )

    def _with_room(self, task: Task) -> bool:
        """Do a task, and once more with fewer rows at a time where the device has no room for it.

        Not a fit: how many rows it learns from at once decides what it learns.
        """
        try:
            return self._do(task)
        except torch.OutOfMemoryError:
            if task.kind in FITS:
                raise
        torch.cuda.empty_cache()
        with fewer_rows(LESS):
            return self._do(task)

    def _do(self, task: Task) -> bool:
        """Do a task, and return whether what it leaves came out of the cache."""
        seed_for(task.document, task.id)
        self._loaded = []
        if task.kind in FITS:
            return self._fit(task)
        if task.kind == "probe":
            self._probe(task)
        else:
            self._cell(task)
        return False

    def _fit(self, task: Task) -> bool:
        stored = cached_at(self.settings.cache, task.key)
        found = cached_fit(stored, task.key)
        cached = found is not None
        if found is None:
            # One process learns, the others wait; the operating system frees a dead one's lock.
            with locked(stored.with_name(f"{stored.name}.lock")):
                found = cached_fit(stored, task.key)
                cached = found is not None
                if found is None:
                    found = self._learn(task, stored)
        keep_fit(self.folder, task, stored, found)
        self._training = found.get("training")
        return cached

    def _learn(self, task: Task, stored: Path) -> Document:
        """Fit a defense or an attack, and return what the cache says of it beside its weights."""
        what = "defense" if task.kind == "fit" else "attack"
        who = f"{what} {task.document[what]['name']!r}"
        shared = (
            task.document
            if task.kind == "fit"
            else self.models.document("model", task.needs["model"])
        )
        self.models.changed()  # by whatever: if so, it is loaded anew
        data, passes = self._data(shared, task.key), Passes()
        work = self._defense(task, data) if task.kind == "fit" else self._attack(task, data, passes)
        start, processor = time.perf_counter(), time.process_time()
        module = work()
        training = {
            "seconds": time.perf_counter() - start,
            "processor": time.process_time() - processor,
            "load": _load(),
            "on": "processor" if self.settings.device == "cpu" else "accelerator",
            "device": device_name(self.settings.device),
        }
        if self.models.changed():
            raise ContractError(f"{who} changes the data set that it learns from")
        self._check_weights(who, "while it learns")
        refuse_infinite(module)
        _check_files(task)
        weights = write_tensors(stored, module.state_dict())
        queries = {"forwards": passes.forwards, "backwards": passes.backwards}
        document = cache_document(
            task, weights, training, queries if task.kind == "attack-fit" else None
        )
        write_json(stored.with_suffix(".json"), document)
        return document

    def _defense(self, task: Task, data: Dataset) -> Callable[[], nn.Module]:
        """Return what trains the model of a defense."""
        document = task.document
        return partial(
            fit,
            make_defense(document),
            registry.NETWORKS.make(spec_of(document["network"])),
            data,
            find_recipe(document["recipe"]["name"]),
            derive_seed(document["seed"], document["defense"]["name"]),
            self.models.fitted(task.needs),
            registry.ATTACKS.make,
        )

    def _attack(self, task: Task, data: Dataset, passes: Passes) -> Callable[[], nn.Module]:
        """Return what lets an attack learn about a model, whose ``passes`` are counted."""
        document = task.document
        defense, model = self._load(task.needs["model"])
        attack = registry.ATTACKS.make(spec_of(document["attack"]))
        assert isinstance(attack, LearningAttack), f"{document['attack']} learns nothing"
        subject = asked(attack, defense, model)
        work = partial(
            fit_attack,
            attack,
            subject,
            data,
            find_recipe(self.models.document("model", task.needs["model"])["recipe"]["name"]),
            derive_seed(document["seed"], document["attack"]["name"]),
            self.models.fitted(document["requires"]),
            registry.ATTACKS.make,
        )

        def counted() -> nn.Module:
            with passes.counted(subject):
                return work()

        return counted

    def _probe(self, task: Task) -> None:
        fit_id = task.needs["model"]
        defense, model = self._load(fit_id)
        data = self._data(self.models.document("model", task.needs["model"]), task.key)
        sources = self.models.sources(task.document, data)
        suspicion = suspect(
            lambda: self._load(fit_id)[1],
            lambda module: attacked(defense, module),
            sources.x,
            sources.y,
            task.document["scale"],
            seed=sources.seed,
        )
        found = self.models.probe(model, task.document, data)
        self._check_kept(f"defense {registry.DEFENSES.name_of(defense)!r}", "when it is asked")
        path = self.folder.probe(task.id)
        files = {"records": write_records(path.with_suffix(".parquet"), found.rows)}
        size = {"parameters": sum(weight.numel() for weight in model.parameters())}
        told = {"errors": found.errors, "suspicion": suspicion.document(), **size}
        if isinstance(defense, HandedOver):
            told["handed"] = doubt(model, data.test, defense.expect_accuracy)
        write_json(path, {**_node_document(task, files), **told})

    def _cell(self, task: Task) -> None:
        data = self._data(self.models.document("model", task.needs["model"]), task.key)
        sources = self.models.sources(task.document, data)
        if task.only is not None:
            sources = sources.only(torch.tensor(task.only, dtype=torch.int64))
        if task.blocks is None:
            self._perturb(task, data, sources, task.id)
            return
        for block, leaves in zip(task.blocks, task.leaves, strict=True):
            seed_for(task.document, leaves)  # each as if it were alone
            self._loaded = []
            self._perturb(task, data, sources.block(block), leaves)

    def _perturb(self, task: Task, data: Dataset, sources: Sources, leaves: str) -> None:
        """Attack ``sources`` and write the evidence under the id ``leaves``."""
        fit_id = task.needs["model"]
        defense, model = self._load(fit_id)
        attack = registry.ATTACKS.make(spec_of(task.document["attack"]))
        fitted = self.models.fitted(task.document["requires"], task.document.get(LEARNT))
        context = AttackContext(data.info, attack_seed(task.document), fitted)
        subject = Subject(
            model,
            anew=lambda: self._load(fit_id)[1],
            surrogate=attacked(defense, model) if attack.access == "gradients" else None,
            draws=DRAWS if defense.stochastic else 1,
            most_passes=task.document.get("most_passes"),
        )
        evidence = attack_sources(subject, attack, sources, context)
        name = task.document["attack"]["name"]
        self._check_kept(f"attack {name!r} or the model it attacks", "during the attack")
        _check_files(task)
        path = self.folder.cell(leaves)
        files = {
            "inputs": write_tensors(path.with_suffix(".safetensors"), {"x_adv": evidence.x_adv}),
            "records": write_records(path.with_suffix(".parquet"), evidence.records),
        }
        queries = {"forwards": evidence.forwards, "backwards": evidence.backwards}
        found = {"id": leaves, "queries": queries, "differing": evidence.differing}
        write_json(path, {**_node_document(task, files), **found})

    def _load(self, fit_id: str) -> tuple[Defense, nn.Module]:
        """Return a model as it was fitted, and remember it for ``_check_kept``."""
        defense, model = self.models.load_model(fit_id)
        self._loaded.append((model, _weights_of(model)))
        return defense, model

    def _data(self, fit_document: Document, key: Document) -> Dataset:
        """Return the data set of a fit; raises DamagedError where it is not that of the key."""
        data = self.models.data(fit_document["dataset"])
        if data.fingerprint != key["data"]:
            raise DamagedError(f"the data set {data.info.name!r} was rewritten while the run lasts")
        return data

    def _check_source(self, task: Task) -> None:
        """Raise DamagedError where the code of this process is not what the key says."""
        if task.kind == "fit":
            what, kept = "defense", task.key["source"] == fit_source(task.document)
        else:
            document = self.models.document("model", task.needs["model"])
            what, kept = "defense", task.key["model"]["source"] == fit_source(document)
        if kept and task.kind == "attack-fit":
            what, kept = "attack", task.key["source"] == attack_fit_source(task.document)
        if kept and task.kind == "cell":
            what, kept = "attack", task.key["attack_source"] == attack_source(task.document)
        if not kept:
            raise DamagedError(f"the code of the {what} was rewritten while the run lasts")

    def _check_kept(self, who: str, when: str) -> None:
        """Raise ContractError that names ``who`` where the test data or a model's weights moved."""
        if self.models.changed(test_only=True):
            raise ContractError(f"{who} changes the data set {when}")
        self._check_weights(who, when)

    def _check_weights(self, who: str, when: str) -> None:
        if any(_weights_of(model) != before for model, before in self._loaded):
            raise ContractError(f"{who} changes the weights or buffers of the model {when}")


def seed_for(document: Document, what: str) -> None:
    """Seed every global generator for what is done with a node's ``document``, by its id."""
    seed = int(digest({"seed": document.get("seed", 0), "node": what})[:8], 16)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _load() -> float | None:
    """Return how many processes wanted each core of late; None where the system does not say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return None


def asked(attack: Attack, defense: Defense, model: nn.Module) -> nn.Module:
    """Return what an attack asks and, where it follows gradients, differentiates."""
    differentiates = attack.access == "gradients" and attack.adaptive
    return attacked(defense, model) if differentiates else model


def attacked(defense: Defense, model: nn.Module) -> nn.Module:
    """Return what a gradient attack differentiates: of a stochastic defense an average of draws."""
    subject = defense.surrogate(model)
    weight = next(iter(model.state_dict().values()), None)
    if isinstance(weight, Tensor):
        subject.to(weight.device)  # one with a buffer of its own stands where it was made
    if isinstance(subject, Average) and subject.draws >= LEAST_DRAWS:
        return subject  # an average of its own, which is not averaged once more
    return Average(subject) if defense.stochastic else subject


def attack_seed(document: Document) -> int:
    """Return the seed of a cell's attack: of its own, so that no two attacks share their draws."""
    named = {"seed": document["source_seed"], "attack": document["attack"]}
    return int(digest({**named, "closes": "closes" in document})[:8], 16)


def reason_of(error: BaseException) -> str:
    """Return an error as one line: its message where it is ours, else with its type."""
    if isinstance(error, UserError | ContractError | DivergedError | DamagedError):
        return cut(one_line(str(error)))
    return text.reason_of(error)


def _node_document(task: Task, files: Mapping[str, str]) -> Document:
    return {
        "id": task.id,
        "outcome": asdict(Outcome("done")),
        "evidence": digest(task.key),
        "files": dict(files),
        "key": task.key,
    }


def _weights_of(model: nn.Module) -> int:
    return checksum(value for value in model.state_dict().values() if isinstance(value, Tensor))


def _check_files(task: Task) -> None:
    for path, found in task.key.get("files", {}).items():
        check(placed(path), found)  # as it was when the key was made


def cached_at(cache: Path, key: Document) -> Path:
    """Return where the cache holds the weights of the fit of ``key``; its document lies beside."""
    return cache / "fits" / f"{digest(key)}.safetensors"


def cached_fit(stored: Path, key: Document) -> Document | None:
    """Return what lies beside the weights at ``stored``, or None where they are not of ``key``."""
    try:
        document: Document = read_json(stored.with_suffix(".json"))
        check(stored, document["weights"])
    except (DamagedError, KeyError, TypeError):
        return None  # missing, torn or damaged: it is learnt again, never trusted
    return document if document.get("key") == key else None


def cache_document(
    task: Task, weights: str, training: Document | None, queries: Document | None = None
) -> Document:
    """Return what lies in the cache beside the weights of a fit, whose SHA-256 is ``weights``.

    ``queries``: of an attack's fit, the rows that it sent through the model.
    """
    document = {"weights": weights, "key": task.key, "training": training}
    return document if queries is None else {**document, "queries": queries}


def keep_fit(folder: RunFolder, task: Task, stored: Path, found: Document) -> None:
    """Put the weights of a fit, as the cache holds them at ``stored``, into a run's folder.

    ``found``: what the cache says of them.
    """
    place(stored, folder.weights(task.id, task.kind))
    document = {
        "id": task.id,
        "outcome": asdict(Outcome("done")),
        "evidence": digest(task.key),
        **{name: value for name, value in found.items() if name != "training"},
    }
    write_json(folder.document(task.kind, task.id), document)
