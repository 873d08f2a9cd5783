"""A linear model under the fast gradient method, beside deeper ones.

Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572: linear behaviour in many dimensions is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from bench.base.rows import Results
from leaderboard.figures.material import Material
from leaderboard.figures.style import PUBLISHED, STYLES, WIDTH, Style, legend, new_grid, styled
from leaderboard.findings.finding import Finding, listed, told
from leaderboard.findings.networks import PLAIN, network_name
from leaderboard.tables.cells import Row
from leaderboard.tables.numbers import UNDEFINED, given, interval, shares
from leaderboard.tables.papers import Published, Quantity, published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINEAR = "softmax-regression"
FIGURE = "linear-error"
CONFIDENCE = "adversarial_confidence"
ATTACKS = {
    ("fgsm", "deployed"): "FGSM on cross-entropy",
    ("fgsm", "log_odds"): "FGSM on log-odds",
    ("pgd", "log_odds"): "PGD on log-odds",
}
"""By name and ``output``: the first is the paper's, the sentences are about FGSM on log-odds."""

PAPER = 0.25
"""The budget of the paper's figures on MNIST."""

Seeds = dict[int, Row]
Grid = dict[str, dict[float, Seeds]]


@dataclass(frozen=True)
class Comparison:
    """One network against the linear model at each budget: the linear one is broken more often.

    ``more``, ``less``: at every seed, beyond the interval; ``open``: the rest. ``values``: each
    difference with its bounds, ascending.
    """

    network: str
    more: tuple[float, ...]
    less: tuple[float, ...]
    open: tuple[float, ...]
    values: tuple[tuple[float, tuple[float, float]], ...]

    @property
    def clauses(self) -> list[str]:
        """What shows at which budgets, in words."""
        groups = {
            "more often": self.more,
            "less often": self.less,
            "neither clearly more nor less often": self.open,
        }
        total = sum(map(len, groups.values()))
        return [
            f"{how} at every eps"
            if len(budgets) == total > 1
            else f"{how} at eps {listed([given(eps) for eps in budgets])}"
            for how, budgets in groups.items()
            if budgets
        ]


def linear(results: Results) -> Finding | None:
    """Tell how often a linear model errs under FGSM, and whether more often than deeper ones."""
    grids = {key: grid(results, *key) for key in ATTACKS}
    key = next(
        (k for k in (("fgsm", "log_odds"), ("fgsm", "deployed")) if both_met(grids[k])), None
    )
    if key is None:
        return None
    shown = {k: g for k, g in grids.items() if both_met(g)}
    tables = [(_caption(k, shown[k]), table(shown[k])) for k in shown]
    if not (beside := beside_published(results, grids["fgsm", "deployed"])).empty:
        tables.insert(0, (f"{ATTACKS['fgsm', 'deployed']}, beside the paper.", beside))
    pgd = shown.get(("pgd", "log_odds"))
    return told(
        "linear",
        tables,
        (FIGURE,),
        linear=LINEAR,
        attack=ATTACKS[key],
        errors=errors(grids[key]),
        compared=compare(grids[key]),
        lost=_lost(shown),
        stronger=None if pgd is None else compare(pgd),
    )


def grid(results: Results, attack: str, output: str) -> Grid:
    """Return the cells of one attack by network, budget (ascending) and seed.

    Untargeted in L∞, on models that were trained plainly, on the whole training split.
    """
    found: Grid = {}
    for row in results.cells:
        params, defense = row["attack_params"], row["defense_params"]
        if (
            row["defense"] in PLAIN
            and defense.get("half") is None
            and (row["attack"], params.get("output")) == (attack, output)
            and (row["threat"]["norm"], params.get("targets")) == ("linf", "untargeted")
            and params.get("precision", "float32") == "float32"
            and params.get("temperature", 1.0) == 1.0
            and row["success_rate"] is not None
            and (budget := row["threat"]["budget"]) is not None
        ):
            budgets = found.setdefault(network_name(row), {})
            budgets.setdefault(budget, {}).setdefault(row["seed"], row)
    return {name: dict(sorted(budgets.items())) for name, budgets in found.items()}


