"""What a run says of models that others trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.base.rows import Results, VerdictRow, defense_of, warns
from bench.base.types import UserError
from bench.compose import RunResult
from bench.judging.question import Question
from bench.plugins import registry
from bench.plugins.parameter import as_spec


@dataclass(frozen=True, repr=False)
class Verdict:
    """What ``judge`` found, at the smallest budget that says something; ``results`` hold the rest.

    ``folder``: the evidence of it all, with ``judge.toml``, the matrix that was run.
    """

    row: VerdictRow
    results: Results
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``holds``, ``broken``, ``masked``, ``inconclusive``, ``no reference`` and their kin."""
        return self.row["verdict"]

    @property
    def reason(self) -> str:
        """Why, in words."""
        return str(self.row["why"])

    @property
    def worst_case(self) -> list[float | None]:
        """By model: the share of sources that no attack within the budget breaks, None unknown."""
        return [seed["worst_case"] for seed in self.row["seeds"]]

    @property
    def delta(self) -> list[float | None]:
        """By model: the worst case minus the reference's; None without a reference."""
        return [seed["delta"] for seed in self.row["seeds"]]

    @property
    def flags(self) -> list[str]:
        """The flags that warn, of models and panel."""
        found = [flag for seed in self.row["seeds"] for flag in seed["flags"] if warns(flag)]
        return list(dict.fromkeys(flag["id"] for flag in found))

    @property
    def broken_by(self) -> list[str]:
        """The attacks that broke sources, the one with most breaks first."""
        counts: dict[str, int] = {}
        for item in (item for seed in self.row["seeds"] for item in seed["broken_by"]):
            counts[item["attack"]] = counts.get(item["attack"], 0) + item["breaks"]
        return sorted(counts, key=lambda attack: -counts[attack])

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        from leaderboard.terminal.judged import told

        return told(self.row, self.results.verdicts, self.folder, self.notes)

    def _repr_html_(self) -> str:
        from leaderboard.terminal.judged import drawn

        return drawn(self.row, self.results.verdicts, self.folder, self.notes)


def verdict_of(result: RunResult, question: Question) -> Verdict:
    """Return the verdict of a finished run on the defense that was asked about.

    At the smallest budget where the panel has power, else at the largest.
    """
    plan_document = registry.DEFENSES.document(registry.DEFENSES.make(as_spec(question.defense)))
    rows = [r for r in result.results.verdicts if defense_of(r) == plan_document]
    if not rows:
        raise UserError(f"{result.folder} holds no verdict on {question.defense['name']!r}")
    row = next((row for row in rows if row["headline"]), rows[-1])
    return Verdict(row, result.results, result.folder, tuple(result.progress.notes))
