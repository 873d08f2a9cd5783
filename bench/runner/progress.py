"""Two progress bars with the time left: fits, and the cells and probes behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from bench.plan.graph import Node, Plan
from bench.runner.schedule import Observer
from bench.runner.task import Report


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
        fits = progress.add_task("models", total=len(plan.of("fit")), note="")
        rest = progress.add_task("attacks", total=len(plan.nodes) - len(plan.of("fit")), note="")
        counts = {"failed": 0, "skipped": 0, "reused": 0}

        def observe(node: Node, report: Report, reused: bool) -> None:
            if report.outcome.status != "done":
                counts[report.outcome.status] += 1
            counts["reused"] += reused or report.cached
            note = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            progress.update(fits if node.kind == "fit" else rest, advance=1, note=note)

        yield observe
