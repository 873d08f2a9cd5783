"""Adversarial training lowers the logits, defensive distillation raises them.

Seguin et al. 2021, arXiv 2108.12001, on the first; Carlini and Wagner 2016, arXiv 1607.04311, on
the second.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bench.base.rows import Results
from bench.base.types import ThreatModel
from bench.measure.logits import Array
from leaderboard.figures.material import Material
from leaderboard.figures.style import STYLES, WIDTH, legend, new_grid, styled
from leaderboard.findings.finding import (
    TRAINED,
    Finding,
    Group,
    apart,
    groups,
    told,
)
from leaderboard.tables.cells import Row
from leaderboard.tables.numbers import each, given, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {"max_logit": "max logit", "logit_gap": "logit gap"}
MEASURED = {**SIZES, "confidence": "top probability", "entropy": "entropy"}
SPANNED = "means over images and seeds, with brackets that span the 95 % intervals of all seeds"
FIGURE = "logits-distributions"


def logits(results: Results) -> Finding | None:
    """Tell how large the logits of each defense are, on clean images and under attack."""
    found = [group for group in groups(results.models) if group.values("max_logit")]
    plain = next((g for g in found if g.defense == "undefended"), None)
    robust = [g for g in found if g.defense in TRAINED]
    if plain is None or not robust:
        return None
    tables = [(f"On the clean sources: {SPANNED}.", size_table(results))]
    if attacked := attack_table(results):
        tables.append(attacked)
    distilled = sorted(
        (g for g in found if g.defense == "distillation"),
        key=lambda group: float(group.params["temperature"]),
    )
    grows = all(
        apart(low, high, key)
        for low, high in itertools.pairwise([plain, *distilled])
        for key in SIZES
    )
    return told(
        "logits",
        tables,
        (FIGURE,),
        plain=[f"{each(plain.by_seed(key))} ({name})" for key, name in SIZES.items()],
        robust=[
            {
                "name": short(g),
                "sizes": [f"the mean {n} is {each(g.by_seed(key))}" for key, n in SIZES.items()],
                "sides": _sides(plain, g),
            }
            for g in robust
        ],
        steps=[
            f"{each(g.by_seed('max_logit'))} at T = {given(g.params['temperature'])}"
            for g in distilled
        ],
        grows=grows,
        lowers=all(apart(g, plain, key) for g in robust for key in SIZES),
    )


def _sides(plain: Group, group: Group) -> dict[str, str]:
    """Return on which side of ``plain`` max logit and gap of ``group`` are, if on one."""
    return {
        name: "lower" if apart(group, plain, key) else "higher" if apart(plain, group, key) else ""
        for key, name in SIZES.items()
    }


def size_table(results: Results) -> pd.DataFrame:
    """Return max logit, gap, top probability and entropy of the clean sources by defense."""
    clean = [row for row in results.logits if row["cell"] is None]
    return pd.DataFrame(
        [
            {"defense": _counted(group, results)}
            | {name: group.spanned(key) for key, name in MEASURED.items()}
            for group in groups(clean)
        ]
    )


def _counted(group: Group, results: Results) -> str:
    """Return the label of a group, with how many seeds of the run it has where it lacks some."""
    seeds = {row["seed"] for row in results.models}
    known, every = len(group.rows), max(len(seeds), len(group.rows))
    return group.label if known == every else f"{group.label} ({known} of {every} seeds)"


def attack_table(results: Results) -> tuple[str, pd.DataFrame] | None:
    """Return the same before and after PGD at its largest budget, or else another attack."""
    rows = [
        row
        for row in results.logits
        if row["cell"] is not None and row["threat"]["norm"] != "none" and row["samples"]
    ]
    if not rows:
        return None
    attack = min(rows, key=_strength)
    names = ("attack", "attack_params")
    same = [row for row in rows if all(row[name] == attack[name] for name in names)]
    lines = []
    for group in groups(same):
        line = {"defense": _counted(group, results)}
        for key, name in MEASURED.items():
            line[name] = f"{number(group.mean(f'{key}_before'))} → {group.spanned(key)}"
        line["τ"] = group.spanned("order_tau", 2)
        lines.append(line)
    threat = ThreatModel(**attack["threat"])
    caption = (
        f"Correctly classified sources before → after {attack['attack']}, {threat}: {SPANNED}."
    )
    return caption, pd.DataFrame(lines)


def _strength(row: Row) -> tuple[bool, bool, bool, float]:
    """Sort PGD on log-odds first, at the largest budget that is not the whole box."""
    budget = row["threat"]["budget"] or 0.0
    output = row["attack_params"].get("output")
    return row["attack"] != "pgd", budget >= 1, output != "log_odds", -budget


@styled
def draw_logits(results: Results, material: Material) -> dict[str, Figure]:
    """Draw the distributions of max logit and gap over the test images of the first seed.

    A student has the colour of its teacher, and a hollow marker.
    """
    seed = min((row["seed"] for row in results.models), default=0)
    rows = [
        row for row in results.models if row["seed"] == seed and row.get("max_logit") is not None
    ]
    found = [group for group in groups(rows) if drawn(group)]
    if not any(group.defense in TRAINED for group in found):
        return {}
    taught = [group for group in found if "teacher" in group.params]
    styles = dict(zip((g.label for g in found if g not in taught), STYLES, strict=False))
    own = {_table(group): styles[group.label] for group in found if group.label in styles}
    figure, axes = new_grid(1, 2, 2 * WIDTH)
    for place, (key, name) in zip(axes, SIZES.items(), strict=True):
        for group in found:
            style = own.get(_plain(group.params.get("teacher")), styles.get(group.label))
            if style is None:
                continue  # more models than a figure can tell apart, or another teacher
            values = material.test_rows(group.rows[0]["id"])[key].to_numpy(float)
            x, y = distribution(values)
            face = "white" if group in taught else style.color
            place.plot(x, y, color=style.color, linestyle=":" if group in taught else style.line,
                       label=short(group), marker=style.marker, markevery=0.25, markersize=3.5,
                       markerfacecolor=face)  # fmt: skip
        place.set_xscale("log")
        place.xaxis.set_minor_formatter("")  # within a decade or two they would overprint
        place.set_xlabel(f"{name} at T = 1")
        place.set_ylabel("test images up to here, %")
    legend(figure, 4)
    return {FIGURE: figure}


def _table(group: Group) -> str:
    """Return how a student's parameters name the group as its teacher."""
    return _plain({"name": group.defense, **group.params})


def _plain(table: object) -> str:
    return json.dumps(table, sort_keys=True)


def drawn(group: Group) -> bool:
    """Return whether a defense is in the figure: of the students, those that keep everything."""
    return (
        group.defense not in ("twin", "knowledge_distillation")
        and group.params.get("keep", "all") == "all"
    )


def short(group: Group) -> str:
    """Return a label that fits a legend or a sentence."""
    if group.defense == "distillation":
        return f"distilled, T = {given(group.params['temperature'])}"
    if group.defense == "adversarial_training":
        return f"{group.params['method'].upper()} training, ε = {given(group.params['eps'])}"
    if "teacher" in group.params:
        return f"student of {group.params['teacher']['name'].replace('_', ' ')}"
    return group.defense.replace("_", " ")


def distribution(values: Array) -> tuple[Array, Array]:
    """Return the empirical distribution of ``values``: sorted, and the share up to each, in %."""
    kept = np.sort(values[np.isfinite(values)])
    return kept, 100 * np.arange(1, len(kept) + 1) / max(len(kept), 1)
