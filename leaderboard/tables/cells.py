"""Rows of ``results.json`` as tables: one a threat model, defenses down, attacks across."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from bench.base.rows import MODEL, CellRow
from bench.base.types import Document, ThreatModel
from bench.evidence.cells import waived
from leaderboard.tables.numbers import UNDEFINED, interval, number, percent, points

Row = Mapping[str, Any]
"""A row of any file, for what is asked of rows of several kinds or by a computed key."""

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class ThreatTable:
    """All rows of one threat model on one data set; nothing is ranked across two of them."""

    dataset: str
    threat: ThreatModel
    rows: tuple[CellRow, ...]

    @property
    def title(self) -> str:
        """The data set and the threat model in words."""
        return f"{self.dataset}: {self.threat}"


def threat_tables(rows: Iterable[CellRow]) -> list[ThreatTable]:
    """Group ``rows`` by data set and threat model, in order of first appearance.

    Without closers: each is given other sources, and what they did counts in the worst case.
    """
    groups: dict[tuple[str, ThreatModel], list[CellRow]] = {}
    for row in rows:
        if row.get("round", 0):
            continue
        groups.setdefault((row["dataset"], ThreatModel(**row["threat"])), []).append(row)
    return [ThreatTable(name, threat, tuple(group)) for (name, threat), group in groups.items()]


def labels(rows: Sequence[Row], kind: str) -> list[str]:
    """Name the ``defense`` or ``attack`` of each row by what tells it from its namesakes."""
    named = [(row[kind], _flat(row[f"{kind}_params"])) for row in rows]
    values: dict[tuple[str, str], set[str]] = {}
    for name, params in named:
        for key, value in params.items():
            values.setdefault((name, key), set()).add(repr(value))
    return [
        " ".join(
            [name, *(f"{k}={_text(v)}" for k, v in params.items() if len(values[name, k]) > 1)]
        )
        for name, params in named
    ]


def _flat(params: Row) -> Document:
    """Return ``params`` with the entries of its tables beside its own.

    Those of ``params`` under their own names; of another table, a plugin's, under the table's:
    ``source`` for its name, which comes first, ``source.temperature`` for a parameter.
    """
    flat: Document = {}
    for key, value in params.items():
        if not isinstance(value, dict):
            flat[key] = value
        elif key == "params":
            flat.update(_flat(value))
        else:
            name = {"name": value["name"]} if "name" in value else {}
            inner = _flat({**name, **value})
            flat.update({key if k == "name" else f"{key}.{k}": v for k, v in inner.items()})
    return flat


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, str):
        return value.lstrip("./") if value.startswith("../") else value  # a file of a matrix's own
    return f"{value:g}" if isinstance(value, float) else str(value)


def success(row: CellRow, brief: bool = False) -> str:
    """Return a cell's success rate with interval and fraction, or how it ended."""
    if row["status"] != "done":
        return str(row["status"]).upper()
    if brief or row["success_rate"] is None:
        return percent(row["success_rate"])
    rate = interval(row["success_rate"], row["success_ci"])
    return f"{rate} {row['successes']}/{row['attempts']}"


