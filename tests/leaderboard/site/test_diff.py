"""The page of two runs, from rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.audit.diff import CellPair, RunComparison
from bench.base.rows import Results
from bench.evidence.finished_run import FinishedRun
from bench.evidence.folder import RunFolder
from leaderboard.site.diff_page import diff_page
from tests.leaderboard.tables.test_cells import row
from tests.leaderboard.tables.test_verdicts import REFERENCE, seed, verdict


def run(name: str, verdicts: list[Any]) -> FinishedRun:
    results = Results([], [], verdicts)
    return FinishedRun(RunFolder(Path(name)), None, results, {})  # type: ignore[arg-type]


def test_a_changed_verdict_comes_first_with_both_reasons() -> None:
    before = [REFERENCE, verdict("same"), verdict("moved", why="it held")]
    fell = verdict("moved", verdict="broken", why="it fell", seeds=[seed(worst_case=0.1)])
    page = diff_page(run("a", before), run("b", [REFERENCE, verdict("same"), fell]),
                     RunComparison([], [], []))  # fmt: skip
    assert page.index('data-name="moved') < page.index('data-name="same')
    assert "it held. → Rule 4: it fell." in page
    assert "−50" in page
    assert "None: every number of every pair is the same." in page


def test_a_verdict_in_one_run_alone_says_so() -> None:
    page = diff_page(run("a", [REFERENCE, verdict("old")]), run("b", [REFERENCE]),
                     RunComparison([], [], []))  # fmt: skip
    assert "<td>not there</td>" in page


def test_a_change_that_nothing_explains_is_a_failure() -> None:
    first, second = row("<b>", 0.5), row("<b>", 0.25)
    numbers: dict[str, Any] = {"success_rate": (0.5, 0.25)}
    silent = CellPair(first, second, numbers, {}, {})
    told = CellPair(first, second, numbers, {"document.eps": (0.1, None)}, {})
    page = diff_page(run("a", []), run("b", []), RunComparison([silent, told], [first], []))
    assert "1 cells changed though nothing recorded did" in page
    assert "nothing recorded</span>" in page
    assert "<code>document.eps</code>: 0.1 → –" in page
    assert "−25.0" in page
    assert "&lt;b&gt; under jsma" in page
    assert "<b>" not in page.partition("<main")[2]
    assert "Only in a" in page
