"""What a worker process does with one node of the plan: it gets specs, never instances."""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

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
from bench.base.types import DamagedError, Document, Outcome, UserError, spec_of
from bench.evidence.folder import RunFolder
from bench.measure.average import Average
from bench.measure.cell import Subject, attack_sources
from bench.measure.query import DRAWS, ContractError, predict
from bench.measure.suspicion import suspect
from bench.plugins import discovery, registry
from bench.plugins.contracts import AttackContext, Defense
from bench.plugins.data import Dataset
from bench.plugins.recipes import find_recipe
from bench.runner.rebuild import Rebuilder, make_defense
from bench.runner.task import Report, Settings, Task
from bench.training.fit import derive_seed, fit
from bench.training.loop import DivergedError

T = TypeVar("T")


def initialise(settings: Settings) -> None:
    """Make this process a worker: one thread, no Ctrl-C, deterministic, output to a log."""
    global _worker, _broken  # noqa: PLW0603 (one worker a process, made when the process starts)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends a run, not the terminal
    try:
        with writing(settings.run / "workers.log"):
            _redirect(settings.run / "workers.log")
        prepare_torch()
        discovery.load_plugins(settings.plugins)
        _worker = Worker(settings)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (other people's code)
        # Kept for the first task: a process that dies here is replaced by one that dies here.
        _broken = Report(Outcome("failed", f"its worker process cannot start: {reason_of(error)}"))


_worker: Worker | None = None

_broken: Report | None = None


def prepare_torch() -> None:
    """One CPU thread, deterministic kernels, no TF32: the same numbers every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    # A warning in the log, not an error: on a GPU some plain layers have no deterministic backward.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid of the deterministic mode: it fills every new tensor with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def run_task(task: Task) -> Report:
    """Run ``task`` in this worker process. An error of a plugin is a value: a failed outcome."""
    if _broken is not None:
        return _broken
    assert _worker is not None, "initialise was not called"
    return _worker.run(task)


def call(work: Callable[..., T], *args: object) -> T:
    """Return ``work(*args)`` in this worker process; raises where the process could not start."""
    if _broken is not None:
        raise RuntimeError(_broken.outcome.reason)
    return work(*args)


def _redirect(log: Path) -> None:
    # Plugins print; the run's progress bar must survive it.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


class Worker:
    """Runs tasks against one data set, kept in memory on the device."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = RunFolder(settings.run)
        self.models = Rebuilder(settings)
        self._timings: dict[str, float] = {}

    def run(self, task: Task) -> Report:
        """Run one task, and write what it leaves."""
        start = time.perf_counter()
        seed = int(digest({"seed": task.document.get("seed", 0), "node": task.id})[:8], 16)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        cached = False
        self._timings = {}
        try:
            for path, checksum in task.key.get("files", {}).items():
                check(Path(path), checksum)  # as it was when the key was made
            if task.kind == "fit":
                cached = self._fit(task)
            elif task.kind == "probe":
                self._probe(task)
            else:
                self._cell(task)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (other people's code)
            outcome = Outcome("failed", reason_of(error))
            return Report(outcome, time.perf_counter() - start, trace=traceback.format_exc())
        seconds = time.perf_counter() - start
        return Report(Outcome("done"), seconds, cached, timings=self._timings)

    def _fit(self, task: Task) -> bool:
        stored = self.settings.cache / "fits" / f"{digest(task.key)}.safetensors"
        # One process learns, the others wait; the operating system frees a dead one's lock.
        with locked(stored.with_name(f"{stored.name}.lock")):
            weights = _cached_weights(stored)
            cached = weights is not None
            if weights is None:
                weights = self._learn(task, stored)
        place(stored, self.folder.weights(task.id))
        document = {
            "id": task.id,
            "outcome": asdict(Outcome("done")),
            "weights": weights,
            "evidence": digest(task.key),
            "key": task.key,
        }
        write_json(self.folder.model(task.id), document)
        return cached

    def _learn(self, task: Task, stored: Path) -> str:
        document = task.document
        name = document["defense"]["name"]
        data, fitted = self.models.data(document["dataset"]), self.models.fitted(task.needs)
        start = time.perf_counter()
        model = fit(
            make_defense(document),
            registry.NETWORKS.make(spec_of(document["network"])),
            data,
            find_recipe(document["recipe"]["name"]),
            derive_seed(document["seed"], name),
            fitted,
            registry.ATTACKS.make,
        )
        self._timings[f"training:{task.id}"] = time.perf_counter() - start
        broken = [
            key for key, value in model.state_dict().items() if not torch.isfinite(value).all()
        ]
        if broken:
            raise DivergedError(f"the fitted weights are not finite: {', '.join(broken)}")
        weights = write_tensors(stored, model.state_dict())
        write_json(stored.with_suffix(".json"), {"weights": weights, "key": task.key})
        return weights

    def _probe(self, task: Task) -> None:
        fit_id = task.needs["model"]
        defense, model = self.models.load_model(fit_id)
        data = self.models.data(self._fit_document(task)["dataset"])
        sources = self.models.sources(task.document, data)
        suspicion = suspect(
            lambda: self.models.load_model(fit_id)[1],
            lambda module: attacked(defense, module),
            sources.x,
            sources.y,
            task.document["scale"],
            seed=sources.seed,
        )
        found = self.models.probe(model, task.document, data)
        self._timings[f"inference:{task.needs['model']}"] = _inference(model, data)
        path = self.folder.probe(task.id)
        files = {"records": write_records(path.with_suffix(".parquet"), found.rows)}
        size = {"parameters": sum(weight.numel() for weight in model.parameters())}
        told = {"errors": found.errors, "suspicion": suspicion.document(), **size}
        write_json(path, {**_node_document(task, files), **told})

    def _cell(self, task: Task) -> None:
        fit_id = task.needs["model"]
        defense, model = self.models.load_model(fit_id)
        data = self.models.data(self._fit_document(task)["dataset"])
        attack = registry.ATTACKS.make(spec_of(task.document["attack"]))
        sources = self.models.sources(task.document, data)
        if task.only is not None:
            sources = sources.only(torch.tensor(task.only, dtype=torch.int64))
        context = AttackContext(
            data.info, attack_seed(task.document), self.models.fitted(task.document["requires"])
        )
        subject = Subject(
            model,
            anew=lambda: self.models.load_model(fit_id)[1],
            surrogate=attacked(defense, model) if attack.access == "gradients" else None,
            draws=DRAWS if defense.stochastic else 1,
            most_passes=task.document.get("most_passes"),
        )
        evidence = attack_sources(subject, attack, sources, context)
        path = self.folder.cell(task.id)
        files = {
            "inputs": write_tensors(path.with_suffix(".safetensors"), {"x_adv": evidence.x_adv}),
            "records": write_records(path.with_suffix(".parquet"), evidence.records),
        }
        queries = {"forwards": evidence.forwards, "backwards": evidence.backwards}
        found = {"queries": queries, "differing": evidence.differing}
        write_json(path, {**_node_document(task, files), **found})

    def _fit_document(self, task: Task) -> Document:
        document: Document = read_json(self.folder.model(task.needs["model"]))["key"]["document"]
        return document


def _inference(model: nn.Module, data: Dataset) -> float:
    """Return the seconds of a pass over up to 1,000 test images: the median of five, once warm."""
    x, seconds = data.test.x[:1000], []
    for _ in range(6):
        start = time.perf_counter()
        predict(model, x, data.info.classes)
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def attacked(defense: Defense, model: nn.Module) -> nn.Module:
    """Return what a gradient attack differentiates: of a stochastic defense an average of draws."""
    subject = defense.surrogate(model)
    return Average(subject) if defense.stochastic else subject


def attack_seed(document: Document) -> int:
    """Return the seed of a cell's attack: of its own, so that no two attacks share their draws."""
    named = {"seed": document["source_seed"], "attack": document["attack"]}
    return int(digest({**named, "closes": "closes" in document})[:8], 16)


def reason_of(error: BaseException) -> str:
    """Return an error as one line: its message where it is ours, else with its type."""
    message = " ".join(str(error).split())
    if isinstance(error, UserError | ContractError | DivergedError | DamagedError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _node_document(task: Task, files: Mapping[str, str]) -> Document:
    return {
        "id": task.id,
        "outcome": asdict(Outcome("done")),
        "evidence": digest(task.key),
        "files": dict(files),
        "key": task.key,
    }


def _cached_weights(stored: Path) -> str | None:
    try:
        weights: str = read_json(stored.with_suffix(".json"))["weights"]
        check(stored, weights)
    except (DamagedError, KeyError, TypeError):
        return None  # missing, torn or damaged: it is learnt again, never trusted
    return weights
