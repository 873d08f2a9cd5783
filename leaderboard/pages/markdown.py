"""Markdown: tables, escapes, pages from templates."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.base.text import one_line
from leaderboard.tables.autopsy import BENEATH, HIDDEN
from leaderboard.tables.numbers import percent

# An underscore inside a word is no markup, and names are full of them.
SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~&$]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.)")

NUMBER = r"[-−]?[\d.]+(?:e[-−]\d+)?"

INTERVAL = re.compile(rf"\\\[({NUMBER}, {NUMBER})\\\]")


def escape(text: str) -> str:
    """Return ``text`` as one line of plain markdown: no markup, no HTML, no table cell break."""
    return SPECIAL.sub(r"\\\1", one_line(text))


def table(frame: pd.DataFrame) -> str:
    """Return ``frame`` as a markdown table with its text escaped."""
    plain = frame.map(lambda value: cell(str(value))).rename(columns=lambda name: escape(str(name)))
    aligned = ["left", *["right"] * (len(plain.columns) - 1)]
    return str(plain.to_markdown(index=False, colalign=aligned, disable_numparse=True))


def cell(text: str) -> str:
    """Return ``text`` as it stands in a cell of a table."""
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
    jinja.filters.update(cell=cell, escape=escape, percent=percent, table=table)
    jinja.globals.update(hidden=f"{100 * HIDDEN:g} points", beneath=f"{100 * BENEATH:g} points")
    return jinja.get_template(template).render(**values)
