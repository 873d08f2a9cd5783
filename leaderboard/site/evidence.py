"""What stands behind a row: who broke what, the flags, the curve, inputs, what repeats it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import Markup

from bench.base.rows import FlagRow, ModelRow, Results, SeedRow, SourcesRow, VerdictRow
from leaderboard.figures.svg import LEVELS, RUNS, Series, axes, legend, strip
from leaderboard.site.pictures import Picture, pictures
from leaderboard.tables.cells import Row
from leaderboard.tables.numbers import UNDEFINED, given, number, percent

PLACES = "0123456789abcdefghijklmnopqrstuvwxyz"
"""How ``sources.json`` writes the place of a budget."""

KINDS = {"worst": "all attacks", "naive": "naive attack", "plain": "the reference, all attacks"}
"""The lines of a security curve."""


@dataclass(frozen=True)
class AttackLine:
    """One attack on a defense: what it broke at each budget, and what nobody else did.

    ``maps``: a row of cells a training seed; ``cells``: ids for ``explain``.
    """

    name: str
    role: str
    breaks: Sequence[str]
    alone: Sequence[str]
    cells: Sequence[str] = ()
    maps: Sequence[Markup] = ()


@dataclass(frozen=True)
class Raised:
    """One flag, with the training seeds that raised it."""

    flag: FlagRow
    seeds: Sequence[int]


@dataclass(frozen=True)
class Evidence:
    """Everything behind one defense under one norm; what is empty was not kept."""

    budgets: Sequence[str]
    attacks: Sequence[AttackLine] = ()
    order: str = ""
    standing: str = ""
    curve: Markup = field(default_factory=Markup)
    curve_key: Markup = field(default_factory=Markup)
    pictures: Sequence[Picture] = ()
    flags: Sequence[Raised] = ()
    unseen: Sequence[tuple[str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    document: str = ""


def evidence(
    results: Results, of: Row, norm: str, budgets: Sequence[str], rows: Sequence[VerdictRow] = ()
) -> Evidence:
    """Return what stands behind the defense that the row ``of`` is about, under ``norm``.

    ``rows``: its verdicts, one a budget; ``budgets``: these in words.
    """
    mine = [row for row in results.sources if _same(row, of) and row["threat"]["norm"] == norm]
    models = [row for row in results.models if _same(row, of)]
    attacks = _mapped(mine, rows) if mine else _counted(rows)
    curve = _curve(rows) if rows else Markup("")
    return Evidence(
        budgets=budgets or [given(budget) for row in mine[:1] for budget in row["budgets"]],
        attacks=attacks,
        order=" ".join(_column(mine[0], place) for place in _order(mine[0])) if mine else "",
        standing=_standing(mine),
        curve=curve,
        curve_key=legend(KINDS) if curve else curve,
        pictures=[picture for row in mine[:1] for picture in pictures(row)],
        flags=_raised(rows, models),
        unseen=sorted({(k, v) for row in (*_seeds(rows), *models)
                       for k, v in row["not_evaluated"].items()}),
        facts=_facts(models),
        document=_document(of),
    )  # fmt: skip


def _same(row: Row, other: Row) -> bool:
    names = ("dataset", "network", "recipe", "defense", "defense_params")
    return all(row[name] == other[name] for name in names)


def _seeds(rows: Sequence[VerdictRow]) -> list[SeedRow]:
    return [seed for row in rows for seed in row["seeds"]]


def _order(row: SourcesRow) -> list[int]:
    """Return the sources, what most attacks break first: a map is read from left to right."""
    last = len(row["budgets"])
    often = [
        sum(reach["breaks"][place] in PLACES[:last] for reach in row["reach"])
        for place in range(len(row["samples"]))
    ]
    return sorted(range(len(often)), key=lambda place: (-often[place], place))


def _column(row: SourcesRow, place: int) -> str:
    return f"{row['samples'][place]}:{row['labels'][place]}"


def _level(character: str, budgets: int) -> int | None:
    """Return the shade of a source: the darkest where the smallest budget breaks it."""
    place = PLACES.find(character)
    if character in ".+" or not 0 <= place < budgets:
        return None
    return round(place * (LEVELS - 1) / max(1, budgets - 1))


def _mapped(mine: Sequence[SourcesRow], rows: Sequence[VerdictRow]) -> list[AttackLine]:
    """Return every attack with its map, most breaks first."""
    # The role of an attack that stands in the verdict is that of the panel that gave it.
    roles = {
        item["attack"]: item["role"] or "" for seed in _seeds(rows) for item in seed["broken_by"]
    }
    names: dict[str, str] = {}
    for row in mine:
        for reach in row["reach"]:
            name = reach["attack"]
            names.setdefault(name, roles.get(name) or reach["role"] or "")
    cells = _cells(rows)
    orders = [_order(row) for row in mine]
    found: list[tuple[int, AttackLine]] = []
    for name, role in names.items():
        breaks, alone, maps = [], [], []
        for row, order in zip(mine, orders, strict=True):
            texts = {item["attack"]: item["breaks"] for item in row["reach"]}
            written = texts.get(name, "." * len(row["samples"]))
            masks = {other: _masks(text, row) for other, text in texts.items()}
            own = masks.get(name, [[] for _ in row["budgets"]])
            breaks.append([sum(mask) for mask in own])
            alone.append(
                [
                    sum(
                        hit and sum(m[k][i] for m in masks.values()) == 1
                        for i, hit in enumerate(mask)
                    )
                    for k, mask in enumerate(own)
                ]
            )
            if len(order) <= RUNS:
                maps.append(strip([_level(written[i], len(row["budgets"])) for i in order]))
        line = AttackLine(name, role, _each(breaks), _each(alone), cells.get(name, ())[:1], maps)
        found.append((sum(sum(seed) for seed in breaks), line))
    return [line for _, line in sorted(found, key=lambda item: -item[0])]


def _masks(written: str, row: SourcesRow) -> list[list[bool]]:
    """Return at each budget which correctly classified sources an attack breaks."""
    right = [character == "1" for character in row["correct"]]
    return [
        [ok and c in PLACES[: number + 1] for ok, c in zip(right, written, strict=True)]
        for number in range(len(row["budgets"]))
    ]


def _counted(rows: Sequence[VerdictRow]) -> list[AttackLine]:
    """Return who broke anything, from the verdicts alone: no run folder, no map."""
    names: Counter[str] = Counter()
    roles: dict[str, str] = {}
    for seed in _seeds(rows):
        for item in seed["broken_by"]:
            names[item["attack"]] += item["breaks"]
            roles.setdefault(item["attack"], item["role"] or "")
    cells = _cells(rows)
    return [
        AttackLine(
            name,
            roles[name],
            _each(_tally(rows, name, "breaks")),
            _each(_tally(rows, name, "only")),
            cells.get(name, ())[:1],
        )
        for name, _ in names.most_common()
    ]


def _tally(
    rows: Sequence[VerdictRow], name: str, key: Literal["breaks", "only"]
) -> list[list[int]]:
    """Return a count of one attack by training seed and budget."""
    seeds = max((len(row["seeds"]) for row in rows), default=0)
    return [
        [
            sum(item[key] for item in row["seeds"][place]["broken_by"] if item["attack"] == name)
            for row in rows
        ]
        for place in range(seeds)
    ]


def _cells(rows: Sequence[VerdictRow]) -> dict[str, list[str]]:
    """Return the ids of an attack's cells, those at the largest budget first."""
    found: dict[str, dict[str, None]] = {}
    for row in reversed(rows):
        for item in (item for seed in row["seeds"] for item in seed["broken_by"]):
            found.setdefault(item["attack"], {}).update(dict.fromkeys(item["cells"]))
    return {name: list(cells) for name, cells in found.items()}


