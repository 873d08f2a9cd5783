"""Published, believed, broken: whether the verdict finds out without being told how.

``python -m leaderboard.findings.museum > docs/museum.md`` writes the guide to the exhibits.
"""

from __future__ import annotations

from bench.base.rows import Results
from leaderboard.findings.finding import Finding, told, words
from leaderboard.tables.museum import NEAR, Case, case_table, cases, exhibits, record_table
from leaderboard.tables.numbers import points
from leaderboard.tables.verdicts import verdict_tables


def museum(results: Results) -> Finding | None:
    """Tell what the panels say of the broken defenses of a run, beside those that hold."""
    shown = [found for found in cases(results) if sum(_broken(case) for case in found) > 1]
    if not shown:
        return None
    panels = [
        f"{table.norm_name}, {table.at(table.shown[0])}"
        for table in verdict_tables(results.verdicts)
    ]
    tables = [
        (f"{name}: share of sources that stand, one value a seed.", case_table(found))
        for name, found in zip(panels, cases(results), strict=True)
        if found in shown
    ]
    first = shown[0]
    broken = [case for case in first if _broken(case)]
    ways = [case for case in broken if case.gap is not None]
    far = [case for case in ways if (case.gap or 0) > NEAR]
    return told(
        "museum",
        [*tables, ("The record.", record_table(first))],
        panel=panels[cases(results).index(first)],
        defenses=len(broken),
        holding=[case.label for case in broken if case.holds],
        refused=sum(not case.holds for case in broken),
        ways=len(ways),
        near=len(ways) - len(far),
        limit=f"{100 * NEAR:g}",
        far=[f"{case.label} ({points(case.gap, digits=0)})" for case in far],
        controls=[f"{case.label}: {case.row['verdict']}" for case in first if case.record is None],
    )  # fmt: skip


def _broken(case: Case) -> bool:
    return case.row["defense"] in exhibits()


def guide() -> str:
    """Return ``docs/museum.md``: a section for each record, in three sentences and four lines."""
    return words().get_template("museum.md.j2").render(exhibits=exhibits())


if __name__ == "__main__":
    import sys

    sys.stdout.write(guide())
