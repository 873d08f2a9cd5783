"""A run verified from its folder alone: weights and inputs reloaded, everything made again."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.audit.published import check_published, planned, read_published
from bench.audit.repeat import Bench, Choice, is_published, repeat
from bench.audit.verify_folder import Shown, Verification, alike, check_figures, check_folder
from bench.audit.verify_nodes import Recheck
from bench.audit.verify_rechecks import check_rechecks
from bench.audit.verify_rows import Mode
from bench.base.files import read_json
from bench.base.json_changes import changes
from bench.base.rows import Results
from bench.base.types import DamagedError, UserError
from bench.claims.answer import read_answer
from bench.claims.claim import parse_claim
from bench.evidence.environment import accelerator, device_name
from bench.evidence.finished_run import FinishedRun, read_run
from bench.evidence.folder import RunFolder
from bench.measure.arithmetic import exact
from bench.plan.graph import make_plan
from bench.plugins import discovery
from bench.plugins.data import Dataset
from bench.results.collect import collect
from bench.runner import processes
from bench.runner.prepare import vouch
from bench.runner.rebuild import Rebuilder
from bench.runner.state import ProcessState
from bench.runner.task import Settings
from bench.runner.worker import reason_of

Row = Mapping[str, Any]

ROUNDING = 1e-9
"""Relative slack on aggregates made on another machine, where sums may run in another order."""


def read(root: Path) -> FinishedRun:
    """Read a results folder, or what is published of one; raises UserError where it is neither."""
    return read_published(root) if is_published(RunFolder(root)) else read_run(root)


def verify(
    run: FinishedRun, bench: Bench, shown: Shown, choice: Choice | None = None
) -> Verification:
    """Make everything in the folder of ``run`` again and hold it against what is stored.

    First what needs no code but ours, in this process; then the rest, in a process of its own,
    which imports the plugins of ``bench.settings``; last the nodes of ``choice``, in workers. Exact
    on the machine model, device class and torch version of the run; elsewhere the tolerances of
    ``bench.audit.verify_rows`` and ``bench.audit.repeat`` apply. Where a plugin or the data set is
    missing here, or code is named that nobody asked to run, ``refused`` says so.
    """
    found = Verification(_mode(run, bench.settings), choice=choice)
    if is_published(run.folder):
        check_published(run, shown, found)
        if choice is None:
            return found
    else:
        check_folder(run, shown.pages, found)
    with tempfile.TemporaryDirectory(prefix="retort-verify-") as name:
        asked = bench.settings
        here = Settings(Path(name), asked.cache, asked.data, asked.device)
        with processes.LocalExecutor(here, 1) as executor:
            work = executor.fresh(_with_code, run.folder.root, bench, shown, choice)
            answer, found.refused = work.result()
    if answer is not None:
        told, replaced = answer
        found.include(told)
        if replaced:
            found.add("a plugin", "functions that it replaces", ", ".join(replaced), "none")
    return found


def _with_code(
    _: Settings, root: Path, bench: Bench, shown: Shown, choice: Choice | None
) -> tuple[Verification, list[str]]:
    """Return what was found where plugins' code runs, in this process, and what they replace."""
    settings, patched = bench.settings, ProcessState().patched
    discovery.load_plugins(settings.plugins)
    closed = discovery.sealed() if settings.sealed else contextlib.nullcontext()
    with closed, exact(threads=1):
        run = read(root)
        found = Verification(_mode(run, settings))
        if is_published(run.folder):
            run = planned(run)
        vouch(run.plan, bench.unpickle)
        if not is_published(run.folder):
            _make_again(run, settings, shown, found)
        replaced = patched()
        if choice is not None:
            found.repeated = repeat(run, bench, choice, found.mode)
            found.differences += [item for one in found.repeated for item in one.differences]
            if left := sum(map(len, choice.drawn(run).values())) - len(found.repeated):
                found.notes.append(f"{left} that were drawn are no nodes of the plan of this code")
    return found, replaced


def _make_again(run: FinishedRun, settings: Settings, shown: Shown, found: Verification) -> None:
    models = Rebuilder(settings)
    recheck = Recheck(run, models, found)
    check_rechecks(run, settings, found)
    recheck.check()
    _check_plan(run, found, bool(recheck.other_code))
    _check_rows(run, found, lambda: collect(run.plan, recheck.data, run.folder))
    _check_claim(run, recheck.data, found)
    libraries = run.environment.get("libraries") or {}
    same = found.mode == "exact" and alike(libraries, ("matplotlib",))
    check_figures(run, shown.draw, recheck.data, found, same=same)
    if recheck.other_code:
        found.notes.append(f"made by other code than this: {', '.join(sorted(recheck.other_code))}")


def recorded_device(root: Path) -> str:
    """Return the class of device that the run in ``root`` used; ``cpu`` where it does not say."""
    for path in sorted((root / "models").glob("*.json")):
        with contextlib.suppress(DamagedError, KeyError, TypeError):
            return str(read_json(path)["key"]["device"]).partition(":")[0]
    return "cpu"


def _mode(run: FinishedRun, settings: Settings) -> Mode:
    libraries = run.environment.get("libraries") or {}
    alike = (
        recorded_device(run.folder.root) == settings.device_class
        and run.environment.get("device") == device_name(settings.device)
        and run.environment.get("accelerator") == accelerator(settings.device).get("accelerator")
        and libraries.get("torch") == version("torch")
    )
    return "exact" if alike else "tolerant"


def _check_plan(run: FinishedRun, found: Verification, other_code: bool) -> None:
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
        _check_json(old["id"], name, old, new, found)


def _check_json(node: str, name: str, stored: Any, made: Any, found: Verification) -> None:
    for path, (first, second) in changes(stored, made).items():
        if found.mode == "exact" or not _close(first, second):
            found.add(node, f"{name} {path}", first, second)


def _check_claim(run: FinishedRun, data: Dataset, found: Verification) -> None:
    """Answer the claim of a run again, where it is one's."""
    path = run.folder.top("claim.json")
    if not path.exists():
        return
    try:
        stored = read_json(path)
        claim = parse_claim(stored["claim"], path.name)
        made = json.loads(json.dumps(read_answer(claim, run, data.info).document()))
    except Exception as error:  # noqa: BLE001 (damage that was reported, and other people's code)
        found.add(path.name, "answer", "stored", f"not made again: {reason_of(error)}")
        return
    found.count("claims")
    if claim.matrix()["defense"][1]["name"] not in {row["defense"] for row in run.results.models}:
        found.add(path.name, "defense", claim.defense["name"], "none of this run")
    _check_json(path.name, "answer", stored, made, found)


def _close(first: Any, second: Any) -> bool:
    both = isinstance(first, float) and isinstance(second, float)
    return both and math.isclose(first, second, rel_tol=ROUNDING)
