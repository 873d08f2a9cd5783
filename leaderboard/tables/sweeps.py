"""Rows as sweeps over the distillation temperature: what tables and figures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.base.rows import CellRow
from bench.plan.panel import REFERENCE
from leaderboard.tables.cells import Row

Bounds = Sequence[float] | None

PLAIN = REFERENCE.name

SWEPT = "distillation"


@dataclass(frozen=True)
class Point:
    """One value with its 95 % interval (None where there is none) at a temperature.

    ``temperature`` is None for a model that has none, as the undefended one.
    """

    temperature: float | None
    value: float
    bounds: Bounds
    seed: int


def temperature_of(row: Row) -> float | None:
    """Return the temperature a row's model was trained at, or None."""
    value = row["defense_params"].get("temperature")
    return None if value is None else float(value)


def sweep(rows: Iterable[Row], defense: str, value: str, bounds: str = "") -> list[Point]:
    """Return the known values of ``defense``'s rows by ascending temperature."""
    found = [
        Point(temperature_of(row), row[value], row.get(bounds), row["seed"])
        for row in rows
        if row["defense"] == defense and row.get(value) is not None
    ]
    return sorted(found, key=lambda point: (point.temperature or 0.0, point.seed))


def jsma_cells(cells: Iterable[CellRow], output: str) -> list[CellRow]:
    """Return the rows of plain JSMA on ``output`` as deployed: targeted, float32, logits whole."""
    return [
        row
        for row in cells
        if row["attack"] == "jsma"
        and row["attack_params"].get("saliency", "papernot") == "papernot"
        and row["attack_params"].get("targets", "all") == "all"
        and view_of(row) == (output, "float32", 1.0)
    ]


View = tuple[str, str, float]


def view_of(row: CellRow) -> View:
    """Return what an attack's row differentiates: output, precision, divisor of the logits."""
    params = row["attack_params"]
    temperature = float(params.get("temperature") or 1.0)
    return params["output"], params.get("precision") or "float32", temperature


OUTPUTS = {"probs": "probabilities", "logits": "logits", "log_odds": "log-odds"}
