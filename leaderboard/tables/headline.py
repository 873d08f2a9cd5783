"""What a run came to, in one sentence made from its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.base.rows import Results, VerdictRow
from bench.base.types import ThreatModel
from leaderboard.tables.cells import Row, labels
from leaderboard.tables.museum import cases, exhibited, outcome
from leaderboard.tables.numbers import counted, given, points, ranged, shares
from leaderboard.tables.sweeps import PLAIN, SWEPT, jsma_cells, temperature_of
from leaderboard.tables.verdicts import VerdictTable, verdict_tables


def measured_on(results: Results) -> str:
    """Return what a run was measured on in a few words: data, network, sources, seeds."""
    rows = [*results.cells, *results.models]
    if not rows:
        return ""
    told = [", ".join(dict.fromkeys(str(row[name]) for row in rows))
            for name in ("dataset", "network", "recipe")]  # fmt: skip
    sources = max((row["sources"] or 0 for row in results.cells), default=0)
    seeds = sorted({row["seed"] for row in rows})
    words = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(str(seed) for seed in seeds)}"
    budgets = dict.fromkeys(str(ThreatModel(**row["threat"])) for row in results.cells)
    return "; ".join([*told, f"{sources} sources", words, *list(budgets)[:3]])


def headline(results: Results) -> str:
    """Return what a run came to in a sentence, from its numbers alone."""
    for found in cases(results):
        if exhibited(found):
            return f"{_panel(found[0].row)}: {outcome(found)}"
    if results.verdicts:
        return ". ".join(_verdicts(table) for table in verdict_tables(results.verdicts))
    return _distilled(results) or _paired(results) or _cells(results.cells)


def _panel(row: VerdictRow) -> str:
    table = VerdictTable(row["dataset"], row["threat"]["norm"], (row,))
    return f"{table.norm_name} {table.at(row)}"


def _verdicts(table: VerdictTable) -> str:
    judged = [row for row in table.shown if row["rule"] is not None]
    counts = Counter(str(row["verdict"]) for row in judged)
    told = "; ".join(f"{number} × {verdict}" for verdict, number in counts.most_common())
    names = dict(
        zip((row["id"] for row in table.shown), labels(table.shown, "defense"), strict=True)
    )
    held = [names[row["id"]] for row in judged if str(row["verdict"]).startswith("holds")]
    return f"{table.norm_name} {table.at(table.shown[0])}: {told}" + (
        f" (holds: {', '.join(held)})" if held else ""
    )


def _distilled(results: Results) -> str:
    """Return what JSMA reaches on the hottest distilled network, by what it differentiates."""
    hot = max((temperature_of(row) or 0.0 for row in results.models if row["defense"] == SWEPT),
              default=None)  # fmt: skip
    told = []
    for output, words in (("probs", "probabilities"), ("log_odds", "log-odds")):
        rows = [
            row
            for row in jsma_cells(results.cells, output)
            if row["success_rate"] is not None and row["threat"]["budget"] is not None
        ]
        mine = [r for r in rows if r["defense"] == SWEPT and (temperature_of(r) or 0.0) == hot]
        plain = [r for r in rows if r["defense"] == PLAIN]
        if mine and plain:
            told.append(
                f"{shares(r['success_rate'] for r in mine)} on {words} "
                f"(undefended {shares(r['success_rate'] for r in plain)})"
            )
    return f"JSMA on distillation at T = {given(hot)}: {', '.join(told)}" if told else ""


def _paired(results: Results) -> str:
    """Return how far a student of the first robust teacher lies from one of a standard teacher."""
    for pair in results.pairs:
        places = [at for at in pair["survival"] if at["delta"] is not None]
        if pair["why"] == "teacher" and places:
            largest = max(places, key=lambda at: abs(at["delta"]))
            first, second = (pair[side]["defense_params"]["teacher"]["name"]
                             for side in ("first", "second"))  # fmt: skip
            return (
                f"student of {first} against student of {second}, {largest['norm']} "
                f"{given(largest['at'])}: "
                f"{points(largest['delta'], largest['ci'])} points of worst case"
            )
    return ""


def _cells(cells: Sequence[Row]) -> str:
    done = [row for row in cells if row["success_rate"] is not None]
    plain = [row for row in done if row["defense"] == PLAIN]
    if not done:
        return "no cell finished"
    beside = f", on the undefended network {ranged(r['success_rate'] for r in plain)}"
    return (
        f"success {ranged(row['success_rate'] for row in done)}{beside if plain else ''}; "
        f"{counted(len(done), len(cells))} cells"
    )
