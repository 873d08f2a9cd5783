"""Whether every model, asked once more, answers as its recheck says (``bench.runner.recheck``)."""

from __future__ import annotations

from collections.abc import Mapping

from bench.audit.verify_folder import Verification
from bench.base.files import read_json
from bench.base.types import DamagedError, Document
from bench.evidence.finished_run import FinishedRun
from bench.plan.graph import Node
from bench.runner.recheck import answers, key_of, rechecked
from bench.runner.task import Settings
from bench.runner.worker import reason_of


def check_rechecks(run: FinishedRun, settings: Settings, found: Verification) -> None:
    """Ask every model on inputs of all its cells; to be called before any of them was asked.

    For what a model might keep outside of itself, it must not find in this process.
    """
    for fit in run.plan.of("fit"):
        if cells := rechecked(run.plan, run.folder, fit):
            _check(run, fit, cells, settings, found)


def _check(
    run: FinishedRun, fit: Node, cells: Mapping[str, Document], settings: Settings,
    found: Verification,
) -> None:  # fmt: skip
    path = run.folder.recheck(fit.id)
    try:
        document = read_json(path)
        key, stored, reason = (document[name] for name in ("key", "differing", "reason"))
        told = {cell: bool(rows) for cell, rows in (stored or {}).items()}
    except (AttributeError, DamagedError, KeyError, TypeError) as error:
        found.add(fit.id, "recheck", "unreadable", reason_of(error))
        return
    found.count("rechecks")
    expected = key_of(cells)
    if not isinstance(key, dict) or key.get("cells") != expected["cells"]:
        found.add(fit.id, "recheck: key", key, expected)
    elif key != expected:
        found.notes.append(f"{fit.id}: asked again by other code than this")
    try:
        made = {cell: bool(n) for cell, n in answers(settings, fit.id, list(cells)).items()}
    except DamagedError:
        return  # said where the file itself is checked
    except Exception as error:  # noqa: BLE001 (other people's code)
        if reason is None:
            found.add(fit.id, "recheck: reason", None, reason_of(error))
        return
    if reason is not None:
        found.notes.append(f"{fit.id}: asked again there, it failed ({reason}), and not here")
    elif told != made:
        found.add(fit.id, "recheck: differing", told, made)
