"""How sure a network becomes of noise, and which defense keeps it from it.

Nguyen, Yosinski, Clune 2015, arXiv 1412.1897.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from bench.base.rows import Results
from leaderboard.figures.material import Material
from leaderboard.figures.mosaic import Image, stored
from leaderboard.figures.style import WIDTH, new_grid, styled
from leaderboard.findings.finding import Finding, Group, groups, listed, told
from leaderboard.findings.logits import short
from leaderboard.tables.cells import Row, labels
from leaderboard.tables.numbers import UNDEFINED, given, shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTACK = "fooling"
PLAIN = "undefended"
FIGURE = "fooling-inputs"
OUTPUTS = {
    "probs": "the probability",
    "deployed": "the cross-entropy",
    "log_odds": "the log-odds",
    "margin": "the margin",
}


@dataclass(frozen=True)
class View:
    """One way of climbing, under every defense: the attack's parameters and its cells.

    Each row of ``groups`` is a cell with ``steps``, the median over its attempts, and ``top``, the
    mean of the largest probability at the end, from the logits.
    """

    label: str
    output: str
    restarts: int
    confidence: float
    groups: tuple[Group, ...]

    @property
    def plain(self) -> Group:
        """The undefended network."""
        return next(group for group in self.groups if group.defense == PLAIN)

    @property
    def words(self) -> str:
        """What was climbed, and from how many noises where it was more than one."""
        starts = f" from {self.restarts} noises" if self.restarts > 1 else ""
        return OUTPUTS[self.output] + starts

    def held_back(self) -> list[str]:
        """Name the defenses with fewer successes than the undefended network of each seed.

        Beyond the paired interval; a seed that was not paired shows nothing.
        """
        return [name(group) for group in self.groups if group.defense != PLAIN and _fewer(group)]


def _fewer(group: Group) -> bool:
    return all(row["paired"] is not None and row["paired"]["ci"][1] < 0 for row in group.rows)


def name(group: Group) -> str:
    """Return a defense in words that fit a list."""
    return short(group).replace(",", " at")


def views(results: Results) -> list[View]:
    """Return every way of climbing that the undefended network met, in the order of the run."""
    measured = {row["cell"]: row for row in results.logits if row["cell"] is not None}
    cells = [row for row in results.cells if row["attack"] == ATTACK]
    cells = [row for row in cells if row["success_rate"] is not None and row["id"] in measured]
    by_label: dict[str, list[Row]] = {}
    for label, row in zip(labels(cells, "attack"), cells, strict=True):
        at = measured[row["id"]]
        joined = {**row, "steps": at["iterations"], "top": at["confidence"]}
        by_label.setdefault(label.removeprefix(ATTACK).strip(), []).append(joined)
    found = []
    for label, rows in by_label.items():
        params = rows[0]["attack_params"]
        how = (str(params["output"]), int(params["restarts"]), float(params["confidence"]))
        if any(row["defense"] == PLAIN for row in rows):
            found.append(View(label or how[0], *how, tuple(groups(rows))))
    return found


def strongest(found: Sequence[View]) -> View:
    """Return the climb on log-odds from the most noises, or from the most where there is none."""
    return max(found, key=lambda view: (view.output == "log_odds", view.restarts))


def fooling(results: Results) -> Finding | None:
    """Tell how sure networks become of noise, and what keeps them from it."""
    found = views(results)
    if not found or all(len(view.groups) == 1 for view in found):
        return None
    best = strongest(found)
    goal = f"{given(100 * best.confidence)} %"
    tables = [
        (
            f"Attempts that end with {goal} or more for their target, by what is climbed.",
            table(found, lambda group: shares(group.values("success_rate"))),
        ),
        (
            "Steps of an attempt, the median; one that fails takes all it has.",
            table(found, _steps),
        ),
        (
            "The largest probability at the end, whichever class has it, the mean over attempts.",
            table(found, lambda group: shares(group.values("top"))),
        ),
    ]
    if any(group.mean("zero_gradient_share") for view in found for group in view.groups):
        zeros = table(found, lambda group: shares(group.values("zero_gradient_share")))
        tables.append(("Gradients that are exactly zero.", zeros))
    less = {view.label: view.held_back() for view in found}
    alike: dict[str, list[str]] = {}
    for view in found:
        alike.setdefault(listed(less[view.label]) or "no defense", []).append(view.words)
    still = less[best.label]
    once = [n for view in found if view.output == best.output for n in less[view.label]]
    anywhere = [n for view in found for n in less[view.label]]
    parts = {"masked": _only(anywhere, once), "unlucky": _only(once, still), "held": still}
    return told(
        "fooling",
        tables,
        (FIGURE,),
        best=best,
        goal=goal,
        steps=_steps(best.plain),
        slower=[
            f"{name(group)} ({_steps(group)})"
            for group in best.groups
            if group.defense != PLAIN and _slower(group, best.plain)
        ],
        alike=alike,
        output=OUTPUTS[best.output],
        parts={what: names for what, names in parts.items() if names},
    )


def _steps(group: Group) -> str:
    return " / ".join(map(given, group.values("steps"))) or UNDEFINED


def _slower(group: Group, plain: Group) -> bool:
    steps = {row["seed"]: row["steps"] for row in plain.rows}
    both = [(row["steps"], steps.get(row["seed"])) for row in group.rows]
    return all(mine is not None and other is not None and mine > other for mine, other in both)


def _only(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return [one for one in dict.fromkeys(names) if one not in others]


def table(found: Sequence[View], value: Callable[[Group], str]) -> pd.DataFrame:
    """Return a value of every defense (down) in every view (across)."""
    lines: dict[str, dict[str, str]] = {}
    for view in found:
        for group in view.groups:
            line = lines.setdefault(group.label, {"defense": group.label})
            line[view.label] = value(group)
    return pd.DataFrame(list(lines.values())).fillna(UNDEFINED)


@styled
def draw_fooling(results: Results, material: Material) -> dict[str, Figure]:
    """Draw a fooling input of every class, for the undefended network and for PGD training."""
    found = views(results)
    if not found or len(material.data.info.shape) != 3:
        return {}
    shown = [group for group in strongest(found).groups if _in_panel(group)]
    rows = {
        name(group): of_each_class(stored(group.rows[0], material.folder, material.data)[1])
        for group in shown
    }
    return {FIGURE: panel(rows, material.data.info.classes)}


def _in_panel(group: Group) -> bool:
    return group.defense == PLAIN or group.params.get("method") == "pgd"


def of_each_class(
    found: Mapping[tuple[int, int], tuple[Image, bool]],
) -> dict[int, tuple[Image, bool]]:
    """Return one input a target, with its success: a success where there is one.

    ``found``: (image, success) by source class and target, of which the source means nothing.
    """
    chosen: dict[int, tuple[Image, bool]] = {}
    for (_, target), (image, success) in sorted(found.items(), key=lambda item: item[0]):
        if target not in chosen or (success and not chosen[target][1]):
            chosen[target] = (image, success)
    return chosen


def panel(rows: Mapping[str, Mapping[int, tuple[Image, bool]]], classes: int) -> Figure:
    """Return the panel: networks down, targets across; ``×`` where the goal was not reached."""
    figure, axes = new_grid(len(rows), classes, 2 * WIDTH, 0.25 * WIDTH * len(rows))
    for place, axis in enumerate(axes):
        title, target = list(rows)[place // classes], place % classes
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        if target == 0:
            axis.set_ylabel(title.replace(" at ", "\nat "), fontsize=6)
        if target not in rows[title]:
            continue
        image, success = rows[title][target]
        shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{target}{'' if success else ' ×'}", fontsize=6)
    return figure
