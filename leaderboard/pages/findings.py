"""``findings.md``: every finding that a run's rows allow, and the figures of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from bench.base.rows import Results
from bench.evidence.cells import waived
from leaderboard.figures.material import Material
from leaderboard.findings.disagreement import disagreement, draw_disagreement
from leaderboard.findings.distilled import smaller
from leaderboard.findings.finding import Finding
from leaderboard.findings.fooling import draw_fooling, fooling
from leaderboard.findings.learned import learned
from leaderboard.findings.linear import draw_linear, linear
from leaderboard.findings.logits import draw_logits, logits
from leaderboard.findings.museum import draw_museum, museum
from leaderboard.findings.networks import draw_networks, networks
from leaderboard.findings.students import draw_students, inheritance, ranking
from leaderboard.pages.markdown import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINDINGS: tuple[Callable[[Results], Finding | None], ...] = (
    logits,
    disagreement,
    inheritance,
    ranking,
    smaller,
    linear,
    networks,
    fooling,
)
"""In the order of the page; each is None where the run has nothing to say about it."""

ALONE: tuple[Callable[[Results], Finding | None], ...] = (museum, learned)
"""What a run is made for: beside it the logits of its networks are no finding."""

DRAWINGS: tuple[Callable[[Results, Material], dict[str, Figure]], ...] = (
    draw_logits,
    draw_disagreement,
    draw_students,
    draw_linear,
    draw_networks,
    draw_fooling,
)


def findings(results: Results, environment: dict[str, Any], drawn: Collection[str]) -> str:
    """Return the page; ``environment`` as ``environment.json`` holds it.

    ``drawn``: the names of the figures that are there.
    """
    found = _made(ALONE, results) or _made(FINDINGS, results)
    missing = [row for row in results.cells if row["status"] != "done" and not waived(row)]
    return page(
        "findings.md.j2",
        findings=found,
        environment=environment,
        drawn=drawn,
        cells=len(results.cells),
        missing=len(missing),
    )


def draw_findings(results: Results, material: Material) -> dict[str, Figure]:
    """Return every figure of the findings, by name."""
    if _made(ALONE, results):
        return draw_museum(results, material)
    return dict(figure for draw in DRAWINGS for figure in draw(results, material).items())


def _made(of: Sequence[Callable[[Results], Finding | None]], results: Results) -> list[Finding]:
    return [finding for make in of if (finding := make(results)) is not None]
