"""The evaluation suspects itself: figures of a cell that make its result doubtful."""

from __future__ import annotations

from bench.plugin import NOT_SUBMITTED
from bench.types import Document, Flag, ThreatModel

FEW_SOURCES = 60
"""Below this many correctly classified sources no verdict is given (VERDICT rule 1)."""


NO_OP_SHARE = 0.1
"""Above this share of attempts that changed nothing, the attack did not do its work."""


def cell_flags(summary: Document, probe: Document, threat: ThreatModel, classes: int) -> list[Flag]:
    """Return what is suspicious about one cell, given its metrics and its model's."""
    found = [
        _invalid(summary),
        _no_op(summary, threat),
        _not_submitted(summary),
        _chance(probe, classes),
        _few(summary),
    ]
    return [flag for flag in found if flag is not None]


def _invalid(summary: Document) -> Flag | None:
    count, attempts = summary["invalid"], summary["attempts"]
    if not count:
        return None
    return Flag(
        "invalid-output", "error", count / attempts, 0.0,
        f"{count} of {attempts} outputs are not finite, leave the box or exceed the budget, "
        "and count as failures",
        "mend the attack: its own report of success cannot be trusted",
    )  # fmt: skip


def _no_op(summary: Document, threat: ThreatModel) -> Flag | None:
    # An attack that says why it stopped has run, and a minimum-norm attack returns the source
    # where it fails; any other that changes nothing had no gradient, or mistook its labels.
    count, attempts = summary["no_op"], summary["attempts"]
    explained = summary["stop_reasons"] is not None or threat.budget is None
    if explained or not count or count / attempts <= NO_OP_SHARE:
        return None
    return Flag(
        "no-op", "warning", count / attempts, NO_OP_SHARE,
        f"{count} of {attempts} attempts changed nothing at all",
        "look for a gradient of exactly zero (attack the log-odds), or for labels that are "
        "taken for targets",
    )  # fmt: skip


def _not_submitted(summary: Document) -> Flag | None:
    count, attempts = (summary["stop_reasons"] or {}).get(NOT_SUBMITTED, 0), summary["attempts"]
    if not count:
        return None
    return Flag(
        "not-submitted", "warning", count / attempts, 0.0,
        f"{count} of {attempts} attempts have no submitted input and count as failures",
        "submit an input for every attempt (sample_ids are indices in the test split), or read "
        "the success rate as a lower bound",
    )  # fmt: skip


def _chance(probe: Document, classes: int) -> Flag | None:
    # Chance: not distinguishable from always naming one class. Twice 1/classes leaves room for
    # uneven classes and is far below any network that has learnt.
    threshold = min(2 / classes, 0.5 + 0.5 / classes)
    accuracy = probe.get("accuracy")  # none where the probe failed
    if accuracy is None or accuracy > threshold:
        return None
    return Flag(
        "chance", "error", accuracy, threshold,
        f"clean accuracy {accuracy:.1%} is at chance: there is nothing to defend",
        "train longer or with another recipe; no robustness can be read off this row",
    )  # fmt: skip


def _few(summary: Document) -> Flag | None:
    count = summary["correct_sources"]
    if count >= FEW_SOURCES:
        return None
    return Flag(
        "few-sources", "info", count, FEW_SOURCES,
        f"only {count} correctly classified sources were attacked",
        "raise --sources before comparing rows",
    )  # fmt: skip
