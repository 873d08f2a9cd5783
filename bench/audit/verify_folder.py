"""What a folder says of itself: documents, checksums and pages, checked without plugins' code.

Nothing that the folder names is imported, and nothing in it is run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.audit.repeat import Choice, Repeated
from bench.audit.verify_rows import Difference, Mode
from bench.base.files import file_hash, read_json
from bench.base.fingerprint import digest
from bench.base.places import named
from bench.base.rows import Results
from bench.base.types import DamagedError, Document, UserError
from bench.evidence.finished_run import FinishedRun
from bench.evidence.folder import BELOW, BESIDE, RECHECKS, RunFolder
from bench.plan.graph import FITS, Node, node_id
from bench.plan.matrix import load_matrix
from bench.plugins.data import Dataset
from bench.runner.worker import reason_of

Pages = Callable[[Path, Results, Document], Mapping[str, str]]
"""Makes the pages of a folder, by name, of its results, its environment and what lies there."""

Draw = Callable[[Results, Document, "tuple[RunFolder, Dataset] | None", Path], object]
"""Draws into a folder; with those that need a run's own inputs where these are given."""

FIGURES = ("*.pdf", "*.png")

APART = ("plan.json", "environment.json", "results-key.json", "timings.json", "costs.json",
         "claim.json", "audit.json", "judge.toml", "workers.log", ".lock")  # fmt: skip
"""What lies at the top of a run's folder, or of a published one, beside its results and pages."""

NODE = re.compile(r"[0-9a-f]{16}(-\d+)?")


@dataclass(frozen=True)
class Shown:
    """What people read of a run; made by a package that this one does not know."""

    pages: Pages
    draw: Draw


@dataclass
class Verification:
    """What was checked, what differs, and what a reader should know beside it.

    ``changed`` counts predictions that moved on a near tie, on other hardware; ``repeated`` what
    was made anew, by ``choice``; ``refused``: why what needs plugins' code was not checked.
    """

    mode: Mode
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    repeated: list[Repeated] = field(default_factory=list)
    choice: Choice | None = None
    refused: str | None = None

    def add(self, node: str, what: str, stored: object, recomputed: object) -> None:
        """Add a difference."""
        self.differences.append(Difference(node, what, stored, recomputed))

    def count(self, what: str, number: int = 1) -> None:
        """Count what was checked."""
        self.counts[what] = self.counts.get(what, 0) + number

    def include(self, other: Verification) -> None:
        """Add what another one found."""
        self.differences += other.differences
        self.notes += other.notes
        self.repeated += other.repeated
        self.changed += other.changed
        for what, number in other.counts.items():
            self.count(what, number)


def check_folder(run: FinishedRun, pages: Pages, found: Verification) -> None:
    """Check a run's folder: ids, checksums, the hashes of keys, pages, and what does not belong."""
    for node in run.plan.nodes:
        if node.id != node_id(node):
            found.add(node.id, "plan id", node.id, node_id(node))
        _check_node(run.folder, node, found)
    if run.environment.get("matrix") != run.plan.matrix.model_dump(mode="json"):
        found.add("environment.json", "matrix", "environment.json", "plan.json")
    try:
        noted = read_json(run.folder.top("results-key.json"))["files"]
        for name in run.results.documents():
            if noted[name] != (made := file_hash(run.folder.top(name))):
                found.add("results-key.json", f"SHA-256 of {name}", noted[name], made)
    except (DamagedError, KeyError, TypeError) as error:
        found.add("results-key.json", "document", "unreadable", reason_of(error))
    _check_question(run, found)
    _check_foreign(run, check_pages(run, pages, found), found)


def _check_question(run: FinishedRun, found: Verification) -> None:
    """Hold the matrix that ``judge`` wrote beside its results against the one that was run."""
    path = run.folder.top("judge.toml")
    if not path.exists():
        return
    try:
        stored = load_matrix(path)
    except UserError as error:
        found.add("judge.toml", "matrix", f"unreadable: {error}", "plan.json")
        return
    if stored.model_dump(mode="json") != run.plan.matrix.model_dump(mode="json"):
        found.add("judge.toml", "matrix", "judge.toml", "plan.json")


