"""``index.html`` over all published runs: a line a run, and every verdict beside every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.base.rows import Results
from leaderboard.site.document import document
from leaderboard.site.verdicts import Line, headline_lines
from leaderboard.tables.verdicts import MEANING, verdict_tables


@dataclass(frozen=True)
class RunVerdict:
    """One verdict of a run at its headline budget."""

    run: str
    data: str
    norm: str
    at: str
    name: str
    family: str
    line: Line


def index_page(runs: Sequence[tuple[Mapping[str, Any], Results]]) -> str:
    """Return the page; of each run its line as ``README.md`` has it, and its rows."""
    return document(
        "index.html.j2",
        title="Published runs",
        runs=[line for line, _ in runs],
        verdicts=[one for line, results in runs for one in _verdicts(line, results)],
        meaning=MEANING.replace("*", ""),
    )


def _verdicts(line: Mapping[str, Any], results: Results) -> list[RunVerdict]:
    return [
        RunVerdict(
            run=line["name"],
            data=table.dataset,
            norm=table.norm_name,
            at=table.at(row),
            name=name,
            family=row["defense"],
            line=told,
        )
        for table in verdict_tables(results.verdicts)
        for row, name, told in headline_lines(table)
    ]
