"""What a student inherits from a robust teacher, and which part of its answers carries it.

Seguin et al. 2021, arXiv 2108.12001: the confidence of each sample and the order of the incorrect
classes. The manipulations are our own (``defenses.robust_distillation``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.base.rows import Results
from leaderboard.figures.material import Material
from leaderboard.figures.style import STYLES, WIDTH, legend, new_grid, styled
from leaderboard.findings.finding import TRAINED, Finding, listed, told
from leaderboard.tables.cells import Row, labels
from leaderboard.tables.numbers import UNDEFINED, fixed, given, points, shares

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
    # Whichever of the two the matrix names first.
    pair = min(pairs, key=lambda found: sum(map(_robust, _both(found))) != 1)
    turned = _robust(pair["first"])
    mine, other = ("first", "second") if turned else ("second", "first")
    robust, plain = _teacher(pair[mine]), _teacher(pair[other])
    gained = {
        place(at): (at["delta"], at["ci"]) if turned else flipped(at, "ci") for at in known(pair)
    }
    sure = [at for at in known(pair) if _one_sign(at)]
    sides = (
        ("more", "above", [at for at in sure if gained[place(at)][1][0] > 0]),
        ("less", "below", [at for at in sure if gained[place(at)][1][1] < 0]),
    )
    return told(
        "inheritance",
        [("Worst case of each student and of its teacher, one value a seed.", stand(results))],
        robust=robust,
        plain=plain,
        places=[
            {
                "place": place(at),
                "mine": shares(by_seed(pair, at, mine)),
                "other": shares(by_seed(pair, at, other)),
                "gain": points(*gained[place(at)]),
            }
            for at in known(pair)
        ],
        sure=[
            {"word": word, "side": side, "places": [place(at) for at in of], "seeds": at_seeds(of)}
            for word, side, of in sides
            if of
        ],
        seeds=at_seeds(known(pair)),
        inherited=_inherited(results, pair[mine]),
        saw=_robust(pair[mine]),
        chance=_chance(results),
    )


def ranking(results: Results) -> Finding | None:
    """Tell which part of the teacher's answers carries the robustness: tested, not eyeballed."""
    found = manipulated(results)
    if not found:
        return None
    places = places_of(found)
    costs = {
        keep(pair): [at for at in known(pair) if at["ci_family"][1] < 0 and _one_sign(at)]
        for pair in found
    }
    return told(
        "ranking",
        [(f"keep, at {place(at)}", table(results, at)) for at in places],
        (FIGURE,),
        teacher=_teacher(found[0]["first"]),
        seeds=at_seeds([at for pair in found for at in known(pair)]),
        losing=[
            f"{name} (at {listed([place(at) for at in where])})"
            for name, where in costs.items()
            if where
        ],
        same=[name for name, where in costs.items() if not where],
        failed=[keep(pair) for pair in _of_first(results) if not known(pair)],
        costs=list(costs),
        costing=[name for name, where in costs.items() if where],
        sureness=SURENESS,
        level=LEVEL,
        order=ORDER,
    )


def manipulated(results: Results, against: Row | None = None) -> list[Row]:
    """Return the pairs of a manipulation and ``all``: of one student, ``against``.

    By default that of the first robust teacher, else of the first.
    """
    return [pair for pair in _of_first(results, against) if known(pair)]


def _of_first(results: Results, against: Row | None = None) -> list[Row]:
    against = against or next(iter(references(results)), None)
    return [pair for pair in _manipulations(results) if pair["second"] == against]


def _manipulations(results: Results) -> list[Row]:
    return [
        pair
        for pair in results.pairs
        if pair["why"] == "keep" and pair["second"]["defense_params"]["keep"] == "all"
    ]


def references(results: Results) -> list[Row]:
    """Return the students that keep everything, of robust teachers first."""
    found: list[Row] = []
    for pair in _manipulations(results):
        if known(pair) and pair["second"] not in found:
            found.append(pair["second"])
    return sorted(found, key=lambda defense: not _robust(defense))


def named(students: Sequence[Row]) -> list[str]:
    """Return what to call each student by: its teacher, with what tells it from the others'."""
    teachers = [_as_defense(student["defense_params"]["teacher"]) for student in students]
    names = labels(teachers, "defense")
    return names if len(set(names)) == len(names) else labels(students, "defense")


def _as_defense(teacher: Row) -> Row:
    params = {key: value for key, value in teacher.items() if key != "name"}
    return {"defense": teacher["name"], "defense_params": params}


def places_of(pairs: Sequence[Row]) -> list[Row]:
    """Return the budgets at which a pair of ``pairs`` differs, all where none does."""
    every = {place(at): at for pair in pairs for at in known(pair)}
    differ = [at for at in every.values() if any(_counts(pair, at) for pair in pairs)]
    return differ or list(every.values())


def known(pair: Row) -> list[Row]:
    """Return the budgets of a pair at which there is a figure."""
    return [at for at in pair["survival"] if at["delta"] is not None]


def by_seed(pair: Row, at: Row, side: str) -> list[float | None]:
    """Return the worst case of one side at every seed of the pair, None where it is not known."""
    shares = {seed["seed"]: seed[side] for seed in at["seeds"]}
    return [shares.get(seed["seed"]) for seed in pair["seeds"]]


def at_seeds(places: Sequence[Row]) -> str:
    """Return in words at how many seeds the figures were made."""
    counts = sorted({len(at["seeds"]) for at in places})
    if counts == [1]:
        return "at the one seed"
    return f"at each of {' or '.join(str(count) for count in counts)} seeds"


