"""What a student inherits from a robust teacher, and which part of its answers carries it.

Seguin et al. 2021, arXiv 2108.12001: the confidence of each sample and the order of the incorrect
classes. The manipulations are our own (``defenses.robust_distillation``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.types import Results
from leaderboard.figures import STYLES, WIDTH, legend, new_grid, styled
from leaderboard.findings.finding import Finding, listed, points, shares
from leaderboard.findings.material import Material
from leaderboard.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDENT = "robust_distillation"
FIGURE = "students"

REMOVES = {
    "all": "nothing",
    "max": "all but the largest logit: the others level, at their mean",
    "values": "the order of the others: shuffled for each sample",
    "order": "the confidence of each sample: every sample has the average gaps",
    "fixed_order": "the order of the others: by number of the class",
    "confidence": "the order and the spread of the others: level, the confidence stays",
    "gap": "the order and the spread of the others: level at the runner-up",
    "label": "everything but the teacher's class",
}
"""What each manipulation takes away."""

ORDER, LEVEL, SURENESS = ("values", "fixed_order"), ("confidence",), ("order",)
"""Manipulations that put the others in a wrong order, in none, or take the confidence away."""


def inheritance(results: Results) -> Finding | None:
    """Tell what a student of a robust teacher has over one of a standard teacher."""
    pairs = [
        pair
        for pair in results.pairs
        if pair["why"] == "teacher"
        and pair["first"]["defense"] == STUDENT
        and pair["first"]["defense_params"].get("keep") == "all"
        and known(pair)
    ]
    if not pairs:
        return None
    pair = pairs[0]
    robust, plain = _teacher(pair["second"]), _teacher(pair["first"])
    told = [
        f"at {place(at)} {shares(seed['second'] for seed in at['seeds'])} of the sources stand "
        f"against {shares(seed['first'] for seed in at['seeds'])} "
        f"({points(*flipped(at, 'ci'))} points)"
        for at in known(pair)
    ]
    gains = [at for at in known(pair) if flipped(at, "ci")[1][0] > 0 and _one_sign(at)]
    where = listed([place(at) for at in gains])
    last = (
        f"The student of {robust} holds more than that of {plain} at {where}, with an interval "
        "above zero and the same sign at every seed"
        if gains
        else f"Nowhere does the student of {robust} hold more than that of {plain} beyond the "
        "interval and at every seed"
    )
    share = _inherited(results, pair)
    return Finding(
        "What a student inherits that sees no perturbation",
        (
            f"Taught by {robust} rather than by {plain}, on clean inputs: {'; '.join(told)}.",
            f"{last}{share}.",
        ),
        [("Worst case of each student and of its teacher, one value a seed.", stand(results))],
        (),
        ("Intervals are paired over the same sources, 95 %, a source counted once for all seeds.",),
    )


def ranking(results: Results) -> Finding | None:
    """Tell which part of the teacher's answers carries the robustness: tested, not eyeballed."""
    found = manipulated(results)
    if not found:
        return None
    places = [at for at in known(found[0]) if any(_counts(p, at) for p in found)]
    costs = {
        keep(pair): [place(at) for at in known(pair) if at["ci_family"][1] < 0 and _one_sign(at)]
        for pair in found
    }
    losing = [f"{name} (at {listed(where)})" for name, where in costs.items() if where]
    same = [name for name, where in costs.items() if not where]
    first = (
        f"Against everything kept, these lose beyond the intervals, which hold together, and at "
        f"every seed: {listed(losing) or 'none'}; these do not: {listed(same) or 'none'}."
    )
    return Finding(
        "Which part of the teacher's answers carries it",
        (first, conclusion(costs)),
        [(f"keep, at {place(at)}", table(results, at)) for at in places or known(found[0])],
        (FIGURE,),
        (
            (
                "Differences in points of worst-case robust accuracy against keep = all under the "
                "same teacher, paired over sources and seeds; the intervals hold for all "
                "manipulations of one budget together (95 %, Bonferroni). The manipulations are "
                "our own: the paper's list is not at hand."
            ),
        ),
    )


def conclusion(costs: dict[str, list[str]]) -> str:
    """Hold what the manipulations cost against what Seguin et al. conclude."""

    def told(names: Iterable[str]) -> bool:
        return any(costs.get(name) for name in names)

    sure = "matters" if told(SURENESS) else "does not show"
    if told(LEVEL):
        order = "so does the order of the incorrect classes, for levelling them costs too"
    elif told(ORDER):
        order = (
            "the order of the incorrect classes is not needed, for levelling them costs nothing "
            "that shows, but a wrong order does harm"
        )
    else:
        order = "of the order of the incorrect classes nothing shows"
    return (
        "Seguin et al. 2021 conclude that sample-wise confidence and the order of the incorrect "
        f"classes carry the robustness; here the confidence of each sample {sure}, and {order}."
    )


def manipulated(results: Results, teacher: str | None = None) -> list[Row]:
    """Return the pairs of a manipulation against ``all``: of one teacher, or of the first."""
    found = [
        pair
        for pair in results.pairs
        if pair["why"] == "keep"
        and pair["second"]["defense_params"]["keep"] == "all"
        and known(pair)
    ]
    name = teacher or next((_teacher_name(pair["first"]) for pair in found), None)
    return [pair for pair in found if _teacher_name(pair["first"]) == name]


def known(pair: Row) -> list[Row]:
    """Return the budgets of a pair at which there is a figure."""
    return [at for at in pair["survival"] if at["delta"] is not None]


