"""``leaderboard.md``: pandas and tabulate make the tables, Jinja2 sets the page.

``index.html`` beside it is made in ``leaderboard.site``.
"""

from __future__ import annotations

from typing import Any

from bench.base.rows import Results
from leaderboard.pages.autopsy import sections
from leaderboard.pages.markdown import page
from leaderboard.site.run_page import run_page
from leaderboard.tables.cells import (
    extremes,
    labels,
    model_table,
    robustness_table,
    success_table,
    threat_tables,
    troubles,
)
from leaderboard.tables.verdicts import (
    MEANING,
    budget_table,
    raised,
    reasons,
    verdict_table,
    verdict_tables,
)

HANDED = ("checkpoint", "live")
"""Defenses that were trained elsewhere: the run's network and recipe are not theirs."""


def pages(results: Results, environment: dict[str, Any]) -> dict[str, str]:
    """Return the pages of every run by file, made from its rows and ``environment`` alone."""
    return {
        "leaderboard.md": render(results, environment),
        "index.html": run_page(results, environment),
    }


def render(results: Results, environment: dict[str, Any]) -> str:
    """Return the leaderboard page; ``environment`` as ``environment.json`` holds it."""
    rows = results.cells
    names = list(zip(labels(rows, "defense"), labels(rows, "attack"), strict=True))
    return page(
        "leaderboard.md.j2",
        rows=rows,
        trained=any(row["defense"] not in HANDED for row in results.models),
        environment=environment,
        groups=threat_tables(rows),
        named=dict(zip((row["id"] for row in rows), names, strict=True)),
        extremes=extremes,
        success_table=success_table,
        robustness_table=robustness_table,
        model_table=model_table,
        troubles=troubles(rows),
        autopsy=sections(results),
        verdicts=verdict_tables(results.verdicts),
        meaning=MEANING,
        verdict_table=verdict_table,
        budget_table=budget_table,
        reasons=reasons,
        raised=raised(results.verdicts),
    )
