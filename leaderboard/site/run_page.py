"""``index.html`` of a run, made from its rows and its environment alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup, escape

from bench.base.rows import CellRow, Results
from bench.evidence.cells import waived
from leaderboard.figures.svg import legend
from leaderboard.findings.museum import museum
from leaderboard.site.citations import cited
from leaderboard.site.document import document
from leaderboard.site.heat import heat_maps, sweeps
from leaderboard.site.verdicts import norm_tables
from leaderboard.tables.cells import defense_labels, labels, model_table
from leaderboard.tables.headline import headline
from leaderboard.tables.summary import warned
from leaderboard.tables.verdicts import MEANING, verdict_tables

TROUBLES = 200
"""Failures and skips that are listed; more of them are counted."""


def run_page(results: Results, environment: Mapping[str, Any]) -> str:
    """Return the page; ``environment`` as ``environment.json`` holds it.

    The same rows give the same bytes, here and where they were published.
    """
    matrix = environment["matrix"]
    troubles = _troubles(results.cells)
    return document(
        "run.html.j2",
        title=f"{matrix['name']} on {environment['dataset']}",
        environment=environment,
        facts=_facts(results, environment),
        headline=headline(results) if not results.verdicts else "",
        norms=norm_tables(results),
        museum=museum(results),
        heats=heat_maps(results),
        sweeps=sweeps(verdict_tables(results.verdicts)),
        sweep_key=legend({"worst": "all attacks", "naive": "naive attack"}),
        meaning=_strong(MEANING),
        models=model_table(results.cells).to_dict("records") if results.cells else [],
        attacks=_attacks(results.cells),
        warnings=warned(results.cells, results.verdicts),
        troubles=troubles[:TROUBLES],
        more_troubles=max(0, len(troubles) - TROUBLES),
        done=len(results.cells) - len(troubles),
        cells=len(results.cells),
        mapped=bool(results.sources),
        command=_command(matrix),
        references=cited(_names(results)),
        matrix=json.dumps(matrix, ensure_ascii=False, indent=1),
    )


def _strong(text: str) -> Markup:
    """Return text with ``**words**`` strong and ``*words*`` emphasised."""
    told = str(escape(text))
    for mark, tag in (("**", "strong"), ("*", "em")):
        parts = told.split(mark)
        told = "".join(
            part if number % 2 == 0 else f"<{tag}>{part}</{tag}>"
            for number, part in enumerate(parts)
        )
    return Markup(told)  # noqa: S704 (escaped above)


def _facts(results: Results, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    matrix = environment["matrix"]
    models = {(row["defense"], repr(row["defense_params"])) for row in results.models}
    return [
        ("data", str(environment["dataset"])),
        ("network", str(environment["network"])),
        ("recipe", str(environment["recipe"])),
        ("sources", str(matrix["sources"])),
        ("training seeds", ", ".join(str(seed) for seed in matrix["seeds"])),
        ("defenses", str(len(models))),
        ("cells", str(len(results.cells))),
    ]


def _attacks(cells: Iterable[CellRow]) -> list[tuple[str, str, str]]:
    """Return every attack once: its name in tables, its parameters, how many cells."""
    rows = list(cells)
    found: dict[str, tuple[str, int]] = {}
    for name, row in zip(labels(rows, "attack"), rows, strict=True):
        params = json.dumps(row["attack_params"], ensure_ascii=False)
        found[name] = (params, found.get(name, ("", 0))[1] + 1)
    return [(name, params, str(count)) for name, (params, count) in found.items()]


def _troubles(cells: Iterable[CellRow]) -> list[tuple[str, str, str, str]]:
    rows = list(cells)
    named = zip(rows, defense_labels(rows), labels(rows, "attack"), strict=True)
    return [
        (row["status"], f"{defense} under {attack}", row["reason"] or "", row["id"])
        for row, defense, attack in named
        if row["status"] != "done" and not waived(row)
    ]


def _command(matrix: Mapping[str, Any]) -> str:
    words = ["python", "-m", "bench", "run", "--matrix", str(matrix["name"])]
    return " ".join(shlex.quote(word) for word in words)


def _names(results: Results) -> list[str]:
    names = [row["attack"] for row in results.cells]
    names += [row["defense"] for row in (*results.models, *results.cells)]
    inner = [row["attack_params"].get("attack") for row in results.cells]
    names += [value["name"] for value in inner if isinstance(value, dict) and "name" in value]
    return [name for name in names if isinstance(name, str)]