def place(at: Row) -> str:
    """Return a budget in words: ``L∞ 0.1``, ``L0 2``."""
    return f"{ {'linf': 'L∞', 'l2': 'L2', 'l0': 'L0'}[at['norm']] } {at['at']:g}"


def keep(pair: Row) -> str:
    """Return what the first defense of a pair keeps."""
    return str(pair["first"]["defense_params"]["keep"])


def flipped(at: Row, interval: str) -> tuple[float, tuple[float, float]]:
    """Return the second's worst case minus the first's, and its interval."""
    low, high = at[interval]
    return -at["delta"], (-high, -low)


def _one_sign(at: Row) -> bool:
    signs = {seed["delta"] > 0 for seed in at["seeds"] if seed["delta"]}
    return len(signs) == 1 and all(seed["delta"] for seed in at["seeds"])


def _counts(pair: Row, wanted: Row) -> bool:
    return any(place(at) == place(wanted) and at["delta"] for at in known(pair))


def _teacher_name(defense: Row) -> str:
    return str(defense["defense_params"]["teacher"]["name"])


def _teacher(defense: Row) -> str:
    return {"undefended": "a standard teacher", "adversarial_training": "a robust teacher"}.get(
        _teacher_name(defense), f"a teacher {_teacher_name(defense)!r}"
    )


def _inherited(results: Results, pair: Row) -> str:
    """Say how much of the teacher's own worst case its student has, where the teacher was met."""
    taught = [p for p in results.pairs if p["why"] == "taught" and p["first"] == pair["second"]]
    if not taught or not known(taught[0]):
        return ""
    told = [
        f"{shares([_mean(at, 'first')])} against {shares([_mean(at, 'second')])} at {place(at)}"
        for at in known(taught[0])
    ]
    return f"; its teacher, which did see them, holds more: {listed(told)}, means over seeds"


def _mean(at: Row, side: str) -> float | None:
    values = [seed[side] for seed in at["seeds"]]
    return sum(values) / len(values) if values else None


def stand(results: Results) -> pd.DataFrame:
    """Return the worst case of teachers, students and the undefended network at every budget."""
    lines: dict[str, dict[str, str]] = {"undefended": {"defense": "undefended"}}
    for pair in results.pairs:
        if pair["why"] == "undefended" and (name := _called(pair["first"])) is not None:
            lines[name] = {"defense": name}
            for at in known(pair):
                lines[name][place(at)] = shares(seed["first"] for seed in at["seeds"])
                lines["undefended"][place(at)] = shares(seed["second"] for seed in at["seeds"])
    return pd.DataFrame(list(lines.values())).fillna("–")


def _called(defense: Row) -> str | None:
    """Return how the table of students names a defense, None where it is not in it."""
    params = defense["defense_params"]
    if defense["defense"] == STUDENT and params["keep"] == "all":
        return f"student of {_teacher_name(defense)}"
    if defense["defense"] in ("twin", "adversarial_training"):
        return " ".join([defense["defense"], *([params["method"]] if "method" in params else [])])
    return None


def table(results: Results, at: Row) -> pd.DataFrame:
    """Return each manipulation at one budget, under the robust teacher and under the standard."""
    teachers = list(
        dict.fromkeys(
            _teacher_name(p["first"]) for p in results.pairs if p["why"] == "keep" and known(p)
        )
    )
    lines = []
    for name, removes in REMOVES.items():
        line: dict[str, Any] = {"keep": name, "takes away": removes}
        for teacher in teachers:
            line |= _against_all(manipulated(results, teacher), name, teacher, at)
        if len(line) > 2:
            lines.append(line)
    return pd.DataFrame(lines).fillna("–")


def _against_all(pairs: Sequence[Row], name: str, teacher: str, wanted: Row) -> dict[str, str]:
    for pair in pairs:
        for at in known(pair):
            if place(at) != place(wanted) or name not in (keep(pair), "all"):
                continue
            side = "second" if name == "all" else "first"
            line = {f"{teacher}": shares(seed[side] for seed in at["seeds"])}
            if name != "all":
                line[f"{teacher}, Δ"] = points(at["delta"], at["ci_family"])
            return line
    return {}


@styled
def draw_students(results: Results, _: Material) -> dict[str, Figure]:
    """Draw what each manipulation costs against everything kept, with intervals, by budget."""
    found = manipulated(results)
    places = [at for at in known(found[0]) if any(_counts(p, at) for p in found)] if found else []
    if not places:
        return {}
    teachers = list(
        dict.fromkeys(_teacher_name(p["first"]) for p in results.pairs if p["why"] == "keep")
    )
    names = [keep(pair) for pair in found]
    figure, axes = new_grid(1, len(places), min(2, len(places)) * WIDTH)
    for axis, wanted in zip(axes, places, strict=True):
        axis.axvline(0, color="0.4", linewidth=0.7)
        for number, teacher in enumerate(teachers):
            style = STYLES[number]
            rows = [
                (names.index(keep(pair)) + 0.25 * number, at)
                for pair in manipulated(results, teacher)
                for at in known(pair)
                if place(at) == place(wanted) and keep(pair) in names
            ]
            values = [100 * at["delta"] for _, at in rows]
            low = [100 * (at["delta"] - at["ci_family"][0]) for _, at in rows]
            high = [100 * (at["ci_family"][1] - at["delta"]) for _, at in rows]
            axis.errorbar(values, [y for y, _ in rows], xerr=[low, high], linestyle="none",
                          marker=style.marker, color=style.color, capsize=1.5, elinewidth=0.8,
                          label=f"teacher: {teacher.replace('_', ' ')}")  # fmt: skip
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel(f"Δ against keep = all, points, {place(wanted)}")
    legend(figure, 2)
    return {FIGURE: figure}
