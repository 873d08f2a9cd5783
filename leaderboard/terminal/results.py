"""What the command line prints: plans, results and listings as plain tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.base.rows import CellRow, VerdictRow, attack_of, warns
from bench.base.types import Results
from bench.verdict.rule import MARGIN
from leaderboard.tables.cells import Row, labels, success_table, threat_tables, troubles
from leaderboard.tables.verdicts import raised, reasons, verdict_table, verdict_tables
from leaderboard.terminal.say import grid, relative, say


def show_results(
    results: Results, folder: Path, attacks: Sequence[Row], traces: Sequence[str] = ()
) -> None:
    """Print cells, then verdicts, then failures and flags, then where the files are.

    ``attacks``: documents of the matrix's own; what its panels did is summed up in the verdicts.
    """
    rows = results.cells
    own = [r for r in rows if attack_of(r) in attacks]
    groups = threat_tables(own)
    for group in groups:
        say(f"\n{group.title}: success rate", bold=True)
        say(grid(success_table(group, brief=True)))
    if any(group.threat.norm != "none" for group in groups):
        say("\n▲ highest and ▼ lowest success of a column; worst case: accuracy left on the")
        say("sources when every stored input within norm and budget counts.")
    elif groups:
        say("\n▲ highest and ▼ lowest success of a column.")
    if any(group.threat.norm == "none" for group in groups):
        say("any input: an attempt starts from noise, has no source, and counts nowhere else.")
    _show_verdicts(results.verdicts)
    _show_troubles(rows)
    for trace in traces:
        say(trace)
    shown = relative(folder)
    say(f"\n{shown}/leaderboard.md  with intervals and denominators")
    say(f"{shown}/results.json    one object a cell; verdicts.json one a defense and budget")
    say(f"{shown}/cells/          a record and an input of every attempt")


def _show_verdicts(rows: Sequence[VerdictRow]) -> None:
    """Print the verdicts under each norm and why the inconclusive ones are."""
    for group in verdict_tables(rows):
        say(f"\n{group.title}: verdicts", bold=True)
        say(grid(verdict_table(group, brief=True)))
        for name, row in reasons(group):
            if row["verdict"] == "inconclusive":
                say(f"inconclusive: {name}: {row['why']}", fg="yellow")
    if rows:
        points = f"{100 * MARGIN:g} points"
        say(f"\nholds: surely {points} above the undefended network against the whole panel;")
        say("broken: surely not; masked: one attack fails by itself, its figure is no evidence.")
    for (name, advice), defenses in raised(rows).items():
        say(f"flag {name}: {_some(defenses)}; {advice}", fg="yellow")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _show_troubles(rows: Sequence[CellRow]) -> None:
    named = zip(rows, labels(rows, "defense"), labels(rows, "attack"), strict=True)
    names = {row["id"]: f"{defense} under {attack}" for row, defense, attack in named}
    flags: dict[tuple[str, str], list[str]] = {}
    for row in troubles(rows):
        if row["status"] != "done":
            colour = "red" if row["status"] == "failed" else "yellow"
            say(f"{row['status']}: {names[row['id']]}: {row['reason']}", fg=colour)
        for flag in row["flags"]:
            if warns(flag):
                flags.setdefault((flag["id"], flag["advice"]), []).append(names[row["id"]])
    for (name, advice), cells in flags.items():
        say(f"flag {name} in {len(cells)} cells: {_some(cells)}; {advice}", fg="yellow")
