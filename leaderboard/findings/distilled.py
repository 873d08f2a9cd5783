"""Knowledge distillation: a smaller student, and what becomes of robustness and cost.

Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
"""

from __future__ import annotations

import pandas as pd

from bench.types import Results
from leaderboard.findings.finding import Finding, Group, groups, listed, shares
from leaderboard.findings.students import known, place
from leaderboard.tables import UNDEFINED, Row

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
    return Finding(
        "What a smaller student keeps",
        (
            "; ".join(_size(results, pair) for pair in taught) + ".",
            "Of what stands under attack it keeps: "
            + "; ".join(
                f"{_taught(pair)}, {listed([_kept(at) for at in known(pair)])}" for pair in taught
            )
            + ".",
        ),
        [("Student beside teacher, one value a seed.", table(results, taught))],
        (),
        ("Inference and training time: cost.md, for seconds do not repeat.",),
    )


def _kept(at: Row) -> str:
    mean = {side: [seed[side] for seed in at["seeds"]] for side in ("first", "second")}
    return f"{shares(mean['first'])} against {shares(mean['second'])} at {place(at)}"


def _taught(pair: Row) -> str:
    return f"taught by {pair['second']['defense']}"


def _size(results: Results, pair: Row) -> str:
    student, teacher = (_group(results, pair[who]) for who in ("first", "second"))
    small, large = (group.mean("parameters") if group else None for group in (student, teacher))
    ratio = f"{small / large:.2f}" if small and large else UNDEFINED
    right = [shares(g.values("accuracy")) if g else UNDEFINED for g in (student, teacher)]
    return (
        f"With {ratio} times the parameters, the student {_taught(pair)} classifies {right[0]} "
        f"where its teacher has {right[1]}"
    )


def _group(results: Results, defense: Row) -> Group | None:
    found = [
        row
        for row in results.models
        if {key: row[key] for key in ("defense", "defense_params")} == defense
    ]
    return next(iter(groups(found)), None)


def table(results: Results, taught: list[Row]) -> pd.DataFrame:
    """Return accuracy, parameters and worst cases of each student and its teacher."""
    lines = []
    for pair in taught:
        for who in ("second", "first"):
            group = _group(results, pair[who])
            line = {
                "defense": pair[who]["defense"] if who == "second" else f"student, {_taught(pair)}",
                "parameters": UNDEFINED
                if group is None or not group.mean("parameters")
                else f"{group.mean('parameters'):.0f}",
                "accuracy": shares(group.values("accuracy")) if group else UNDEFINED,
            }
            for at in known(pair):
                line[place(at)] = shares(seed[who] for seed in at["seeds"])
            lines.append(line)
    return pd.DataFrame(lines).fillna(UNDEFINED)
