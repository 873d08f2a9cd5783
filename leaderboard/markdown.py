"""``leaderboard.md``: pandas and tabulate make the tables, Jinja2 sets the page."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.text import one_line
from bench.types import Results
from leaderboard.autopsy_page import sections
from leaderboard.tables import (
    extremes,
    labels,
    model_table,
    percent,
    robustness_table,
    success_table,
    threat_tables,
    troubles,
)
from leaderboard.verdicts import (
    MEANING,
    budget_table,
    raised,
    reasons,
    verdict_table,
    verdict_tables,
)

# An underscore inside a word is no markup, and names are full of them.
SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~]|(?<!\w)_|_(?!\w))")

NUMBER = r"[-−]?[\d.]+(?:e[-−]\d+)?"
INTERVAL = re.compile(rf"\\\[({NUMBER}, {NUMBER})\\\]")


def escape(text: str) -> str:
    """Return ``text`` as one line of plain markdown: no markup, no HTML, no table cell break."""
    return SPECIAL.sub(r"\\\1", one_line(text))


def table(frame: pd.DataFrame) -> str:
    """Return ``frame`` as a markdown table with its text escaped."""
    plain = frame.map(lambda value: _cell(str(value))).rename(
        columns=lambda name: escape(str(name))
    )
    aligned = ["left", *["right"] * (len(plain.columns) - 1)]
    return str(plain.to_markdown(index=False, colalign=aligned, disable_numparse=True))


def _cell(text: str) -> str:
    # The brackets of an interval are harmless and read better bare.
    return INTERVAL.sub(r"[\1]", escape(text))


def page(template: str, **values: Any) -> str:
    """Return the page that ``template`` makes of ``values``."""
    jinja = Environment(
        loader=PackageLoader("leaderboard"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (the page is markdown: every value passes through escape)
    )
    jinja.filters.update(escape=escape, percent=percent, table=table)
    return jinja.get_template(template).render(**values)


def render(results: Results, environment: dict[str, Any]) -> str:
    """Return the leaderboard page; ``environment`` as ``environment.json`` holds it."""
    rows = results.cells
    names = list(zip(labels(rows, "defense"), labels(rows, "attack"), strict=True))
    return page(
        "leaderboard.md.j2",
        rows=rows,
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
