"""``agreement.md``: each attack held against a baseline, attempt by attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.base.rows import CellRow
from leaderboard.pages.markdown import page, table
from leaderboard.tables.cells import labels, threat_tables
from leaderboard.tables.numbers import counted, fixed, interval, percent


def agreement(
    rows: Sequence[CellRow], environment: dict[str, Any], seconds: Mapping[str, float]
) -> str:
    """Return the page, one table a defense; ``seconds`` by cell id, as in ``timings.json``."""
    groups = [
        (f"{group.title}: {defense}", table(_compare(members, environment, seconds)))
        for group in threat_tables(rows)
        for defense, members in _by_defense(group.rows).items()
    ]
    return page("agreement.md.j2", environment=environment, groups=groups)


def _by_defense(rows: Sequence[CellRow]) -> dict[str, list[CellRow]]:
    found: dict[str, list[CellRow]] = {}
    for name, row in zip(labels(rows, "defense"), rows, strict=True):
        found.setdefault(name, []).append(row)
    return found


def _compare(
    rows: Sequence[CellRow], environment: dict[str, Any], seconds: Mapping[str, float]
) -> pd.DataFrame:
    lines = []
    for name, row in zip(labels(rows, "attack"), rows, strict=True):
        taken = seconds.get(row["id"])
        lines.append(
            {
                "attack": name,
                "success": interval(row["success_rate"], row["success_ci"])
                if row["status"] == "done"
                else row["status"].upper(),
                "features of successes": percent(row["features_success"]),
                "outcomes that differ": counted(row["outcomes_differ"], row["compared"]),
                "inputs that differ": counted(row["inputs_differ"], row["compared"]),
                "invalid outputs": _invalid(row),
                "seconds": fixed(taken, 2),
                "note": row["reason"] or note(row, environment),
            }
        )
    return pd.DataFrame(lines)


def _invalid(row: CellRow) -> str:
    found = [flag for flag in row["flags"] if flag["id"] == "invalid-output"]
    return f"{percent(found[0]['value'])}" if found else "0"


def note(row: CellRow, environment: dict[str, Any]) -> str:
    """Return the matrix file's remark on the attack of ``row``: that of the closest table."""
    tables = [attack for attack in environment["matrix"]["attack"] if _matches(attack, row)]
    return str(max(tables, key=len).get("note", "")) if tables else ""


def _matches(attack: Mapping[str, Any], row: CellRow) -> bool:
    """Return whether ``row`` belongs to the ``[[attack]]`` table ``attack`` of a matrix."""
    params = row["attack_params"]
    known = {**params, **(params.get("params") or {})}
    given = {key: value for key, value in attack.items() if key not in ("name", "note")}
    return attack["name"] == row["attack"] and all(
        known.get(key) in (value if isinstance(value, list) else [value])
        for key, value in given.items()
    )
