"""What ``verify``, ``explain`` and ``diff`` print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.audit.diff import CellPair, Changes, RunComparison
from bench.audit.repeat_command import repeat_command
from bench.audit.verify_folder import Verification
from bench.audit.verify_rows import CONFIDENCE
from bench.base.rows import CellRow, FlagRow, VerdictRow
from bench.base.text import nearest, one_line
from bench.base.types import ThreatModel, UserError
from bench.evidence.cells import Evidence
from bench.evidence.finished_run import FinishedRun
from bench.plan.graph import Node
from leaderboard.tables.cells import labels
from leaderboard.tables.numbers import UNDEFINED, given, number, percent
from leaderboard.terminal.say import grid, relative, say

ROWS = 8
"""Records that ``explain`` shows."""

SHOWN = (
    "sample_id", "status", "label", "target", "clean_prediction", "adversarial_prediction",
    "adversarial_confidence", "success", "l0_features", "l2", "linf", "iterations", "stop_reason",
)  # fmt: skip

HEADLINE = ("status", "success_rate", "worst_case")
"""What ``diff`` shows of a cell."""

DISTANCES = ("l0_features", "l2", "linf")
"""Columns that mean nothing where an input has no source."""


def show_verification(run: FinishedRun, found: Verification) -> None:
    """Print every difference, then the notes, what was made anew, and one line with counts.

    The last line is left out where part of the work was refused.
    """
    for item in found.differences:
        say(f"{item.node}: {item.what}", fg="red")
        say(f"    stored      {_short(item.stored)}")
        say(f"    recomputed  {_short(item.recomputed)}")
    for note in found.notes:
        say(f"note: {note}", fg="yellow")
    if found.choice is not None and found.refused is None:
        say(_again(found))
    if found.refused is not None:
        return
    counted = ", ".join(f"{number} {what}" for what, number in found.counts.items())
    how = "exact, on a machine like the run's"
    if found.mode == "tolerant":
        how = (
            f"another machine than the run's: confidences within {given(CONFIDENCE)}, "
            f"{found.changed} predictions changed on near ties"
        )
    number = len(found.differences)
    verdict = "verified" if found.repeated else "consistent with itself"
    if number:
        verdict = f"{number} differences"
    say(f"{verdict}: {relative(run.folder.root)}: {counted} ({how})")


def _again(found: Verification) -> str:
    """Say what was made anew, and what came of it."""
    assert found.choice is not None
    made = Counter(item.kind for item in found.repeated)
    came = Counter(item.outcome for item in found.repeated)
    told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(came.items())) or "none"
    by = f"--seed {found.choice.seed}"
    return f"made anew: {made['cell']} cells, {made['fit']} fits ({by}): {told}"


def show_cell(run: FinishedRun, node: Node) -> None:
    """Print a cell: outcome, key document, metrics, flags, records, the command to repeat."""
    evidence = Evidence(run.folder, "cell", node.id)
    document = evidence.document
    row = run.row(node)
    _title(_cell_name(row, run.rows) if row else node.id)
    outcome = document.get("outcome") or {}
    reason = f": {outcome['reason']}" if outcome.get("reason") else ""
    say(f"cell {node.id}  {outcome.get('status', 'unknown')}{reason}")
    _title("\nkey document")
    say(json.dumps(document.get("key") or node.document, indent=1, ensure_ascii=False))
    _title("\nmetrics")
    for name, value in (row or {}).items():
        if name != "flags":
            say(f"{name:<24}{_short(value)}")
    _show_flags(row["flags"] if row else [])
    _show_records(evidence, row)
    _title("\nrepeat")
    command, matrix = repeat_command(run, str((document.get("key") or {}).get("device", "auto")))
    say(command)
    if matrix is not None:
        say(
            f"\nwith {run.plan.matrix.name}.toml (and the run's --plugin, if it had one):\n{matrix}"
        )


def _show_flags(flags: list[FlagRow]) -> None:
    _title("\nflags")
    for flag in flags:
        say(f"{flag['severity']:<8}{flag['id']}: {flag['evidence']}; {flag['advice']}")
    if not flags:
        say("none")


def _show_records(evidence: Evidence, row: CellRow | None) -> None:
    if "files" not in evidence.document:
        return
    records = evidence.records()
    _title(f"\nrecords ({len(records)})")
    for column in ("status", "stop_reason"):
        counts = records[column].value_counts(dropna=False).sort_index()
        say(f"{column}: " + ", ".join(f"{_reason(name)} {count}" for name, count in counts.items()))
    hidden = DISTANCES if row and row["threat"]["norm"] == "none" else ()
    shown = [name for name in SHOWN if name in records and name not in hidden]
    say("\n" + grid(records[shown].head(ROWS).map(_figure)))


def _reason(name: object) -> str:
    return "none given" if pd.isna(name) else one_line(str(name))  # type: ignore[call-overload]


def _figure(value: Any) -> str:
    if pd.isna(value):
        return UNDEFINED
    return number(value, 4) if isinstance(value, float) else one_line(str(value))


def named_cell(rows: list[CellRow], defense: str, attack: str) -> str:
    """Return the id of the one cell of a defense and an attack, named as in tables.

    A name without its parameters will do where it is the only one; raises UserError otherwise.
    """
    pairs = zip(rows, labels(rows, "defense"), labels(rows, "attack"), strict=True)
    named = [(row, first, second) for row, first, second in pairs]
    found = [one for one in named if one[1:] == (defense, attack)] or [
        one for one in named
        if defense in (one[1], one[0]["defense"]) and attack in (one[2], one[0]["attack"])
    ]  # fmt: skip
    if len(found) == 1:
        return str(found[0][0]["id"])
    shown = [f"{row['id']}  {one} under {two}, seed {row['seed']}" for row, one, two in found]
    if not shown:
        every = [nearest(defense, {n[1] for n in named}), nearest(attack, {n[2] for n in named})]
        raise UserError(f"no cell is {defense!r} under {attack!r}: {'; '.join(every)}")
    listed = "\n  ".join(shown)
    raise UserError(f"{len(found)} cells are {defense!r} under {attack!r}:\n  {listed}")


def _subject(row: VerdictRow) -> str:
    return repr([row["dataset"], row["defense"], row["defense_params"], row["threat"]])


def show_verdict_changes(first: Sequence[VerdictRow], second: Sequence[VerdictRow]) -> None:
    """Print the verdicts that differ between two runs, and why each was given."""
    others = {_subject(row): row for row in second}
    for label, row in zip(labels(first, "defense"), first, strict=True):
        other = others.get(_subject(row))
        if other is not None and other["verdict"] != row["verdict"]:
            _title(f"{label}, {ThreatModel(**row['threat'])}")
            say(f"  verdict: {row['verdict']} → {other['verdict']}")
            say(f"  because {row['why']} → {other['why']}")


def show_comparison(compared: RunComparison, whole: bool = False) -> None:
    """Print what changed in every pair of cells, and the key fields that explain it.

    Of the numbers success and worst case, or all with ``whole``.
    """
    every = [pair.first for pair in compared.pairs] + compared.only_first + compared.only_second
    every += [pair.second for pair in compared.pairs]
    for pair in compared.pairs:
        if pair.numbers:
            _show_pair(pair, every, whole)
    for where, rows in (("first", compared.only_first), ("second", compared.only_second)):
        for row in rows:
            say(f"only in the {where}: {_cell_name(row, every)} ({row['id']})")
    changed = [pair for pair in compared.pairs if pair.numbers]
    silent = sum(bool(pair.keys) for pair in compared.pairs if not pair.numbers)
    failures = sum(pair.failure for pair in changed)
    say(f"{len(compared.pairs)} cells compared, {len(changed)} with changed numbers, "
         f"{silent} with the same numbers from other keys")  # fmt: skip
    if failures:
        message = f"{failures} cells changed though nothing recorded did: a reproducibility failure"
        say(message, fg="red")


def _show_pair(pair: CellPair, every: list[CellRow], whole: bool) -> None:
    _title(_cell_name(pair.first, every))
    if pair.first["id"] != pair.second["id"]:
        say(f"  cells {pair.first['id']} and {pair.second['id']}")
    shown = {name: pair.numbers[name] for name in HEADLINE if name in pair.numbers}
    if whole:
        _show_changes("  ", pair.numbers)
    else:
        for name, (first, second) in shown.items():
            say(f"  {name}: {_brief(first)} → {_brief(second)}")
        if rest := len(pair.numbers) - len(shown):
            say(f"  {rest} {'more ' if shown else ''}numbers: --all")
    if pair.keys:
        say("  explained by")
        _show_changes("    ", pair.keys)
    if pair.environment:
        say("  recorded beside the keys" if pair.keys else "  no key field differs; recorded")
        _show_changes("    environment: ", pair.environment)
    if pair.failure:
        say("  no key field differs: a reproducibility failure", fg="red")


def _show_changes(indent: str, changed: Changes) -> None:
    for path, (first, second) in changed.items():
        say(f"{indent}{path}: {_short(first)} → {_short(second)}")


def _brief(value: object) -> str:
    return percent(value) if isinstance(value, float) else _short(value)


def _cell_name(row: CellRow, every: list[CellRow]) -> str:
    place = next(number for number, item in enumerate(every) if item is row)
    defense, attack = labels(every, "defense")[place], labels(every, "attack")[place]
    return f"{defense} under {attack}, seed {row['seed']}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = one_line(text)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _title(text: str) -> None:
    say(text, bold=True)
