"""Copy what may be published of a run: aggregates, environment, and the page made from them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.base.files import atomic, read_json, replaced, write_json, write_text
from bench.base.rows import Results
from bench.base.types import DamagedError, UserError
from bench.evidence.finished_run import read_results
from bench.evidence.folder import RunFolder
from leaderboard.pages.agreement import agreement
from leaderboard.pages.cost import cost
from leaderboard.pages.distillation import distillation
from leaderboard.pages.findings import findings
from leaderboard.pages.leaderboard import pages
from leaderboard.pages.markdown import page
from leaderboard.site.index_page import index_page
from leaderboard.tables.headline import headline, measured_on

if TYPE_CHECKING:
    from bench.plugins.data import Dataset


PAGES = ("findings.md", "distillation.md", "agreement.md", "leaderboard.md")
"""In this order, what a run's line links to first."""


def publish(run: Path, to: Path) -> Path:
    """Write the results, ``environment.json`` and the pages to ``to``/RUN-NAME.

    What was published there before is replaced as a whole, or not at all.
    The pages are made again from those documents, so they can be made by anyone who has them; so
    are the pages of ``report``, with ``timings.json``. Figures are copied, for a panel is
    made of inputs that are not published; security curves are drawn from the verdicts.
    Raises UserError where ``run`` is no finished run, or of a newer schema.
    """
    RunFolder(run).check_schema()
    try:
        results = read_results(run)
        environment = read_json(run / "environment.json")
    except DamagedError as error:
        raise UserError(f"{run} is no finished run: {error}") from error
    target = to / run.resolve().name
    with replaced(target) as folder:
        _write(run, folder, results, environment)
    return target


def _write(run: Path, folder: Path, results: Results, environment: dict[str, Any]) -> None:
    for name, document in results.documents().items():
        write_json(folder / name, document)
    write_json(folder / "environment.json", environment)
    for name, text in pages(results, environment).items():
        write_text(folder / name, text)
    for figure in sorted((run / "figures").glob("*.p[dn][fg]")):
        with atomic(folder / "figures" / figure.name) as temporary:
            shutil.copyfile(figure, temporary)
    report = environment["matrix"].get("report")
    if report is not None:
        seconds = read_json(run / "timings.json")
        write_json(folder / "timings.json", seconds)
        write_pages(report, folder, results, environment, seconds)
    if results.verdicts:
        from leaderboard.figures.curves import write_curves

        write_curves(results.verdicts, folder / "figures")


def write_pages(
    report: str,
    folder: Path,
    results: Results,
    environment: dict[str, Any],
    seconds: Mapping[str, float],
) -> None:
    """Write the pages that a matrix's ``report`` asks for; ``seconds`` as in ``timings.json``.

    Seconds differ from run to run: a page that shows them is no part of the results.
    """
    if report == "agreement":
        write_text(folder / "agreement.md", agreement(results.cells, environment, seconds))
    if report == "distillation":
        write_text(folder / "distillation.md", distillation(results, environment))
    if report == "findings":
        drawn = {path.stem for path in (folder / "figures").glob("*.png")}
        write_text(folder / "findings.md", findings(results, environment, drawn))
    if report in ("distillation", "findings"):
        write_text(folder / "cost.md", cost(results.models, environment, seconds))


def write_figures(report: str, results: Results, folder: RunFolder, data: Dataset) -> None:
    """Draw the figures that a matrix's ``report`` shows, with those of its own inputs."""
    from leaderboard.figures.style import save
    from leaderboard.figures.temperature import draw

    figures = folder.root / "figures"
    if report == "distillation":
        from leaderboard.figures.mosaic import panels

        save({**draw(results), **panels(results, folder, data)}, figures, measured_on(results))
    if report == "findings":
        from leaderboard.findings.material import Material
        from leaderboard.pages.findings import draw_findings

        save(draw_findings(results, Material(folder, data)), figures, measured_on(results))


def write_index(published: Path) -> Path:
    """Write ``README.md`` and ``index.html`` of a folder of published runs; return the first."""
    folders = [path.parent for path in sorted(published.glob("*/environment.json"))]
    every = [(folder, read_results(folder)) for folder in folders]
    runs = [_run(folder, results) for folder, results in every]
    target = published / "README.md"
    write_text(target, page("index.md.j2", runs=runs))
    write_text(
        published / "index.html",
        index_page([(run, results) for run, (_, results) in zip(runs, every, strict=True)]),
    )
    return target


def _run(folder: Path, results: Results) -> dict[str, Any]:
    environment = read_json(folder / "environment.json")
    matrix = environment["matrix"]
    return {
        "name": folder.name,
        "pages": [name for name in PAGES if (folder / name).exists()],
        "figures": len(list((folder / "figures").glob("*.png"))),
        "dataset": environment["dataset"],
        "sources": matrix["sources"],
        "seeds": len(matrix["seeds"]),
        "shows": matrix["description"],
        "headline": headline(results),
    }