def both_met(of: Grid) -> bool:
    """Return whether the linear model and another network met the attack."""
    return LINEAR in of and len(of) > 1


def error(row: Row) -> float | None:
    """Return the share of all sources that are misclassified, before the attack or under it."""
    return None if row["robust_accuracy"] is None else 1 - float(row["robust_accuracy"])


def errors(of: Grid) -> dict[float, list[str]]:
    """Return how often each network errs, and how sure it is of what it was misled to, by budget.

    At the paper's budget and at the largest.
    """
    budgets = {eps for network in of.values() for eps in network}
    return {
        eps: [
            f"{name} on {shares(error(row) for row in at[eps].values())} "
            f"({shares(row[CONFIDENCE] for row in at[eps].values())})"
            for name, at in of.items()
            if eps in at
        ]
        for eps in sorted({max(budgets), *({PAPER} & budgets)})
    }


def compare(of: Grid) -> list[Comparison]:
    """Hold the linear model against each other network at every budget that both met."""
    found = []
    for name, budgets in of.items():
        if name == LINEAR:
            continue
        signs: dict[str, list[float]] = {"more": [], "less": [], "open": []}
        values = []
        for eps in budgets.keys() & of[LINEAR].keys():
            seeds = budgets[eps].keys() & of[LINEAR][eps].keys()
            each = [_difference(of[LINEAR][eps][seed], budgets[eps][seed]) for seed in seeds]
            if not each:
                continue
            values += each
            above = all(low > 0 for _, (low, _) in each)
            below = all(high < 0 for _, (_, high) in each)
            signs["more" if above else "less" if below else "open"].append(eps)
        if values:
            more, less, rest = (tuple(sorted(budgets)) for budgets in signs.values())
            found.append(Comparison(name, more, less, rest, tuple(sorted(values))))
    return found


def _difference(first: Row, second: Row) -> tuple[float, tuple[float, float]]:
    """Return the success rate of ``first`` minus that of ``second``, and its bounds.

    Where the two were not paired, Newcombe's of two independent rates (1998, method 10), which
    knows nothing of common sources.
    """
    for row, other, sign in ((first, second, 1), (second, first, -1)):
        paired = row["paired"]
        if paired is not None and paired["baseline"] == other["id"]:
            low, high = sorted(sign * end for end in paired["ci"])
            return sign * paired["delta"], (low, high)
    one, two = first["success_rate"], second["success_rate"]
    (low, high), (least, most) = first["success_ci"], second["success_ci"]
    delta = one - two
    return delta, (
        delta - math.hypot(one - low, most - two),
        delta + math.hypot(high - one, two - least),
    )


def table(of: Grid) -> pd.DataFrame:
    """Return success and confidence: budgets down, networks across."""
    lines = []
    for eps in sorted({eps for budgets in of.values() for eps in budgets}):
        line = {"eps": given(eps)}
        for name, budgets in of.items():
            rows = list(budgets.get(eps, {}).values())
            line[name] = _rates(rows)
            line[f"confidence, {name}"] = shares(row[CONFIDENCE] for row in rows)
        lines.append(line)
    return pd.DataFrame(lines).replace("", UNDEFINED)