def _each(seeds: Sequence[Sequence[int]]) -> list[str]:
    """Return a count a budget, values of several seeds one after another."""
    return [" / ".join(str(count) for count in counts) for counts in zip(*seeds, strict=True)]


def _standing(mine: Sequence[SourcesRow]) -> str:
    """Return in words which sources nothing breaks."""
    told = []
    for row in mine:
        last = len(row["budgets"])
        left = [
            sample
            for place, sample in enumerate(row["samples"])
            if row["correct"][place] == "1"
            and not any(reach["breaks"][place] in PLACES[:last] for reach in row["reach"])
        ]
        names = ", ".join(str(sample) for sample in left) if left else "none"
        told.append(f"seed {row['seed']}: {names}" if len(mine) > 1 else names)
    return "; ".join(told)


def _curve(rows: Sequence[VerdictRow]) -> Markup:
    """Return worst case, naive attack and undefended network against the budget, a line a seed."""
    lines: dict[str, dict[int, list[tuple[float, float]]]] = {kind: {} for kind in KINDS}
    clean = next((row["curve"] for row in rows if row["curve"] is not None), None)
    for kind, key in (("worst", "worst_case"), ("plain", "undefended")):
        starts: Any = clean[key] if clean is not None else {}  # type: ignore[literal-required]
        for seed, line in starts.items():
            if line is not None and clean is not None and clean["at"][0] == 0:
                lines[kind].setdefault(int(seed), []).append((0.0, line[0]))
    for row in rows:
        for seed in row["seeds"]:
            values = {"worst": seed["worst_case"], "naive": seed["naive"],
                      "plain": None if row["rule"] is None else seed["undefended"]}  # fmt: skip
            for kind, value in values.items():
                if value is not None:
                    lines[kind].setdefault(seed["seed"], []).append((row["at"], value))
    series = [
        Series(kind, seeded(KINDS[kind], seed, lines[kind]), sorted(set(points)))
        for kind in ("plain", "naive", "worst")
        for seed, points in lines[kind].items()
        if kind != "plain" or any(row["rule"] is not None for row in rows)
    ]
    told = "; ".join(
        f"{line.name}: " + ", ".join(f"{percent(v)} at {given(x)}" for x, v in line.points)
        for line in series
    )
    unit = {"l0": "features changed", "l2": "budget, L2", "linf": "budget ε, L∞"}
    return axes("Accuracy left in per cent against the budget", told, series,
                unit.get(rows[0]["threat"]["norm"], "budget"))  # fmt: skip


