"""What a verdict will take on this machine, told before it runs.

Every attack of the plan is tried on two stand-ins of the data's shape, a network of which nothing
falls and one of which everything does, and its passes are counted; one forward and one backward
pass of the model itself are timed. So a plugin's attack is told as ours are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo, UserError
from bench.judging.question import Prepared, Question, model_of, own_models, prepared
from bench.measure.arithmetic import exact
from bench.measure.cell import Sources, attack_sources
from bench.plan.graph import Node
from bench.plugins import registry
from bench.plugins.contracts import LEARNT, Attack, AttackContext, LearningAttack
from bench.runner.processes import default_workers
from bench.runner.worker import attack_seed
from bench.verdict.flags import FEW_SOURCES
from bench.verdict.rates import wilson

TRIED = 2
"""Sources that an attack is tried on."""

TOGETHER = 32
"""Rows of a timed pass; about as many cost an attack's own steps what a few do."""

CALLED = (
    "if called for: where a gradient is not that of the answers, or the round before still broke "
    "something; not in the sum"
)
"""What is said of attacks that may never run."""

CENTRE = (5**0.5 - 1) / 2
"""Every value of a tried source: the farthest from fractions, so that nothing takes it for a level
that the data have."""

AROUND = 26_000
"""Rows that a model is asked beside its attacks, by probes, suspicion and once more at the end."""


@dataclass(frozen=True)
class Passes:
    """Rows through the model, for one source, and the seconds of an attack's own steps."""

    forwards: float
    backwards: float
    own: float

    @property
    def passes(self) -> float:
        """Forward and backward passes together."""
        return self.forwards + self.backwards

    def seconds(self, sources: int, forward: float, backward: float) -> float:
        """Return the seconds that so many ``sources`` take."""
        model = self.forwards * forward + self.backwards * backward
        return sources * model + self.own * max(1.0, sources / TOGETHER)


@dataclass(frozen=True)
class Line:
    """One attack of the plan: how often it runs, where everything falls and where all stands.

    ``models``: cells of it on the models in question; ``plain``: on the others, as the reference.
    ``called``: it runs only where what came before calls for it, and is in no sum.
    """

    attack: str
    models: int
    plain: int
    falls: Passes
    stands: Passes
    called: bool = False


@dataclass(frozen=True)
class Cost:
    """What a plan takes: ``forward`` and ``backward`` are seconds a row of the model.

    ``fixed``: rows that are asked whatever the number of sources. ``trains``: how many networks
    are to be trained, which is not counted.
    """

    lines: Sequence[Line]
    forward: float
    backward: float
    workers: int
    fixed: int
    trains: int

    def of(self, line: Line, sources: int) -> tuple[float, float]:
        """Return the seconds of one attack: where the models fall, and where they stand."""
        times = (self.forward, self.backward)
        easy = line.falls.seconds(sources, *times)
        hard = line.stands.seconds(sources, *times)
        plain = line.plain * easy
        return (
            (plain + line.models * easy) / self.workers,
            (plain + line.models * hard) / self.workers,
        )

    def around(self) -> float:
        """Return the seconds of all that is no attack."""
        return self.fixed * self.forward / self.workers

    def total(self, sources: int) -> tuple[float, float]:
        """Return the seconds of it all: where the models fall, and where they stand."""
        both = [self.of(line, sources) for line in self.lines if not line.called]
        low, high = (sum(pair[end] for pair in both) for end in (0, 1))
        return low + self.around(), high + self.around()


class _Count:
    """Rows that went through any copy of a stand-in."""

    forwards = 0
    backwards = 0


class _StandIn(nn.Module):
    """Class 0 by ``margin`` where an input is ``CENTRE`` everywhere, and linear around it."""

    def __init__(self, info: DataInfo, margin: float, slope: float, count: _Count) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(info.features, info.classes, generator=generator)
        self.weight = nn.Parameter(slope * weight)
        self.count = count
        lead = torch.zeros(info.classes)
        lead[0] = margin
        self.lead = lead

    def __deepcopy__(self, memo: dict[int, Any]) -> _StandIn:
        return self  # it keeps nothing but the count, which is of all copies

    def forward(self, x: Tensor) -> Tensor:
        self.count.forwards += len(x)
        logits: Tensor = (x.flatten(1) - CENTRE) @ self.weight + self.lead
        if logits.requires_grad:
            logits.register_hook(self._backward)  # type: ignore[no-untyped-call]
        return logits

    def _backward(self, gradient: Tensor) -> None:
        self.count.backwards += len(gradient)


def cost(ready: Prepared) -> Cost:
    """Return what a prepared question takes; trying its attacks takes about a quarter a minute."""
    plan, info = ready.plan, ready.data.info
    asked = {n.id for n in own_models(plan) if n.document["defense"] != plan.reference}
    found: dict[str, Line] = {}
    known: dict[str, tuple[Passes, Passes]] = {}
    for node in plan.of("cell"):
        attack = node.attack()
        if attack.unavailable():
            continue
        name = _name(node)
        if name not in known:
            known[name] = (_tried(node, info, falls=True), _tried(node, info, falls=False))
        closes = node.closes
        called = node.follows is not None or (closes is not None and closes.since is not None)
        line = found.setdefault(name, Line(name, 0, 0, *known[name], called))
        own = node.needs["model"] in asked
        found[name] = replace(line, models=line.models + own, plain=line.plain + (not own))
    with exact(threads=1):
        forward, backward = _timed(ready)
    models = len(plan.of("probe"))
    test = len(ready.data.test)
    return Cost(
        list(found.values()),
        forward,
        backward,
        ready.options.workers or default_workers(ready.settings.device),
        models * (AROUND + 2 * test),
        sum(node.defense().trained() is None for node in plan.of("fit")),
    )


