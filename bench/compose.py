"""A matrix from beginning to end: prepare, run, judge, write what people read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.base.types import DamagedError, Document, UserError

if TYPE_CHECKING:
    import pandas as pd

    from bench.base.rows import CellRow, Results
    from bench.evidence.folder import RunFolder
    from bench.plan.graph import Plan
    from bench.plan.options import RunOptions
    from bench.plugins.data import Dataset
    from bench.runner.schedule import Progress
    from bench.runner.task import Settings


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, what its records came to, how its nodes ended."""

    folder: Path
    results: Results
    progress: Progress

    @property
    def rows(self) -> list[CellRow]:
        """The rows of ``results.json``."""
        return self.results.cells

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def run(matrix: str | Path | dict[str, Any], **options: Any) -> pd.DataFrame:
    """Run a matrix, by name, file or as a table, and return its results, one row a cell.

    The same as ``python -m bench run --matrix``; ``options`` are the fields of ``RunOptions``.
    Raises UserError for a mistake in the matrix or the options.
    """
    from bench.plan.options import RunOptions

    if unknown := set(options) - set(RunOptions.__dataclass_fields__):
        from bench.base.text import nearest

        name = min(unknown)
        raise UserError(
            f"unknown option {name!r}: {nearest(name, RunOptions.__dataclass_fields__)}"
        )
    return run_matrix(matrix, RunOptions(**options)).frame()


def run_matrix(
    matrix: str | Path | dict[str, Any], options: RunOptions, watch: bool = False
) -> RunResult:
    """Plan and carry out a matrix, and write its folder; ``watch`` shows progress bars."""
    from bench.runner.prepare import prepare

    return run_prepared(prepare(matrix, options), options, watch)


def run_prepared(
    prepared: tuple[Plan, Settings, Dataset], options: RunOptions, watch: bool = False
) -> RunResult:
    """Carry out what ``prepare`` returned for the same ``options``, and write its folder."""
    from bench.cluster.choose import executor_of
    from bench.evidence.environment import machine
    from bench.evidence.folder import RunFolder
    from bench.results.costs import measure_costs
    from bench.runner.recheck import recheck
    from bench.runner.schedule import execute
    from leaderboard.pages.publish import COSTED

    plan, settings, data = prepared
    if watch:
        say_notes(data)
    chosen = executor_of(options, plan, data, settings)
    with chosen as executor, _observer(plan, watch) as observer:
        progress = execute(plan, data, settings, executor, observer, options.fresh, options.replace)
        folder = RunFolder(settings.run)
        recheck(plan, folder, executor, options.fresh)
        if plan.matrix.report in COSTED:
            measure_costs(plan, folder, executor, progress.weights, progress.training)
        where = machine(settings.device, executor.device)
    results = write_results(plan, data, folder, where, progress)
    return RunResult(settings.run, results, progress)


def say_notes(data: Dataset) -> None:
    """Print what was guessed of data and models, or is strange about them."""
    from leaderboard.terminal.say import paragraph

    for note in data.notes:
        paragraph(f"note: {note}", fg="yellow")


def _observer(plan: Plan, watch: bool) -> Any:
    import contextlib

    from bench.runner.schedule import no_observer

    if not watch:
        return contextlib.nullcontext(no_observer)
    from bench.runner.progress import watching

    return watching(plan)


def write_results(
    plan: Plan, data: Dataset, folder: RunFolder, where: Document, progress: Progress
) -> Results:
    """Make the results and pages of the evidence in ``folder``, and write them beside it.

    ``where``: what did the work, as ``bench.evidence.environment.machine`` says.
    """
    from bench.base.files import read_json, write_json
    from bench.evidence.environment import describe
    from bench.results.collect import results
    from leaderboard.pages.publish import redraw_figures, write_pages

    made = results(plan, data, folder)
    environment = {**describe(plan, "cpu"), **where}
    try:
        timings = read_json(folder.top("timings.json"))
    except DamagedError:
        timings = {}
    if not isinstance(timings, dict):
        timings = {}  # not ours: written anew
    write_json(folder.top("timings.json"), {**timings, **progress.seconds})
    if data.notes:
        environment["notes"] = list(data.notes)
    write_json(folder.top("environment.json"), environment)
    redraw_figures(made, environment, (folder, data))
    write_pages(folder.root, made, environment)
    return made
