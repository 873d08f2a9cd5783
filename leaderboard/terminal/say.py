"""What is said in the terminal: text and grids, plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import typer
from tabulate import tabulate

from bench.base.text import one_line, plain


def say(text: str, **style: Any) -> None:
    """Print ``text`` plain: names and messages come from plugins and matrices."""
    typer.secho(plain(text), **style)


def grid(frame: pd.DataFrame) -> str:
    """Return ``frame`` as a plain table, text left and figures right."""
    aligned = ["left", *["right"] * (len(frame.columns) - 1)]
    text: str = tabulate(
        frame.astype(str).map(one_line).values.tolist(),
        headers=[one_line(str(name)) for name in frame.columns],
        tablefmt="simple",
        colalign=aligned,
        disable_numparse=True,
    )
    return text


def relative(folder: Path) -> Path:
    """Return ``folder`` as seen from here, where it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
