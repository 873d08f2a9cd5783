"""The evaluation suspects itself: figures of a cell that make its result doubtful."""

from __future__ import annotations

from bench.types import Document, Flag

FEW_SOURCES = 60
"""Below this many correctly classified sources no verdict is given (VERDICT rule 1)."""


def cell_flags(summary: Document, probe: Document, classes: int) -> list[Flag]:
    """Return what is suspicious about one cell, given its metrics and its model's."""
    found = [
        _share(
            "invalid-output", "error", summary["invalid"], summary["attempts"],
            "outputs that are not finite, leave the box or exceed the budget; none counts as success",
            "mend the attack: its own report of success cannot be trusted",
        ),
        _no_op(summary),
        _chance(probe, classes),
        _few(summary),
    ]  # fmt: skip
    return [flag for flag in found if flag is not None]


def _share(
    name: str, severity: str, count: int, total: int, evidence: str, advice: str
) -> Flag | None:
    if not count:
        return None
    assert severity in ("info", "warning", "error")
    return Flag(name, severity, count / total, 0.0, f"{count} of {total} {evidence}", advice)  # type: ignore[arg-type]


def _no_op(summary: Document) -> Flag | None:
    # A saliency attack that finds no admissible pair at once says so in its stop reason, and then
    # it has not failed to run. Nothing changed, and no reason given, is an attack that did nothing.
    if summary["stop_reasons"] is not None or summary["no_op"] < summary["attempts"]:
        return None
    return _share(
        "no-op", "error", summary["no_op"], summary["attempts"], "attempts changed nothing at all",
        "check labels and targets: an attack that takes the label for the target does nothing",
    )  # fmt: skip


def _chance(probe: Document, classes: int) -> Flag | None:
    # Chance: not distinguishable from always naming one class. Twice 1/classes leaves room for
    # uneven classes and is far below any network that has learnt.
    threshold = min(2 / classes, 0.5 + 0.5 / classes)
    accuracy = probe["accuracy"]
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
