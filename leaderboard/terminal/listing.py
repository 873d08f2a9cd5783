"""What ``list`` and ``--dry-run`` say."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from bench.base.text import nearest, one_line
from bench.base.types import UserError
from bench.claims.claim import claim_names, load_claim
from bench.plan.graph import Plan, data_name
from bench.plan.matrix import load_matrix, matrix_names
from bench.plugins.recipes import RECIPES
from bench.plugins.registry import REGISTRIES
from leaderboard.terminal.say import grid, relative, say


def show_plan(plan: Plan, classes: int, test: int, folder: Path) -> None:
    """Print what a run would do."""
    matrix = plan.matrix
    sources = test if matrix.sources == "all" else matrix.sources
    attempts = 0
    for node in plan.of("cell"):
        attempts += sources * (classes - 1 if node.attack().targets == "all" else 1)
    say(f"matrix {matrix.name} on {data_name(plan.dataset)}, network {plan.network['name']}, "
               f"recipe {plan.recipe}, seeds {matrix.seeds}")  # fmt: skip
    counts = {kind: len(plan.of(kind)) for kind in ("fit", "probe", "cell")}
    learnt = len(plan.of("attack-fit"))
    attacks = f"{learnt} fits of attacks, " if learnt else ""
    say(f"{counts['fit']} fits, {counts['probe']} probes, {attacks}{counts['cell']} cells, "
               f"at most {attempts:,} attempts on {sources} sources")  # fmt: skip
    say(f"results in {relative(folder)}\n")
    say(grid(pd.DataFrame([_fit_line(plan, node.id) for node in plan.of("fit")])))


def _fit_line(plan: Plan, fit: str) -> dict[str, object]:
    node = next(item for item in plan.of("fit") if item.id == fit)
    spec = node.document["defense"]
    cells = [cell for cell in plan.of("cell") if cell.needs["model"] == fit]
    named = {item.id: item.document["defense"]["name"] for item in plan.of("fit")}
    return {
        "fit": node.id[:8],
        "defense": spec["name"],
        "parameters": _parameters(spec["params"]),
        "seed": node.document["seed"],
        "needs": ", ".join(f"{named[need]} {need[:8]}" for need in node.needs.values()),
        "cells": len(cells),
    }


def _parameters(params: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in params.items())


def show_listing(what: str | None) -> None:
    """Print registered names of one kind or of all, or one name's parameters."""
    tables = {kind: _names(kind) for kind in REGISTRIES}
    tables["matrices"] = [(name, load_matrix(name).description) for name in matrix_names()]
    tables["claims"] = [(name, load_claim(name).description) for name in claim_names()]
    tables["recipes"] = [(name, _parameters(vars(recipe))) for name, recipe in RECIPES.items()]
    if what is None or what in tables:
        for kind in [what] if what else tables:
            say(f"{kind}", bold=True)
            rows = [(one_line(name), one_line(about)) for name, about in tables[kind]]
            say(tabulate(rows, tablefmt="plain", disable_numparse=True) + "\n")
        return
    found = [kind for kind, rows in tables.items() if what in [name for name, _ in rows]]
    if not found:
        every = [*tables, *(name for rows in tables.values() for name, _ in rows)]
        raise UserError(f"nothing is called {what!r}: {nearest(what, every)}")
    for kind in found:
        _show_one(kind, what)


def _names(kind: str) -> list[tuple[str, str]]:
    rows = []
    for name in REGISTRIES[kind].names():
        try:
            cls = REGISTRIES[kind].get(name)
            rows.append((name, (inspect.getdoc(cls) or "").partition("\n")[0]))
        except UserError as error:
            rows.append((name, f"broken: {error}"))
    return rows


def _show_one(kind: str, name: str) -> None:
    if kind == "matrices":
        matrix = load_matrix(name)
        say(f"{name}: {matrix.description}")
        for title, specs in (("defenses", matrix.defenses()), ("attacks", matrix.attacks())):
            say(title, bold=True)
            say("\n".join(f"  {s.name} {_parameters(dict(s.params))}" for s in specs))
        return
    if kind == "claims":
        claim = load_claim(name)
        say(f"{name}: {claim.description}\n{claim.reference}".rstrip())
        return
    if kind == "recipes":
        say(f"{name}: {_parameters(vars(RECIPES[name]))}")
        return
    cls = REGISTRIES[kind].get(name)
    say(f"{name}  ({REGISTRIES[kind].origin(name)})", bold=True)
    say(inspect.getdoc(cls) or "")
    fields = [(f.name, str(f.type), _default(f)) for f in dataclasses.fields(cls) if f.init]
    if fields:
        say("\n" + tabulate(fields, headers=("parameter", "type", "default"), tablefmt="simple"))


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return (
        "required"
        if field.default_factory is dataclasses.MISSING
        else repr(field.default_factory())
    )
