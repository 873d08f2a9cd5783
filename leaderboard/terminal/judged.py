"""A verdict on models that were handed over: in words, and for a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.base.rows import SeedRow, VerdictRow, defense_of, warns
from leaderboard.figures.curves import curves
from leaderboard.tables.numbers import UNDEFINED, given, interval, percent, points
from leaderboard.terminal.say import WIDTH, grid, paragraph, relative, say

NORMS = {"l0": "L0", "l2": "L2", "linf": "L∞"}


def told(
    row: VerdictRow, rows: Sequence[VerdictRow], folder: Path, notes: Sequence[str] = ()
) -> str:
    """Return a verdict as text: what it is, why, one line a model, where the evidence lies."""
    del rows  # the curve is for a notebook
    lines = [headline(row), str(row["why"]), "", grid(table(row), WIDTH), ""]
    lines += [f"note: {note}" for note in notes]
    return "\n".join([*lines, *_evidence(row, folder)])


def headline(row: VerdictRow) -> str:
    """Return the verdict and what it is about."""
    norm = NORMS[row["threat"]["norm"]]
    budget = f"{row['at']} features" if norm == "L0" else given(row["at"])
    sources = row["seeds"][0]["sources"] if row["seeds"] else 0
    return f"{row['verdict'].upper()}: {norm} {budget} on {row['dataset']}, {sources} sources"


def table(row: VerdictRow) -> pd.DataFrame:
    """Return one line a model: what the naive attack and all attacks leave, Δ, what broke it."""
    return pd.DataFrame([_line(seed) for seed in row["seeds"]])


def _line(seed: SeedRow) -> dict[str, str]:
    warned = dict.fromkeys(flag["id"] for flag in seed["flags"] if warns(flag))
    return {
        "model": str(seed["seed"]),
        "naive": percent(seed["naive"], 0),
        "worst case": interval(seed["worst_case"], seed["worst_case_ci"], 0),
        "reference": percent(seed["undefended"], 0),
        "Δ": points(seed["delta"], seed["delta_ci"], 0),
        "broken by": seed["broken_by"][0]["attack"] if seed["broken_by"] else UNDEFINED,
        "flags": ", ".join(warned) or UNDEFINED,
    }


def _evidence(row: VerdictRow, folder: Path) -> list[str]:
    shown = relative(folder)
    judged = defense_of(row)
    # Who reads this made the run: the code that it names is theirs.
    builder = judged["params"].get("builder") or ""
    vouched = " --trust" if ".py:" in builder else ""
    if judged["name"] == "live":
        vouched = " --unpickle"
    return [
        f"evidence in {shown}: judge.toml, leaderboard.md, results.json, cells/",
        f"made again by: retort verify {shown}{vouched}",
    ]


def drawn(
    row: VerdictRow, rows: Sequence[VerdictRow], folder: Path, notes: Sequence[str] = ()
) -> str:
    """Return a verdict as HTML: the table, the reason, the curve."""
    escaped = [html.escape(line) for line in (*notes, *_evidence(row, folder))]
    parts = [
        f"<p><b>{html.escape(headline(row))}</b></p>",
        f"<p>{html.escape(str(row['why']))}</p>",
        table(row).to_html(index=False, border=0),
        *(_image(figure) for figure in curves(rows).values()),
        f"<p>{'<br>'.join(escaped)}</p>",
    ]
    return "\n".join(parts)


def _image(figure: object) -> str:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="accuracy left against the budget" src="data:image/png;base64,{content}">'


def show_judged(verdict: object) -> None:
    """Print a verdict as its object tells it."""
    say("")
    say(str(verdict))


def show_cost(lines: pd.DataFrame, told: Sequence[str]) -> None:
    """Print what a verdict will take: a line an attack, then sentences."""
    say(grid(lines, WIDTH))
    for line in told:
        paragraph(line)
    say("")
