"""What is said in the terminal: text and grids, plain, at most 78 columns where they can be."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from tabulate import tabulate

from bench.base.text import one_line, plain

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 78

NARROWEST = 8
"""No column is squeezed below it."""


def say(text: str, err: bool = False, **style: Any) -> None:
    """Print ``text`` plain: names and messages come from plugins and matrices.

    With NO_COLOR set there is no style (https://no-color.org).
    """
    if style and not os.environ.get("NO_COLOR"):
        typer.secho(plain(text), err=err, **style)
    else:
        typer.echo(plain(text), err=err)  # secho would end even unstyled text with an escape


def paragraph(text: str, indent: str = "  ", **style: Any) -> None:
    """Print ``text`` in lines of at most ``WIDTH``, all but the first indented."""
    say(textwrap.fill(one_line(text), WIDTH, subsequent_indent=indent), **style)


def grid(frame: pd.DataFrame, width: int | None = None) -> str:
    """Return ``frame`` as a plain table, text left and figures right.

    With ``width`` the widest columns are wrapped until each line has at most so many letters.
    """
    rows = [[one_line(str(value)) for value in line] for line in frame.to_numpy().tolist()]
    headers = [one_line(str(name)) for name in frame.columns]
    widest = None if width is None else _widths([headers, *rows], width)
    text: str = tabulate(
        rows,
        headers=headers,
        tablefmt="simple",
        colalign=["left", *["right"] * (len(headers) - 1)] if rows else None,
        disable_numparse=True,
        maxcolwidths=widest if rows else None,
        maxheadercolwidths=widest,
    )
    return "\n".join(line.rstrip() for line in text.splitlines())


def _widths(rows: list[list[str]], width: int) -> list[int]:
    # tabulate leaves two blanks more in a column that is no wider than its header.
    headers, *lines = rows
    found = [max(len(header) + 2, *(len(row[place]) for row in lines), 1)
             for place, header in enumerate(headers)]  # fmt: skip
    # Two blanks stand between columns.
    while sum(found) + 2 * (len(found) - 1) > width and max(found) > NARROWEST:
        found[found.index(max(found))] -= 1
    return found


def relative(folder: Path) -> Path:
    """Return ``folder`` as seen from here, where it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
