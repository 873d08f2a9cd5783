"""``cost.md``: what a defense costs beside the undefended network, as its authors ask.

Papernot et al. 2016, arXiv 1511.04508: the architecture, accuracy and speed are to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.base.rows import ModelRow
from leaderboard.pages.markdown import page, table
from leaderboard.tables.cells import Row, defense_labels, ordered
from leaderboard.tables.numbers import UNDEFINED, fixed, number, ratio
from leaderboard.tables.sweeps import PLAIN, SWEPT, temperature_of


def cost(
    models: Sequence[ModelRow], environment: dict[str, Any], seconds: Mapping[str, float]
) -> str:
    """Return ``cost.md``: what each defense costs as a multiple of the undefended network.

    ``seconds`` as ``timings.json`` holds them: they differ from run to run, so this page is no
    part of the results.
    """
    return page("cost.md.j2", environment=environment, costs=table(cost_table(models, seconds)))


def cost_table(models: Sequence[ModelRow], seconds: Mapping[str, float]) -> pd.DataFrame:
    """Return parameters, inference time and training time, each with its ratio to undefended's.

    A student's training includes its teacher's, which must be a model of the run too.
    """
    rows = ordered(models)
    units = {"parameters": "", "inference of 1,000 images": " s", "training": " s"}
    spent = {row["id"]: _spent(row, rows, seconds) for row in rows}
    plain = {row["seed"]: row["id"] for row in rows if row["defense"] == PLAIN}
    lines = []
    for name, row in zip(defense_labels(rows), rows, strict=True):
        base = spent.get(plain.get(row["seed"], ""), {})
        mine = spent[row["id"]]
        told = {key: _times(mine[key], base.get(key), unit) for key, unit in units.items()}
        lines.append({"defense": name, **told})
    return pd.DataFrame(lines)


def _spent(
    row: ModelRow, rows: Sequence[ModelRow], seconds: Mapping[str, float]
) -> dict[str, float | None]:
    return {
        "parameters": row.get("parameters"),
        "inference of 1,000 images": seconds.get(f"inference:{row['id']}"),
        "training": _training(row, rows, seconds),
    }


def _training(
    row: ModelRow, rows: Sequence[ModelRow], seconds: Mapping[str, float]
) -> float | None:
    """Return the seconds of a model's training with its teacher's; None where one is not known."""
    own = seconds.get(f"training:{row['id']}")
    wanted = _teacher(row)
    if own is None or wanted is None:
        return own
    teachers = [
        _training(other, rows, seconds)
        for other in rows
        if (other["defense"], other["defense_params"], other["seed"]) == (*wanted, row["seed"])
    ]
    return own + teachers[0] if teachers and teachers[0] is not None else None


def _teacher(row: ModelRow) -> tuple[str, Row] | None:
    """Return the name and the parameters of the defense that taught a row's model."""
    if row["defense"] == SWEPT:
        return "temperature_only", {"temperature": temperature_of(row)}
    table = row["defense_params"].get("teacher")
    if table is None:
        return None
    return table["name"], {key: value for key, value in table.items() if key != "name"}


def _times(value: float | None, base: float | None, unit: str) -> str:
    if value is None:
        return UNDEFINED
    told = f"{number(value)}{unit}" if unit else fixed(value, 0)
    return told if not base else f"{told} (× {ratio(value, base)})"
