"""The tables of the README and of pages in ``docs/``, made from what is published.

``python -m leaderboard.pages.readme README.md docs/findings.md docs/distillation.md`` makes them
again. A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; a test holds it to its
source.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from bench.evidence.finished_run import read_results
from leaderboard.findings.students import known, place
from leaderboard.findings.students import table as manipulations
from leaderboard.pages.distillation import Report
from leaderboard.pages.markdown import table
from leaderboard.pages.reproduction import reproduction
from leaderboard.tables.verdicts import VerdictTable, verdict_table, verdict_tables

PUBLISHED = Path(__file__).parents[1] / "published"

MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)

SHOWN = ["defense", "verdict", "worst case", "drop", "Δ", "broken by"]


def refresh(text: str) -> str:
    """Return ``text`` with each marked table made again; KeyError for a name that is no table."""
    return MARKED.sub(lambda found: f"{found[1]}\n{table(TABLES[found[2]]())}\n\n{found[4]}", text)


def _groups(run: str = "verdict-digits") -> list[VerdictTable]:
    return verdict_tables(read_results(PUBLISHED / run).verdicts)


def verdicts(norm: str, run: str = "verdict-digits") -> pd.DataFrame:
    """Return the verdicts of a run under ``norm`` at the budget they are given at."""
    (group,) = [group for group in _groups(run) if group.norm == norm]
    return verdict_table(group, brief=True)[SHOWN]


def brief(run: str) -> pd.DataFrame:
    """Return a run's verdicts under L∞ for a first look: of distillation the ends, the middle."""
    (group,) = [g for g in _groups(run) if g.norm == "linf"]
    frame = verdict_table(group, brief=True)
    naive = verdict_table(group)["naive"]
    frame.insert(2, "naive attack", naive)
    kept = frame[frame["defense"] != "distillation temperature=10"]
    return kept[["defense", "verdict", "naive attack", "worst case", "Δ"]]


def mnist() -> pd.DataFrame:
    """Return success against temperature on MNIST, ours beside the paper's."""
    frame = Report(read_results(PUBLISHED / "papernot-mnist")).success()
    swept = frame["defense"].str.startswith(("undefended", "distillation"))
    controls = frame["defense"].isin(["temperature_only temperature=100", "soft_label"])
    return frame[swept | controls].drop(columns="paper, logits / T")


def paper() -> pd.DataFrame:
    """Return every figure of the distillation paper beside ours."""
    return reproduction(PUBLISHED)


def nearest() -> pd.DataFrame:
    """Return how near Carlini and Wagner's attacks come on MNIST, beside what they report."""
    frame = Report(read_results(PUBLISHED / "carlini-wagner-mnist")).minimum_norm()
    return frame.drop(columns=["attack", "features changed, mean"])


def students() -> pd.DataFrame:
    """Return what taking a part of a teacher's answers away costs its student, at L∞ 0.2."""
    results = read_results(PUBLISHED / "logits-digits")
    wanted = next(at for pair in results.pairs for at in known(pair) if place(at) == "L∞ 0.2")
    return manipulations(results, wanted)


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "verdict-mnist-seeds": lambda: brief("verdict-mnist-seeds"),
    "verdict-mnist-seeds-l0": lambda: verdicts("l0", "verdict-mnist-seeds"),
    "verdict-mnist": lambda: brief("verdict-mnist"),
    "verdict-linf": lambda: verdicts("linf"),
    "verdict-l0": lambda: verdicts("l0"),
    "papernot-mnist": mnist,
    "reproduction": paper,
    "carlini-wagner": nearest,
    "students": students,
}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(refresh(path.read_text(encoding="utf-8")), encoding="utf-8")
