"""A progress bar with the time left for each: fits, the probes of their models, attacks.

Where standard error is no terminal, as in a cluster's log, a line every half minute instead.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from bench.plan.graph import Kind, Node, Plan
from bench.runner.schedule import Observer
from bench.runner.task import Report

EVERY = 30.0
"""Seconds between two lines of a log."""


SHOWN: dict[Kind, str] = {
    "fit": "models",
    "probe": "probes",
    "attack-fit": "attacks",
    "cell": "attacks",
}
"""What a node counts as; a probe of a large network takes minutes, and is no attack."""


def totals(plan: Plan) -> dict[str, int]:
    """Return how many nodes of a plan count as what."""
    found = Counter(SHOWN[node.kind] for node in plan.nodes)
    return {name: found[name] for name in dict.fromkeys(SHOWN.values())}


class Tally:
    """How far a run is: nodes that ended, of how many, and how; ``clock``: seconds."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.start = clock, clock()
        self.began: float | None = None
        self.totals = totals(plan)
        self.done: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.worked = 0

    def observe(self, node: Node, report: Report, reused: bool) -> None:
        """Count a node that ended."""
        name = SHOWN[node.kind]
        self.done[name] += 1
        if report.outcome.status != "done":
            self.ends[report.outcome.status] += 1
        self.ends["reused"] += reused or report.cached
        if name == "attacks" and not reused:
            # What is skipped counts: as many of those to come, as closers without a source.
            self.worked += 1
            if self.began is None:
                self.began = self.clock() - report.seconds

    def line(self) -> str:
        """Return it as a line, with the time since the start and the time left.

        That is told from the attacks alone: what came before them says nothing of what is left.
        """
        now = self.clock()
        parts = [f"{name} {self.done[name]}/{total}" for name, total in self.totals.items()]
        ends = ", ".join(
            f"{self.ends[n]} {n}" for n in ("failed", "skipped", "reused") if self.ends[n]
        )
        about = ""
        if self.began is not None:
            left = self.totals["attacks"] - self.done["attacks"]
            ready = all(self.done[n] == self.totals[n] for n in self.totals if n != "attacks")
            about = f", {'about' if ready else 'at least'} "
            about += f"{_minutes((now - self.began) / self.worked * left)} left"
        total = _minutes(now - self.start)
        return f"{total}: {', '.join(parts)}{f' ({ends})' if ends else ''}{about}"


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


@contextmanager
def lines(plan: Plan, stream: TextIO, every: float = EVERY) -> Iterator[Observer]:
    """Write a line to ``stream`` every so many seconds while a run lasts, and one at its end."""
    tally, ended = Tally(plan), threading.Event()

    def write() -> None:
        print(tally.line(), file=stream, flush=True)

    def ticking() -> None:
        while not ended.wait(every):
            write()

    thread = threading.Thread(target=ticking, daemon=True)
    thread.start()
    try:
        yield tally.observe
    finally:
        ended.set()
        thread.join()
        write()


def watching(plan: Plan) -> AbstractContextManager[Observer]:
    """Show on standard error how far a run is, as whoever reads it there can."""
    return bars(plan) if sys.stderr.isatty() else lines(plan, sys.stderr)


@contextmanager
def bars(plan: Plan) -> Iterator[Observer]:
    """Show bars on standard error while a run lasts; yield the observer that moves them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeft(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {
            name: progress.add_task(name, total=total, note="")
            for name, total in totals(plan).items()
        }
        counts = {"failed": 0, "skipped": 0, "reused": 0}

        def observe(node: Node, report: Report, reused: bool) -> None:
            if report.outcome.status != "done":
                counts[report.outcome.status] += 1
            counts["reused"] += reused or report.cached
            note = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            progress.update(tasks[SHOWN[node.kind]], advance=1, note=note)

        yield observe
