"""What a run says at its end, in one screen, and the tables of ``show``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.base.rows import CellRow, Results
from bench.base.text import nearest
from bench.base.types import UserError
from bench.evidence.cells import waived
from leaderboard.tables.cells import labels, model_table, success_table, threat_tables
from leaderboard.tables.numbers import UNDEFINED, given
from leaderboard.tables.summary import (
    Warned,
    attack_summary,
    reasoned,
    summary_table,
    undefended,
    warned,
)
from leaderboard.tables.verdicts import VerdictTable, budget_table, verdict_table, verdict_tables
from leaderboard.terminal.say import WIDTH, grid, paragraph, relative, say

LINES = 24
"""Lines of a table without verdicts; the rest is behind ``show``."""

REASONS = 2
"""Reasons and failures that are told; the rest is behind ``show`` and on the page."""

SHOWN = (("holds", "green"), ("inconclusive", "yellow"), ("no reference", "yellow"))
"""Verdicts whose reasons are told, and in which colour."""

PAGES = ("findings.md", "distillation.md", "agreement.md", "cost.md")
"""What a matrix's ``report`` adds to ``leaderboard.md``."""


def show_results(
    results: Results, environment: dict[str, Any], folder: Path, traces: Sequence[str] = ()
) -> None:
    """Print what a run came to, what it warns of, what failed, and where everything is.

    ``environment`` as ``environment.json`` holds it; ``traces``: of what failed, with --debug.
    """
    say("")
    say(_title(results, environment), bold=True)
    tables = verdict_tables(results.verdicts)
    for table in tables:
        _show_verdicts(table)
    if tables:
        _show_meaning(tables)
    else:
        _show_attacks(results.cells)
    show_trouble(results)
    for trace in traces:
        say(trace)
    _show_files(folder)


def show_trouble(results: Results) -> None:
    """Print what a run warns of, and which cells did not finish."""
    _show_warning(warned(results.cells, results.verdicts))
    _show_failures(results.cells)


def _show_meaning(tables: Sequence[VerdictTable]) -> None:
    """Say in two lines what the verdicts mean, of those that can be among them."""
    if any(table.compared for table in tables):
        say("\nholds: 10 points surely above the undefended network, no warning, 3 seeds;")
    else:
        say("\nno reference: how much stands is said, and not whether that is a gain;")
    say("broken: surely not; masked: an attack fails by itself, no evidence.")


def _title(results: Results, environment: dict[str, Any]) -> str:
    matrix = environment["matrix"]
    models = len({(row["defense"], repr(row["defense_params"])) for row in results.models})
    seeds = ", ".join(str(seed) for seed in matrix["seeds"])
    return (
        f"{matrix['name']} on {environment['dataset']}: {models} defenses, "
        f"{matrix['sources']} sources, seed{'s' if len(matrix['seeds']) > 1 else ''} {seeds}"
    )


def _show_verdicts(table: VerdictTable) -> None:
    """Print the verdicts under one norm at its headline budget, and why some are open."""
    shown = table.shown[0]
    others = dict.fromkeys(given(row["at"]) for row in table.rows if row["at"] != shown["at"])
    also = f" (also: {', '.join(others)})" if others else ""
    plain = undefended(table)
    left = "accuracy left in %" + ("" if plain == UNDEFINED else f", {table.reference} {plain}")
    say(f"\n{table.norm_name}, {table.at(shown)}{also}: {left}", bold=True)
    say(grid(summary_table(table), WIDTH))
    for verdict, colour in SHOWN:
        reasons = reasoned(table, verdict)
        for why, names in reasons[:REASONS]:
            paragraph(f"{verdict}: {_some(names)}: {why}", fg=colour)
        if len(reasons) > REASONS:
            say(f"and {len(reasons) - REASONS} more reasons: leaderboard.md")


def _show_attacks(cells: Sequence[CellRow]) -> None:
    frame = attack_summary(threat_tables(cells))
    if frame.empty:
        return
    if frame["threat"].nunique() == 1:
        say(f"{frame['threat'].iloc[0]}", bold=True)
        frame = frame.drop(columns="threat")
    kept = min(len(frame), LINES)
    while len(text := grid(frame.head(kept), WIDTH).splitlines()) > LINES + 4 and kept > 1:
        kept -= 1  # wrapped lines count too
    say("\n".join(text))
    if kept < len(frame):
        say(f"and {len(frame) - kept} more lines: --table attacks")
    say("worst case: accuracy left when every input within norm and budget counts")


def _show_warning(found: Sequence[Warned]) -> None:
    if not found:
        return
    first = found[0]
    paragraph(
        f"\nWARNING {first.flag}: {_some(first.raised_by)}; {first.advice}", fg="yellow", bold=True
    )
    if len(found) > 1:
        names = ", ".join(dict.fromkeys(one.flag for one in found[1:] if one.flag != first.flag))
        paragraph(f"also flagged: {names or first.flag} (--table flags)")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _show_failures(cells: Sequence[CellRow]) -> None:
    """Print how many cells did not finish, and the first of them with its reason."""
    ended = [(row, name) for row, name in zip(cells, _names(cells), strict=True)
             if row["status"] != "done" and not waived(row)]  # fmt: skip
    failed = sum(row["status"] == "failed" for row, _ in ended)
    if ended:
        say(
            f"\n{failed} of {len(cells)} cells failed, {len(ended) - failed} were skipped", fg="red"
        )
    for row, name in ended[:REASONS]:
        paragraph(f"{row['status']}: {name}: {row['reason']}")
    if len(ended) > REASONS:
        say(f"and {len(ended) - REASONS} more: leaderboard.md")


def _names(cells: Sequence[CellRow]) -> list[str]:
    pairs = zip(labels(cells, "defense"), labels(cells, "attack"), strict=True)
    return [f"{defense} under {attack}" for defense, attack in pairs]


def _show_files(folder: Path) -> None:
    shown = relative(folder)
    pages = [name for name in ("index.html", *PAGES) if (folder / name).exists()]
    figures = len(list((folder / "figures").glob("*.png")))
    drawn = [f"{figures} figures in figures/"] if figures else []
    say(f"{shown}/leaderboard.md")
    paragraph(f"beside it: {', '.join([*pages, *drawn, 'results.json', 'cells/'])}")
    paragraph(f"whole tables: show {shown} --table {'|'.join(TABLES)}")


def show_table(results: Results, name: str) -> None:
    """Print one of the wide tables of a run; raises UserError for a name that is none."""
    if name not in TABLES:
        raise UserError(f"there is no table {name!r}: {nearest(name, TABLES)}")
    TABLES[name](results)


def _verdicts(results: Results) -> None:
    for table in verdict_tables(results.verdicts):
        say(f"\n{table.title}", bold=True)
        say(grid(verdict_table(table)))


def _budgets(results: Results) -> None:
    for table in verdict_tables(results.verdicts):
        say(f"\n{table.title}", bold=True)
        say(grid(budget_table(table)))


def _attacks(results: Results) -> None:
    for table in threat_tables(results.cells):
        say(f"\n{table.title}: success rate", bold=True)
        say(grid(success_table(table)))


def _models(results: Results) -> None:
    say(grid(model_table(results.cells)))


def _flags(results: Results) -> None:
    for one in warned(results.cells, results.verdicts):
        paragraph(f"{one.severity} {one.flag}: {', '.join(one.raised_by)}; {one.advice}")


TABLES: dict[str, Callable[[Results], None]] = {
    "verdicts": _verdicts,
    "budgets": _budgets,
    "attacks": _attacks,
    "models": _models,
    "flags": _flags,
}
"""What ``show --table`` takes."""
