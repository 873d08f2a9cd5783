"""A run verified from its folder alone: weights and inputs reloaded, everything made again."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.audit.verify_nodes import Recheck, Verification
from bench.audit.verify_rechecks import check_rechecks
from bench.audit.verify_rows import Mode
from bench.base.files import file_hash, read_json
from bench.base.json_changes import changes
from bench.base.rows import Results
from bench.base.types import DamagedError, Document, UserError
from bench.evidence.environment import device_name
from bench.evidence.finished_run import FinishedRun
from bench.plan.graph import make_plan, node_id
from bench.plugins.contracts import DataSettings
from bench.results.collect import collect
from bench.runner.rebuild import Rebuilder
from bench.runner.task import Settings
from bench.runner.worker import prepare_torch, reason_of

Pages = Callable[[Results, Document], Mapping[str, str]]
"""Makes the pages of a run, by file, from its results and its environment."""

Row = Mapping[str, Any]

ROUNDING = 1e-9
"""Relative slack on aggregates made on another machine, where sums may run in another order."""


def verify(run: FinishedRun, pages: Pages, device: str, data: DataSettings) -> Verification:
    """Make everything in the folder of ``run`` again and hold it against what is stored.

    Plugins must be loaded. Exact on the machine model, device class and torch version of the run;
    elsewhere the tolerances of ``bench.audit.verify_rows`` apply. Raises UserError where a plugin
    or the data set is missing here.
    """
    settings = Settings(run.folder.root, data.cache_dir or run.folder.root, data, device)
    with _as_a_worker():
        models = Rebuilder(settings)
        recheck = Recheck(run, models, _mode(run, settings))
        check_rechecks(run, settings, recheck.result)
        found = recheck.check()
    _check_plan(run, found, bool(recheck.other_code))
    _check_rows(run, found, lambda: collect(run.plan, recheck.data, run.folder))
    _check_top(run, found, pages)
    if recheck.other_code:
        found.notes.append(f"made by other code than this: {', '.join(sorted(recheck.other_code))}")
    return found


def recorded_device(root: Path) -> str:
    """Return the class of device that the run in ``root`` used; ``cpu`` where it does not say."""
    for path in sorted((root / "models").glob("*.json")):
        with contextlib.suppress(DamagedError, KeyError, TypeError):
            return "cuda" if read_json(path)["key"]["device"] == "cuda" else "cpu"
    return "cpu"


@contextlib.contextmanager
def _as_a_worker() -> Iterator[None]:
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    prepare_torch()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _mode(run: FinishedRun, settings: Settings) -> Mode:
    libraries = run.environment.get("libraries") or {}
    alike = (
        recorded_device(run.folder.root) == settings.device_class
        and run.environment.get("device") == device_name(settings.device)
        and libraries.get("torch") == version("torch")
    )
    return "exact" if alike else "tolerant"


def _check_plan(run: FinishedRun, found: Verification, other_code: bool) -> None:
    for node in run.plan.nodes:
        if node.id != node_id(node):
            found.add(node.id, "plan id", node.id, node_id(node))
    if run.environment.get("matrix") != run.plan.matrix.model_dump(mode="json"):
        found.add("environment.json", "matrix", "environment.json", "plan.json")
    try:
        expanded = {node.id for node in make_plan(run.plan.matrix).nodes}
    except UserError as error:
        found.add("plan.json", "matrix", "expanded once", f"no plan: {error}")
        return
    stored = {node.id for node in run.plan.nodes}
    if expanded != stored and other_code:
        found.notes.append("the matrix expands to other nodes with this code")
    elif expanded != stored:
        found.add("plan.json", "nodes", sorted(stored - expanded), sorted(expanded - stored))


def _check_rows(run: FinishedRun, found: Verification, collected: Callable[[], Results]) -> None:
    try:
        made = json.loads(json.dumps(collected().documents()))
    except Exception as error:  # noqa: BLE001 (damage that was reported, and other people's code)
        found.add("results.json", "rows", "stored", f"not made again: {reason_of(error)}")
        return
    stored = run.results.documents()
    for name in {**made, **stored}:
        _check_table(name, stored.get(name, []), made.get(name, []), found)


def _check_table(
    name: str, stored: Sequence[Row], made: Sequence[Row], found: Verification
) -> None:
    ids = [[row["id"] for row in table] for table in (stored, made)]
    if ids[0] != ids[1]:
        found.add(name, "ids", *ids)
        return
    found.count("rows", len(made))
    for old, new in zip(stored, made, strict=True):
        for path, (first, second) in changes(old, new).items():
            if found.mode == "exact" or not _close(first, second):
                found.add(old["id"], f"{name} {path}", first, second)


def _close(first: Any, second: Any) -> bool:
    both = isinstance(first, float) and isinstance(second, float)
    return both and math.isclose(first, second, rel_tol=ROUNDING)


def _check_top(run: FinishedRun, found: Verification, pages: Pages) -> None:
    try:
        noted = read_json(run.folder.top("results-key.json"))["files"]
        for name in run.results.documents():
            if noted[name] != (made := file_hash(run.folder.top(name))):
                found.add("results-key.json", f"SHA-256 of {name}", noted[name], made)
    except (DamagedError, KeyError, TypeError) as error:
        found.add("results-key.json", "document", "unreadable", reason_of(error))
    try:
        made_again = pages(run.results, run.environment)
    except Exception as error:  # noqa: BLE001 (rows that were tampered with)
        found.add("pages", "page", "stored", f"not made again: {reason_of(error)}")
        return
    for name, page in made_again.items():
        _check_page(run.folder.top(name), page, found)


def _check_page(path: Path, page: str, found: Verification) -> None:
    try:
        stored = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found.add(path.name, "page", "unreadable", reason_of(error))
        return
    lines = itertools.zip_longest(stored.splitlines(), page.splitlines())
    for number, (first, second) in enumerate(lines, start=1):
        if first != second:
            found.add(path.name, f"line {number}", *_around(first, second))
            return
    if stored != page:
        found.add(path.name, "line ends", "stored", "made again")


def _around(first: str | None, second: str | None) -> tuple[str | None, str | None]:
    """Return two lines from a little before the first character in which they differ."""
    if first is None or second is None:
        return first, second
    place = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    start = max(0, place - 40)
    return first[start:], second[start:]
