"""``cost.md``: what a defense costs beside the undefended network, as its authors ask.

Papernot et al. 2016, arXiv 1511.04508: the architecture, accuracy and speed are to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd

from bench.base.rows import ModelRow
from bench.base.types import Document
from leaderboard.pages.markdown import page, table
from leaderboard.tables.cells import defense_labels, ordered
from leaderboard.tables.numbers import UNDEFINED, fixed, number, ratio
from leaderboard.tables.sweeps import PLAIN

MEASURABLE = 1.5
"""How far the largest ratio of a round may lie from the smallest: beyond, it tells nothing."""


def cost(models: Sequence[ModelRow], environment: dict[str, Any], costs: Document) -> str:
    """Return ``cost.md``: what each defense costs as a multiple of the undefended network.

    ``costs`` as ``costs.json`` holds them: they differ from run to run, so this page is no part of
    the results.
    """
    return page(
        "cost.md.j2",
        environment=environment,
        costs=table(cost_table(models, costs)),
        inference=costs["inference"],
        rounds=max((len(s) for s in costs["inference"].get("seconds", {}).values()), default=0),
        load=ranged_load([told["load"] for told in costs["training"].values()]),
        machines=sorted({told["device"] for told in costs["training"].values()}),
    )


def ranged_load(loads: Sequence[float | None]) -> str | None:
    """Return how many processes wanted each core during trainings, ``0.6 to 2.1``, or None."""
    known = sorted(load for load in loads if load is not None)
    if not known:
        return None
    ends = list(dict.fromkeys(fixed(end) for end in (known[0], known[-1])))
    return " to ".join(ends)


def cost_table(models: Sequence[ModelRow], costs: Document) -> pd.DataFrame:
    """Return parameters, inference time and training time, each with its ratio to undefended's.

    A student's training includes its teacher's.
    """
    rows = ordered(models)
    plain = {row["seed"]: row for row in rows if row["defense"] == PLAIN}
    turns, training = costs["inference"].get("seconds", {}), costs["training"]
    lines = []
    for name, row in zip(defense_labels(rows), rows, strict=True):
        base = plain.get(row["seed"])
        there = base["id"] if base is not None else ""
        size, least = row.get("parameters"), base.get("parameters") if base is not None else None
        spent = _training(row["id"], training)
        lines.append(
            {
                "defense": name,
                "parameters": _times(fixed(size, 0), size, least),
                "inference": inference(turns.get(row["id"]), turns.get(there)),
                "training": _times(_seconds(spent), spent, _training(there, training)),
            }
        )
    return pd.DataFrame(lines)


def inference(here: Sequence[float] | None, there: Sequence[float] | None) -> str:
    """Return the median of a model's rounds, and the ratio to another's of the same rounds.

    The brackets hold the smallest and the largest ratio of a round. Where 1 lies between them no
    difference was measured, and where they lie too far apart nothing was.
    """
    if not here:
        return UNDEFINED
    told = _seconds(median(here))
    if not there or here is there:
        return told
    ratios = sorted(mine / other for mine, other in zip(here, there, strict=True) if other)
    if not ratios or ratios[-1] > MEASURABLE * ratios[0]:
        return f"{told} (ratio not measurable here)"
    spread = f"[{fixed(ratios[0], 2)}, {fixed(ratios[-1], 2)}]"
    if ratios[0] <= 1 <= ratios[-1]:
        return f"{told} (no difference: {spread})"
    return f"{told} (× {fixed(median(ratios), 2)} {spread})"


def _training(fit: str, training: Document) -> float | None:
    """Return the seconds of a fit with those of the fits it needs; None where one is not known."""
    told = training.get(fit)
    if told is None:
        return None
    parts = [_work(told), *(_training(need, training) for need in told["needs"])]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _work(told: Document) -> float:
    """Return what a training took: of a processor its own seconds, for it is shared with others."""
    return float(told["seconds" if told["on"] == "accelerator" else "processor"])


def _seconds(value: float | None) -> str:
    return UNDEFINED if value is None else f"{number(value)} s"


def _times(told: str, value: float | None, base: float | None) -> str:
    return told if value is None or not base else f"{told} (× {ratio(value, base)})"