def seeded(name: str, seed: int, seeds: Collection[int]) -> str:
    """Return the name of a line, with its training seed where there are several."""
    return f"{name}, seed {seed}" if len(seeds) > 1 else name


def _raised(rows: Sequence[VerdictRow], models: Sequence[ModelRow]) -> list[Raised]:
    """Return every flag once, as it was raised first, warnings before what only says something."""
    found: dict[str, tuple[FlagRow, dict[int, None]]] = {}
    headline = [row for row in rows if row["headline"]] or rows[-1:]
    for row in (*_seeds([*headline, *rows]), *models):
        for flag in row["flags"]:
            found.setdefault(flag["id"], (flag, {}))[1][row["seed"]] = None
    order = {"error": 0, "warning": 1, "info": 2}
    made = [Raised(flag, list(seeds)) for flag, seeds in found.values()]
    return sorted(made, key=lambda one: order.get(one.flag["severity"], 3))


def _facts(models: Sequence[ModelRow]) -> list[tuple[str, str]]:
    """Return what was measured on the models without an attack, values a seed."""
    shown: list[tuple[str, str, Callable[[Any], str]]] = [
        ("clean accuracy", "accuracy", percent),
        ("mean confidence", "confidence", percent),
        ("mean max logit", "max_logit", number),
        ("mean logit gap", "logit_gap", number),
        ("calibration error (ECE)", "ece", percent),
        ("weights", "parameters", lambda value: UNDEFINED if value is None else f"{value:,}"),
    ]
    rows: list[Row] = list(models)
    return [
        (name, " / ".join(dict.fromkeys(show(row.get(key)) for row in rows)))
        for name, key, show in shown
        if any(row.get(key) is not None for row in rows)
    ]


def _document(of: Row) -> str:
    names = ("dataset", "network", "recipe", "defense", "defense_params")
    return json.dumps({name: of[name] for name in names}, ensure_ascii=False)