def _name(node: Node) -> str:
    """Name an attack without its budget, which changes nothing in what it costs."""
    document = node.document["attack"]
    params = {**document["params"], **(document["params"].get("attack") or {})}
    shown = [str(params[key]) for key in ("output", "attack") if isinstance(params.get(key), str)]
    counts = [
        f"{key}={params[key]}"
        for key in ("steps", "restarts", "runners_up", "queries", "draws")
        if params.get(key)
    ]
    needs = node.document["requires"]
    inner = (document["params"].get("source") or {}).get("name") if needs else None
    told = [*shown, *counts, *([f"from {inner}"] if inner else [])]
    closer = " (closer)" if node.closes else ""
    return " ".join([document["name"], *told]) + closer


def _tried(node: Node, info: DataInfo, *, falls: bool) -> Passes:
    if falls and node.closes:
        return Passes(0, 0, 0)  # nothing is left to it
    count = _Count()
    slope = 1.0 if falls else 10 / info.features
    model = _StandIn(info, 1e-3 if falls else 30.0, slope, count)
    x = torch.full((TRIED, *info.shape), CENTRE)
    sources = Sources(torch.arange(TRIED), x, torch.zeros(TRIED, dtype=torch.int64))
    attack: Attack = node.attack()
    fitted: dict[str, nn.Module] = dict.fromkeys(node.document["requires"], model)
    if isinstance(attack, LearningAttack):
        fitted[LEARNT] = attack.build(info).eval()
    start = time.perf_counter()
    with registry.asking(attack, "perturb"):
        attack_sources(
            model, attack, sources, AttackContext(info, attack_seed(node.document), fitted)
        )
    own = time.perf_counter() - start
    return Passes(count.forwards / TRIED, count.backwards / TRIED, own)


def _timed(ready: Prepared) -> tuple[float, float]:
    """Return the seconds a row of a forward and of a backward pass, the slowest of the models."""
    times = [(0.0, 0.0)]
    for node in own_models(ready.plan):
        model = model_of(node, ready.settings, ready.data).eval()
        rows = ready.data.test.take(slice(0, TOGETHER)).to(torch.device(ready.settings.device))
        x = rows.x
        x.requires_grad_(True)

        def forward(model: nn.Module = model, x: Tensor = x) -> None:
            with torch.no_grad():
                model(x)

        def both(model: nn.Module = model, x: Tensor = x) -> None:
            torch.autograd.grad(model(x).sum(), x)

        one, two = _seconds(forward) / len(x), _seconds(both) / len(x)
        times.append((one, max(two - one, one)))
    return max(first for first, _ in times), max(second for _, second in times)


def _seconds(work: Callable[[], None]) -> float:
    """Return what ``work`` takes: the least of three, once warm."""
    found = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def seconds_of(limit: str) -> float:
    """Return the seconds of ``90s``, ``20m``, ``3h`` or a bare number of seconds.

    >>> seconds_of("20m")
    1200.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", limit)
    if match is None or not float(match[1]):
        raise UserError(f"--time takes a duration, as 90s, 20m or 3h, got {limit!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def fitting(ready: Prepared, question: Question, told: Cost, limit: str) -> Prepared:
    """Return the question at the most sources that end within ``limit``, should all stand.

    Raises UserError where that is fewer than a verdict needs.
    """
    seconds, most = seconds_of(limit), len(ready.data.test)
    fits = [n for n in range(1, most + 1) if told.total(n)[1] <= seconds]
    if not fits or fits[-1] < min(FEW_SOURCES, most):
        need = told.total(min(FEW_SOURCES, most))[1]
        raise UserError(
            f"{limit} buys {fits[-1] if fits else 0} sources, and a verdict needs {FEW_SOURCES}: "
            f"give at least {int(need // 60) + 1}m, or a smaller panel"
        )
    return prepared(replace(question, sources=fits[-1]), ready.options)


def cost_table(told: Cost, sources: int) -> tuple[pd.DataFrame, list[str]]:
    """Return a line an attack, and what the whole takes and what interval it buys, in words."""
    rows = [
        {
            "attack": f"{line.attack}, if called for" if line.called else line.attack,
            "cells": line.models + line.plain,
            "passes a source": f"{line.falls.passes:,.0f} to {line.stands.passes:,.0f}",
            "time": f"{duration(low)} to {duration(high)}",
        }
        for line in told.lines
        for low, high in [told.of(line, sources)]
    ]
    low, high = told.total(sources)
    half = wilson(sources / 2, sources)
    times = 1000 * told.forward, 1000 * told.backward
    assert half is not None
    passes = f"forward {times[0]:.2g} ms, backward {times[1]:.2g} ms"
    range_ = f"{duration(low)} where the models fall, {duration(high)} where they stand"
    words = [
        f"one row of the model: {passes}; {told.workers} at a time",
        f"{sources} sources: {range_} ({duration(told.around())} of it without an attack)",
        CALLED,
        f"at 50 % a worst case is then known to {100 * half[0]:.0f} to {100 * half[1]:.0f} %",
    ]
    if told.trains:
        words.append(f"and {told.trains} networks are trained, which is not counted")
    return pd.DataFrame(rows), words


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    >>> duration(0.4), duration(75), duration(8000)
    ('0.4 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 10:
        return f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
