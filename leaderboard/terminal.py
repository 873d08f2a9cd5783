"""What the command line prints: plans, results and listings as plain tables."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from tabulate import tabulate

from bench import registry
from bench.claim import claim_names, load_claim
from bench.config import load_matrix, matrix_names
from bench.plan import Plan
from bench.registry import REGISTRIES
from bench.text import nearest, one_line, plain
from bench.training import RECIPES
from bench.types import Results, Spec, UserError
from leaderboard.tables import Row, labels, success_table, threat_tables, troubles
from leaderboard.verdicts import raised, reasons, verdict_table, verdict_tables


def _say(text: str, **style: Any) -> None:
    # The one door to the terminal: names and messages come from plugins and matrices.
    typer.secho(plain(text), **style)


def show_results(
    results: Results, folder: Path, attacks: Sequence[Row], traces: Sequence[str] = ()
) -> None:
    """Print cells, then verdicts, then failures and flags, then where the files are.

    ``attacks``: documents of the matrix's own; what its panels did is summed up in the verdicts.
    """
    rows = results.cells
    own = [r for r in rows if {"name": r["attack"], "params": r["attack_params"]} in attacks]
    groups = threat_tables(own)
    for group in groups:
        _say(f"\n{group.title}: success rate", bold=True)
        _say(grid(success_table(group, brief=True)))
    if any(group.threat.norm != "none" for group in groups):
        _say("\n▲ highest and ▼ lowest success of a column; worst case: accuracy left on the")
        _say("sources when every stored input within norm and budget counts.")
    elif groups:
        _say("\n▲ highest and ▼ lowest success of a column.")
    if any(group.threat.norm == "none" for group in groups):
        _say("any input: an attempt starts from noise, has no source, and counts nowhere else.")
    _show_verdicts(results.verdicts)
    _show_troubles(rows)
    for trace in traces:
        _say(trace)
    shown = relative(folder)
    _say(f"\n{shown}/leaderboard.md  with intervals and denominators")
    _say(f"{shown}/results.json    one object a cell; verdicts.json one a defense and budget")
    _say(f"{shown}/cells/          a record and an input of every attempt")


def _show_verdicts(rows: Sequence[Row]) -> None:
    """Print the verdicts under each norm and why the inconclusive ones are."""
    for group in verdict_tables(rows):
        _say(f"\n{group.title}: verdicts", bold=True)
        _say(grid(verdict_table(group, brief=True)))
        for name, row in reasons(group):
            if row["verdict"] == "inconclusive":
                _say(f"inconclusive: {name}: {row['why']}", fg="yellow")
    if rows:
        _say("\nholds: surely 10 points above the undefended network against the whole panel;")
        _say("broken: surely not; masked: one attack fails by itself, its figure is no evidence.")
    for (name, advice), defenses in raised(rows).items():
        _say(f"flag {name}: {_some(defenses)}; {advice}", fg="yellow")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _show_troubles(rows: Sequence[Row]) -> None:
    named = zip(rows, labels(rows, "defense"), labels(rows, "attack"), strict=True)
    names = {row["id"]: f"{defense} under {attack}" for row, defense, attack in named}
    flags: dict[tuple[str, str], list[str]] = {}
    for row in troubles(rows):
        if row["status"] != "done":
            colour = "red" if row["status"] == "failed" else "yellow"
            _say(f"{row['status']}: {names[row['id']]}: {row['reason']}", fg=colour)
        for flag in row["flags"]:
            if flag["severity"] != "info":
                flags.setdefault((flag["id"], flag["advice"]), []).append(names[row["id"]])
    for (name, advice), cells in flags.items():
        _say(f"flag {name} in {len(cells)} cells: {_some(cells)}; {advice}", fg="yellow")


def show_plan(plan: Plan, classes: int, test: int, folder: Path) -> None:
    """Print what a run would do."""
    matrix = plan.matrix
    sources = test if matrix.sources == "all" else matrix.sources
    attempts = 0
    for node in plan.of("cell"):
        spec = node.document["attack"]
        attack = registry.ATTACKS.make(Spec(spec["name"], spec["params"]))
        attempts += sources * (classes - 1 if attack.targets == "all" else 1)
    _say(f"matrix {matrix.name} on {plan.dataset['name']}, network {plan.network['name']}, "
               f"recipe {plan.recipe}, seeds {matrix.seeds}")  # fmt: skip
    counts = {kind: len(plan.of(kind)) for kind in ("fit", "probe", "cell")}
    _say(f"{counts['fit']} fits, {counts['probe']} probes, {counts['cell']} cells, "
               f"at most {attempts:,} attempts on {sources} sources")  # fmt: skip
    _say(f"results in {relative(folder)}\n")
    _say(grid(pd.DataFrame([_fit_line(plan, node.id) for node in plan.of("fit")])))


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
            _say(f"{kind}", bold=True)
            rows = [(one_line(name), one_line(about)) for name, about in tables[kind]]
            _say(tabulate(rows, tablefmt="plain", disable_numparse=True) + "\n")
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
        _say(f"{name}: {matrix.description}")
        for title, specs in (("defenses", matrix.defenses()), ("attacks", matrix.attacks())):
            _say(title, bold=True)
            _say("\n".join(f"  {s.name} {_parameters(dict(s.params))}" for s in specs))
        return
    if kind == "claims":
        claim = load_claim(name)
        _say(f"{name}: {claim.description}\n{claim.reference}".rstrip())
        return
    if kind == "recipes":
        _say(f"{name}: {_parameters(vars(RECIPES[name]))}")
        return
    cls = REGISTRIES[kind].get(name)
    _say(f"{name}  ({REGISTRIES[kind].origin(name)})", bold=True)
    _say(inspect.getdoc(cls) or "")
    fields = [(f.name, str(f.type), _default(f)) for f in dataclasses.fields(cls) if f.init]
    if fields:
        _say("\n" + tabulate(fields, headers=("parameter", "type", "default"), tablefmt="simple"))


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return (
        "required"
        if field.default_factory is dataclasses.MISSING
        else repr(field.default_factory())
    )


def grid(frame: pd.DataFrame) -> str:
    """Return ``frame`` as a plain table, text left and figures right."""
    aligned = ["left", *["right"] * (len(frame.columns) - 1)]
    text: str = tabulate(
        frame.astype(str).map(one_line).values.tolist(),
        headers=[one_line(str(name)) for name in frame.columns],
        tablefmt="simple",
        colalign=aligned,
        disable_numparse=True,
    )
    return text


def relative(folder: Path) -> Path:
    """Return ``folder`` as seen from here, where it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
