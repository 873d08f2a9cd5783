"""Knowledge distillation: a smaller student, and what becomes of robustness and cost.

Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.base.rows import Results
from leaderboard.findings.finding import Finding, Group, groups, told
from leaderboard.findings.students import by_seed, known, named, place
from leaderboard.tables.cells import Row
from leaderboard.tables.numbers import UNDEFINED, fixed, ratio, shares

STUDENT = "knowledge_distillation"


def smaller(results: Results) -> Finding | None:
    """Tell what a smaller student keeps of its teacher's accuracy and robustness."""
    taught = [
        pair
        for pair in results.pairs
        if pair["why"] == "taught" and pair["first"]["defense"] == STUDENT and known(pair)
    ]
    if not taught:
        return None
    students = [
        {**_size(results, pair), "name": name, "kept": [_kept(pair, at) for at in known(pair)]}
        for pair, name in zip(taught, _taught(taught), strict=True)
    ]
    caption = "Student beside teacher, one value a seed."
    return told("smaller", [(caption, table(results, taught))], students=students)


def _kept(pair: Row, at: Row) -> str:
    first, second = (shares(by_seed(pair, at, side)) for side in ("first", "second"))
    return f"{first} against {second} at {place(at)}"


def _taught(pairs: Sequence[Row]) -> list[str]:
    """Return how to call the student of each pair."""
    return [f"taught by {name}" for name in named([pair["first"] for pair in pairs])]


def _size(results: Results, pair: Row) -> dict[str, object]:
    """Return the student's parameters as a multiple of its teacher's, and accuracy of both."""
    student, teacher = (_group(results, pair[who]) for who in ("first", "second"))
    small, large = (group.mean("parameters") if group else None for group in (student, teacher))
    right = [shares(g.by_seed("accuracy")) if g else UNDEFINED for g in (student, teacher)]
    return {"size": ratio(small, large) if small else UNDEFINED, "right": right}


def _group(results: Results, defense: Row) -> Group | None:
    found = [
        row
        for row in results.models
        if {key: row[key] for key in ("defense", "defense_params")} == defense
    ]
    return next(iter(groups(found)), None)


def table(results: Results, taught: Sequence[Row]) -> pd.DataFrame:
    """Return accuracy, parameters and worst cases of each student and its teacher."""
    lines = []
    for pair, name in zip(taught, _taught(taught), strict=True):
        for who in ("second", "first"):
            group = _group(results, pair[who])
            line = {
                "defense": pair[who]["defense"] if who == "second" else f"student, {name}",
                "parameters": fixed(group.mean("parameters") if group else None, 0),
                "accuracy": shares(group.by_seed("accuracy")) if group else UNDEFINED,
            }
            for at in known(pair):
                line[place(at)] = shares(by_seed(pair, at, who))
            lines.append(line)
    return pd.DataFrame(lines).fillna(UNDEFINED)
