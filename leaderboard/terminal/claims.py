"""What ``claim`` and ``selftest`` print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.base.types import ThreatModel
from bench.claims.answer import Answer, SeedAnswer
from bench.claims.claim import Claim
from bench.claims.selftest import Finding
from leaderboard.tables.numbers import UNDEFINED, interval, percent
from leaderboard.terminal.say import WIDTH, grid, paragraph, relative, say

COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}

SAMPLES = 12
"""Sample ids that are shown; the others lie in ``claim.json``."""


def show_answer(answer: Answer, threat: ThreatModel, folder: Path) -> None:
    """Print the answer to a claim, then for each seed what it rests on."""
    claim = answer.claim
    say(f"\n{answer.word.upper()}: {claim.name}", fg=COLOURS[answer.word], bold=True)
    if claim.description:
        say(claim.description)
    if claim.reference:
        say(f"source: {claim.reference}")
    say(f"{answer.word}: {answer.why}")
    if answer.sources_needed is not None:
        say(f"about {answer.sources_needed} sources would settle it, if the rate stays as it is")
    for seed in answer.seeds:
        _show_seed(claim, seed, threat)
    shown = relative(folder)
    say(f"\n{shown}/claim.json  the answer, with every sample id")
    say(f"{shown}/cells/      a record and an input of every attempt")


def _show_seed(claim: Claim, seed: SeedAnswer, threat: ThreatModel) -> None:
    what = "accuracy left" if claim.success_at_most is None else f"{claim.goal} success"
    say(f"\nseed {seed.seed}: {what} under all attacks together, {threat}: "
         f"{interval(seed.rate, seed.interval)}, {seed.attempts} attempts on "
         f"{seed.sources} sources")  # fmt: skip
    if seed.breakers:
        strongest = seed.breakers[0]
        say(f"strongest: {strongest.attack}, {percent(strongest.figure)} by itself")
        say(grid(_attacks(seed, what), WIDTH))
    if seed.samples:
        first = ", ".join(str(sample) for sample in seed.samples[:SAMPLES])
        more = f" and {len(seed.samples) - SAMPLES} more" if len(seed.samples) > SAMPLES else ""
        say(f"sources that fell ({len(seed.samples)}): test images {first}{more}")


def _attacks(seed: SeedAnswer, what: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "attack": breaker.attack,
                what: percent(breaker.figure),
                "attempts": breaker.reached,
                "that no other reached": breaker.only,
            }
            for breaker in seed.breakers
        ]
    )


def show_findings(found: Sequence[Finding]) -> None:
    """Print the table of the self-test, why what is not ok is not, and one line with counts."""
    say(grid(pd.DataFrame([_line(finding) for finding in found]), WIDTH))
    bad = [finding for finding in found if finding.status != "ok"]
    for item in bad:
        paragraph(
            f"{item.status}: {item.name} under {item.norm}: {item.verdict}: {item.why}", fg="red"
        )
    missed = sum(item.status == "MISSED" for item in bad)
    say(f"\n{len(found)} findings: {missed} missed, {len(bad) - missed} false alarms")


def _line(finding: Finding) -> dict[str, str]:
    expected = ", ".join([*finding.expected_flags, " or ".join(finding.expected)])
    return {
        "defense": finding.name,
        "truth": finding.truth,
        "norm": finding.norm,
        "expected": expected,
        "flags raised": ", ".join(finding.raised) or UNDEFINED,
        "verdict": finding.verdict,
        "": finding.status,
    }