def place(at: Row) -> str:
    """Return a budget in words: ``L∞ 0.1``, ``L0 2``."""
    return f"{ {'linf': 'L∞', 'l2': 'L2', 'l0': 'L0'}[at['norm']] } {given(at['at'])}"


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


def _both(pair: Row) -> tuple[Row, Row]:
    return pair["first"], pair["second"]


def _teacher_name(defense: Row) -> str:
    return str(defense["defense_params"]["teacher"]["name"])


def _robust(defense: Row) -> bool:
    return _teacher_name(defense) in TRAINED


def _teacher(defense: Row) -> str:
    name = _teacher_name(defense)
    known_ones = {"undefended": "a standard teacher", TRAINED[0]: "a robust teacher"}
    other = f"a robust teacher ({name})" if _robust(defense) else f"a teacher {name!r}"
    return known_ones.get(name, other)


def _inherited(results: Results, student: Row) -> list[str]:
    """Return how much of its teacher's own worst case a student has, where the teacher was met."""
    taught = [p for p in results.pairs if p["why"] == "taught" and p["first"] == student]
    return [
        f"{shares([_mean(at, 'first')])} against {shares([_mean(at, 'second')])} at {place(at)}"
        for at in (known(taught[0]) if taught else ())
    ]


def _chance(results: Results) -> list[str]:
    """Return how far two undefended networks lie apart that differ in their seed alone."""
    twins = [p for p in results.pairs if p["why"] == "undefended"]
    twins = [p for p in twins if p["first"]["defense"] == "twin" and known(p)]
    return [
        f"{fixed(100 * max(abs(seed['delta']) for seed in at['seeds']))} points apart "
        f"at {place(at)}"
        for at in (known(twins[0]) if twins else ())
    ]


def _mean(at: Row, side: str) -> float | None:
    values = [seed[side] for seed in at["seeds"]]
    return sum(values) / len(values) if values else None


def stand(results: Results) -> pd.DataFrame:
    """Return the worst case of teachers, students and the undefended network at every budget."""
    pairs = [p for p in results.pairs if p["why"] == "undefended" and _stands(p["first"])]
    lines: dict[str, dict[str, str]] = {"undefended": {"defense": "undefended"}}
    for name, pair in zip(_called([pair["first"] for pair in pairs]), pairs, strict=True):
        lines[name] = {"defense": name}
        for at in known(pair):
            lines[name][place(at)] = shares(by_seed(pair, at, "first"))
            lines["undefended"].setdefault(place(at), shares(by_seed(pair, at, "second")))
    return pd.DataFrame(list(lines.values())).fillna(UNDEFINED)


def _stands(defense: Row) -> bool:
    """Return whether the table of students shows a defense."""
    if defense["defense"] == STUDENT:
        return bool(defense["defense_params"]["keep"] == "all")
    return defense["defense"] in ("twin", *TRAINED)


def _called(defenses: Sequence[Row]) -> list[str]:
    """Return how the table of students names each."""
    students = [defense for defense in defenses if defense["defense"] == STUDENT]
    of_teacher = iter(named(students))
    every = labels(defenses, "defense")
    return [
        f"student of {next(of_teacher)}" if defense["defense"] == STUDENT else label
        for defense, label in zip(defenses, every, strict=True)
    ]


def table(results: Results, at: Row) -> pd.DataFrame:
    """Return each manipulation at one budget, under the robust teacher and under the standard."""
    students = references(results)
    lines = []
    for name, removes in REMOVES.items():
        line: dict[str, Any] = {"keep": name, "takes away": removes}
        for teacher, student in zip(named(students), students, strict=True):
            line |= _against_all(manipulated(results, student), name, teacher, at)
        if len(line) > 2:
            lines.append(line)
    return pd.DataFrame(lines).fillna(UNDEFINED)


def _against_all(pairs: Sequence[Row], name: str, teacher: str, wanted: Row) -> dict[str, str]:
    for pair in pairs:
        for at in known(pair):
            if place(at) != place(wanted) or name not in (keep(pair), "all"):
                continue
            side = "second" if name == "all" else "first"
            line = {f"{teacher}": shares(by_seed(pair, at, side))}
            if name != "all":
                line[f"{teacher}, Δ"] = points(at["delta"], at["ci_family"])
            return line
    return {}


@styled
def draw_students(results: Results, _: Material) -> dict[str, Figure]:
    """Draw what each manipulation costs against everything kept, with intervals, by budget."""
    found = manipulated(results)
    if not found:
        return {}
    places, students = places_of(found), references(results)
    names = [keep(pair) for pair in found]
    across = min(2, len(places))
    down = -(-len(places) // across)
    figure, axes = new_grid(down, across, across * WIDTH, 0.75 * WIDTH * down)
    for axis in axes[len(places) :]:
        axis.set_axis_off()
    for axis, wanted in zip(axes, places, strict=False):
        axis.axvline(0, color="0.4", linewidth=0.7)
        for number, (teacher, student) in enumerate(zip(named(students), students, strict=True)):
            style = STYLES[number % len(STYLES)]
            rows = [
                (names.index(keep(pair)) + 0.25 * number, at)
                for pair in manipulated(results, student)
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
        axis.set_xlabel(f"{place(wanted)}: points against keep = all")
    legend(figure, 2)
    return {FIGURE: figure}