def check_pages(run: FinishedRun, pages: Pages, found: Verification) -> Iterable[str]:
    """Hold the pages that a folder's documents make against those that lie there."""
    try:
        made = pages(run.folder.root, run.results, run.environment)
    except Exception as error:  # noqa: BLE001 (rows that were tampered with)
        found.add("pages", "page", "stored", f"not made again: {reason_of(error)}")
        return ()
    for name, page in made.items():
        try:
            stored = run.folder.top(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            found.add(name, "page", "unreadable", reason_of(error))
            continue
        _check_page(name, stored, page, found)
    return made


def _check_page(name: str, stored: str, page: str, found: Verification) -> None:
    lines = itertools.zip_longest(stored.splitlines(), page.splitlines())
    for number, (first, second) in enumerate(lines, start=1):
        if first != second:
            found.add(name, f"line {number}", *_around(first, second))
            return
    if stored != page:
        found.add(name, "line ends", "stored", "made again")


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


def _check_node(folder: RunFolder, node: Node, found: Verification) -> None:
    path = folder.document(node.kind, node.id)
    if node.kind != "cell" and not path.exists():
        return  # a fit or a probe that failed leaves none
    try:
        document = read_json(path)
    except DamagedError as error:
        found.add(node.id, "document", "unreadable", str(error))
        return
    if not isinstance(document, dict):
        found.add(node.id, "document", "no JSON object", str(path))
        return
    if document.get("id") != node.id:
        found.add(node.id, f"id in {path.name}", document.get("id"), node.id)
    outcome = document.get("outcome")
    if isinstance(outcome, dict) and outcome.get("status") != "done":
        return
    checksums = document if node.kind in FITS else document.get("files")
    for name, beside in folder.files(node.kind, node.id).items():
        checksum = checksums.get(name) if isinstance(checksums, dict) else None
        _check_file(node, beside, checksum, found)
    key = document.get("key")
    if document.get("evidence") != digest(key):
        found.add(node.id, "hash of the key document", document.get("evidence"), digest(key))


def _check_file(node: Node, path: Path, checksum: object, found: Verification) -> None:
    try:
        made = file_hash(path)
    except OSError as error:
        made = f"unreadable: {error.strerror}"
    if made != checksum:
        found.add(node.id, f"SHA-256 of {path.name}", checksum, made)


def _check_foreign(run: FinishedRun, pages: Iterable[str], found: Verification) -> None:
    """Report files that no run leaves; evidence of nodes of another plan is a note."""
    folder = run.folder
    known = {*APART, *Results.FILES, *Results.FURTHER, *pages}
    planned = {node.id for node in run.plan.nodes}
    given = set(named([node.document for node in run.plan.nodes]))
    suffixes = {
        folder.root / name: {".json", *BESIDE[kind].values()} for kind, name in BELOW.items()
    } | {folder.root / RECHECKS: {".json"}}
    other = 0
    for path in sorted(folder.root.rglob("*")):
        place = path.relative_to(folder.root)
        if path.is_dir() and not path.is_symlink():
            continue
        own = (
            str(place) in known
            or path in given
            or any(place.match(f"figures/{kind}") for kind in FIGURES)
        )
        if path.is_symlink() and path.parent != folder.root:
            own = False
        elif path.suffix in suffixes.get(path.parent, ()) and NODE.fullmatch(path.stem):
            own = True
            other += path.stem not in planned
        if not own and not (path.name.startswith(".") and path.suffix == ".tmp"):
            found.add(str(place), "foreign file", "stored", "left by no run")
    if other:
        found.notes.append(f"{other} files are of nodes that are not in plan.json")


def check_figures(
    run: FinishedRun, draw: Draw, data: Dataset | None, found: Verification, *, same: bool
) -> None:
    """Draw the figures of a folder again and hold them against those that lie there.

    ``data``: of a run that holds its inputs; without them the figures that show inputs are not
    drawn. ``same``: byte for byte, else whether each is there and whole. Security curves are drawn
    into a run's folder only when asked for.
    """
    import tempfile

    folder = run.folder.root / "figures"
    with tempfile.TemporaryDirectory(prefix="retort-figures-") as temporary:
        to = Path(temporary)
        try:
            draw(run.results, run.environment, None if data is None else (run.folder, data), to)
        except Exception as error:  # noqa: BLE001 (rows that were tampered with)
            found.add("figures", "figures", "stored", f"not drawn again: {reason_of(error)}")
            return
        drawn = {path.name: path for kind in FIGURES for path in to.glob(kind)}
        kept = {path.name: path for kind in FIGURES for path in folder.glob(kind)}
        curves = all(not name.startswith("curve-") for name in kept) and data is not None
        for name, path in sorted(drawn.items()):
            if name not in kept:
                if not (curves and name.startswith("curve-")):
                    found.add(f"figures/{name}", "figure", "missing", "drawn")
                continue
            found.count("figures")
            told = [item.read_bytes() for item in (kept[name], path)]
            if same and told[0] != told[1]:
                found.add(f"figures/{name}", "bytes", *map(len, told))
            elif not same:
                _check_whole(kept[name], found)
        for name in sorted(kept.keys() - drawn.keys()):
            if data is not None:
                found.add(f"figures/{name}", "foreign file", "stored", "drawn by no page")


def _check_whole(path: Path, found: Verification) -> None:
    ends: Mapping[str, bytes] = {".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF\n"}
    if not path.read_bytes().endswith(ends[path.suffix]):
        found.add(f"figures/{path.name}", "figure", "torn", "whole")


def alike(recorded: Mapping[str, Any], libraries: Iterable[str]) -> bool:
    """Return whether the versions of ``libraries`` that a run recorded are those of here."""
    from importlib.metadata import PackageNotFoundError, version

    def here(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return all(recorded.get(name) == here(name) for name in libraries)