def _rates(rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return interval(rows[0]["success_rate"], rows[0]["success_ci"])
    return shares(row["success_rate"] for row in rows)


def beside_published(results: Results, of: Grid) -> pd.DataFrame:
    """Return error and confidence of each network beside the published ones of its data set.

    At the budgets of the paper that the run has; empty where there is none.
    """
    budgets = list(dict.fromkeys(eps for network in of.values() for eps in network))
    lines = []
    for eps in budgets:
        theirs = _published(results, "error", eps)
        sure = {
            figure.place: figure.scaled
            for figure in _published(results, "adversarial_confidence", eps)
        }
        ours = {name: list(at[eps].values()) for name, at in of.items() if eps in at}
        if theirs:
            lines += [
                {
                    "network": name,
                    "eps": given(eps),
                    "error": shares(error(row) for row in rows),
                    "confidence": shares(row[CONFIDENCE] for row in rows),
                    "from": "this run",
                }
                for name, rows in ours.items()
            ]
        lines += [
            {
                "network": figure.place or UNDEFINED,
                "eps": given(eps),
                "error": shares([figure.scaled]),
                "confidence": shares([sure.get(figure.place)]),
                "from": f"{figure.paper}, {figure.certainty}",
            }
            for figure in theirs
        ]
    return pd.DataFrame(lines)


def _published(results: Results, quantity: Quantity, eps: float) -> list[Published]:
    """Return the paper's figures of the undefended networks on the data set of the run."""
    names = {row["dataset"] for row in results.cells}
    return [
        figure
        for name in sorted(names)
        for figure in published(
            quantity, dataset=name, attack="fgsm", defense="undefended", eps=eps
        )
        if figure.scaled is not None
    ]


def _caption(key: tuple[str, str], of: Grid) -> str:
    several = any(len(seeds) > 1 for budgets in of.values() for seeds in budgets.values())
    return (
        f"{ATTACKS[key]}: success rate on correctly classified sources"
        f"{', one value a seed' if several else ' with its 95 % interval'}, and confidence."
    )


def _lost(shown: dict[tuple[str, str], Grid]) -> tuple[float, str, float] | None:
    """Return by how much FGSM on cross-entropy stays behind log-odds at most, where and when.

    None where the run has not both.
    """
    deployed, exact = (shown.get(("fgsm", output)) for output in ("deployed", "log_odds"))
    if deployed is None or exact is None:
        return None
    return max(
        (row["success_rate"] - deployed[name][eps][seed]["success_rate"], name, eps)
        for name, budgets in exact.items()
        for eps, seeds in budgets.items()
        for seed, row in seeds.items()
        if seed in deployed.get(name, {}).get(eps, {})
    )


@styled
def draw_linear(results: Results, _: Material) -> dict[str, Figure]:
    """Draw the error of each network against the budget, beside the published ones."""
    found = {key: grid(results, *key) for key in ATTACKS if key[0] == "fgsm"}
    shown = {key: of for key, of in found.items() if both_met(of)}
    if not shown:
        return {}
    figure, axes = new_grid(1, len(shown), len(shown) * WIDTH)
    for axis, (key, of) in zip(axes, shown.items(), strict=True):
        for style, (name, budgets) in zip(STYLES * len(of), of.items(), strict=False):
            for seed in sorted({seed for seeds in budgets.values() for seed in seeds}):
                rows = {eps: seeds[seed] for eps, seeds in budgets.items() if seed in seeds}
                _line(axis, rows, style, name)
        for eps in {eps for network in of.values() for eps in network}:
            for one in _published(results, "error", eps) if key[1] == "deployed" else ():
                value = 100 * (one.scaled or 0.0)
                axis.plot([eps], [value], label="published", **PUBLISHED)
                axis.annotate(one.place, (eps, value), (-5, -10), fontsize=5, ha="right",
                              textcoords="offset points")  # fmt: skip
        axis.set_ylim(-3, 105)
        axis.set_xlabel(f"eps, {ATTACKS[key]}")
        axis.set_ylabel("error, % of the sources")
    legend(figure, 4)
    return {FIGURE: figure}


def _line(axis: Axes, rows: dict[float, Row], style: Style, name: str) -> None:
    """Draw the error of one model against the budget, with its intervals."""
    known = {eps: value for eps, row in rows.items() if (value := error(row)) is not None}
    low = [value - (1 - rows[eps]["robust_ci"][1]) for eps, value in known.items()]
    high = [1 - rows[eps]["robust_ci"][0] - value for eps, value in known.items()]
    axis.errorbar(
        list(known),
        [100 * value for value in known.values()],
        [[max(0.0, 100 * end) for end in side] for side in (low, high)],
        color=style.color,
        marker=style.marker,
        linestyle=style.line,
        capsize=1.5,
        elinewidth=0.7,
        label=name,
    )