def ordered(rows: Sequence[R]) -> list[R]:
    """Sort rows so that a sweep of numbers ascends, keeping the order of names and of the rest."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row["defense"], len(first))

    def position(row: R) -> tuple[Any, ...]:
        numbers = [v for v in row["defense_params"].values() if isinstance(v, int | float)]
        return (first[row["defense"]], numbers, row["seed"])

    return sorted(rows, key=position)


def success_table(table: ThreatTable, brief: bool = False) -> pd.DataFrame:
    """Return success rates: defenses down, attacks across, the extremes of each column marked.

    ``brief`` leaves the intervals out, for a terminal.
    """
    frame = _frame(ordered(table.rows))
    marks = {name: _marks(group["row"]) for name, group in frame.groupby("attack", sort=False)}
    lines = []
    for defense, group in frame.groupby("defense", sort=False):
        model: CellRow = group["row"].iloc[0]
        line = {
            "defense": str(defense),
            "accuracy": percent(model["accuracy"]),
            "confidence": percent(model["confidence"]),
        }
        for attack, row in zip(group["attack"], group["row"], strict=True):
            line[attack] = success(row, brief) + marks[attack].get(row["success_rate"], "")
        if table.threat.budget is not None:
            bounds = None if brief else model["worst_case_ci"]
            line["worst case"] = interval(model["worst_case"], bounds)
        lines.append(line)
    return pd.DataFrame(lines).fillna(UNDEFINED)


def _marks(rows: Iterable[CellRow]) -> dict[float, str]:
    rates = {row["success_rate"] for row in rows if row["success_rate"] is not None}
    return {min(rates): " ▼", max(rates): " ▲"} if len(rates) > 1 else {}


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    seeds = {row["seed"] for row in rows}
    names = labels(rows, "defense")
    if len(seeds) > 1:
        names = [f"{name}, seed {row['seed']}" for name, row in zip(names, rows, strict=True)]
    return pd.DataFrame(
        {
            "defense": names,
            "seed": [row["seed"] for row in rows],
            "attack": labels(rows, "attack"),
            "row": list(rows),
        }
    )


def robustness_table(table: ThreatTable) -> pd.DataFrame:
    """Return feature-perturbation robustness: defenses down, attacks across."""
    rows = ordered([row for row in table.rows if row["rho_adv"] is not None])
    if not rows:
        return pd.DataFrame()
    frame = _frame(rows)
    lines: dict[str, dict[str, str]] = {}
    for name, attack, row in zip(frame["defense"], frame["attack"], frame["row"], strict=True):
        line = lines.setdefault(name, {"defense": name})
        line[attack] = f"{percent(row['rho_adv'])} ({percent(row['rho_censored'])} censored)"
    return pd.DataFrame(list(lines.values()))


def model_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return what was measured on each model without an attack."""
    frame = _frame(ordered(rows)).drop_duplicates("defense")
    return pd.DataFrame(
        [
            {
                "defense": name,
                "accuracy": interval(row["accuracy"], row["accuracy_ci"]),
                "confidence": percent(row["confidence"]),
                "max logit": number(row["max_logit"], 4),
                "logit gap": number(row["logit_gap"], 4),
            }
            for name, row in zip(frame["defense"], frame["row"], strict=True)
        ]
    )


def extremes(table: ThreatTable) -> tuple[CellRow, CellRow] | None:
    """Return the rows of lowest and of highest success rate, or None where none is defined."""
    done = [row for row in table.rows if row["success_rate"] is not None]
    if not done:
        return None
    return min(done, key=_success), max(done, key=_success)


def _success(row: CellRow) -> float:
    return float(row["success_rate"] or 0)


def troubles(rows: Iterable[CellRow]) -> list[CellRow]:
    """Return the rows that are not done or carry a flag."""
    return [row for row in rows if (row["status"] != "done" and not waived(row)) or row["flags"]]


def paired(row: CellRow | None) -> tuple[float, float, float] | None:
    """Return a cell's paired difference to the undefended network and its interval, or None."""
    found = None if row is None else row.get("paired")
    if not found or found["delta"] is None or found["ci"] is None:
        return None
    return found["delta"], *found["ci"]


def difference(found: tuple[float, float, float] | None) -> str:
    """Return a paired difference of rates as ``−3.1 points [−5.0, −1.2]``, or a dash."""
    return UNDEFINED if found is None else points(found[0], found[1:], unit=" points")


def defense_labels(rows: Sequence[Row]) -> list[str]:
    """Name the model of each row, with its seed where the rows have several."""
    names = labels(rows, "defense")
    if len({row["seed"] for row in rows}) < 2:
        return names
    return [f"{name}, seed {row['seed']}" for name, row in zip(names, rows, strict=True)]


def model_key(row: Row) -> str:
    """Return what a cell and its row of `models.json` share: which model they are about."""
    return repr([row.get(name) for name in MODEL])
