"""Forgeries of a finished run, each sealed again with the program's own functions.

Each takes the folder of a run and a source of chance, changes what it is named after, writes every
checksum, row and page anew, and returns the ids of the fits and cells that nobody measured so.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch

from bench.base.files import (
    read_json,
    read_records,
    read_tensors,
    write_json,
    write_records,
    write_tensors,
)
from bench.base.fingerprint import digest
from bench.base.types import Document
from bench.evidence.finished_run import FinishedRun, read_run
from bench.measure.cell import REPORTED, choose_attempts, judge, question
from bench.measure.query import DRAWS, ask
from bench.plan.graph import Node
from bench.plugins.contracts import DataSettings
from bench.results.collect import results
from bench.runner.rebuild import Rebuilder
from bench.runner.recheck import key_of, rechecked
from bench.runner.task import Settings
from leaderboard.pages.publish import write_pages

Forgery = Callable[["Forger", random.Random], list[str]]

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Makes other adversarial inputs of those that are stored and of their sources."""


class Forger:
    """The folder of a run, and what is needed to change it without a trace in it."""

    def __init__(self, root: Path) -> None:
        self.run: FinishedRun = read_run(root)
        self.folder = self.run.folder
        self.models = Rebuilder(Settings(root, root, DataSettings(None, root, offline=True)))
        self.data = self.models.data(self.run.plan.dataset)

    def cells(self, *, of: str | None = None) -> list[Node]:
        """Return the finished cells, ``of`` one fit or of all."""
        done = {row["id"] for row in self.run.rows if row["status"] == "done"}
        return [
            node
            for node in self.run.plan.of("cell")
            if node.id in done and of in (None, node.needs["model"])
        ]

    def edit(self, path: Path, change: Callable[[Document], object]) -> None:
        document = read_json(path)
        change(document)
        if "key" in document:
            document["evidence"] = digest(document["key"])
        write_json(path, document)

    def records(self, node: Node, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        """Change the records of a cell or a probe."""
        path = self.folder.files(node.kind, node.id)["records"]
        found = write_records(path, change(read_records(path)))
        self.edit(
            self.folder.document(node.kind, node.id),
            lambda document: document["files"].update(records=found),
        )

    def inputs(
        self, node: Node, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        """Change the adversarial inputs of a cell (given them and their sources), judged anew."""
        files = self.folder.files("cell", node.id)
        stored = read_records(files["records"])
        sources = self.models.sources(node.document, self.data)
        defense, _ = self.models.load_model(node.needs["model"])
        info, draws = self.data.info, DRAWS if defense.stochastic else 1

        def anew() -> torch.nn.Module:
            return self.models.load_model(node.needs["model"])[1]

        clean = ask(anew(), sources.x, info.classes, sources.seed, draws)
        attempts = choose_attempts(clean, sources, node.attack().targets, info.classes)
        x_adv = read_tensors(files["inputs"])["x_adv"][: len(attempts.source)]
        stored = stored.iloc[: len(attempts.source)].reset_index(drop=True)  # what was seen: gone
        changed = change(x_adv, sources.x[attempts.source])
        x_adv = torch.where(attempts.attacked[:, None, None, None], changed, x_adv)
        judged = question(anew(), sources, x_adv, info.classes, draws)
        made = judge(judged, node.attack(), sources, attempts, x_adv, info)
        for name in REPORTED:
            made[name] = stored[name]
        found = {
            "inputs": write_tensors(files["inputs"], {"x_adv": x_adv}),
            "records": write_records(files["records"], made),
        }
        self.edit(self.folder.cell(node.id), lambda document: document["files"].update(found))

    def seal(self) -> None:
        """Make all that rests on the evidence anew: rechecks, rows, pages."""
        plan, folder = self.run.plan, self.folder
        for fit in plan.of("fit"):
            path = folder.recheck(fit.id)
            path.unlink(missing_ok=True)
            if cells := rechecked(plan, folder, fit):
                write_json(path, {"key": key_of(cells), "differing": dict.fromkeys(cells, 0),
                                  "reason": None})  # fmt: skip
        folder.top("results-key.json").unlink()
        made = results(plan, self.data, folder)
        write_pages(folder.root, made, read_json(folder.top("environment.json")))


def _noise(forger: Forger, nodes: list[Node]) -> list[str]:
    for node in nodes:
        forger.inputs(node, lambda _, x: (x + 0.01 * torch.randn_like(x)).clamp(0, 1))
    return [node.id for node in nodes]


def noise_for_a_defense(forger: Forger, draw: random.Random) -> list[str]:
    """The inputs of every attack on one defense are noise: broken becomes ``holds``."""
    return _noise(forger, forger.cells(of=draw.choice(forger.run.plan.of("fit")).id))


def noise_for_a_cell(forger: Forger, draw: random.Random) -> list[str]:
    """The inputs of one attack on one defense are noise."""
    return _noise(forger, [draw.choice(forger.cells())])


def exchanged(forger: Forger, draw: random.Random) -> list[str]:
    """The evidence of two attacks on one defense is exchanged."""
    fit = draw.choice(forger.run.plan.of("fit")).id
    first, second = draw.sample(forger.cells(of=fit), 2)
    paths = [forger.folder.files("cell", node.id)["inputs"] for node in (first, second)]
    kept = [read_tensors(path)["x_adv"] for path in paths]
    for node, other in ((first, kept[1]), (second, kept[0])):
        forger.inputs(node, lambda x_adv, _, other=other: other[: len(x_adv)])
    return [first.id, second.id]


def queries(forger: Forger, draw: random.Random) -> list[str]:
    """One attack says that it asked half as often."""
    node = draw.choice(forger.cells())

    def change(document: Document) -> None:
        document["queries"] = {name: n // 2 for name, n in document["queries"].items()}

    forger.edit(forger.folder.cell(node.id), change)
    return [node.id]


def reported(forger: Forger, draw: random.Random) -> list[str]:
    """One attack reports other iterations, stop reasons and zero gradients."""
    node = draw.choice(forger.cells())

    def change(records: pd.DataFrame) -> pd.DataFrame:
        attacked = records["status"] == "attacked"
        return records.assign(
            iterations=pd.array([7 if row else None for row in attacked], dtype="Int64"),
            stop_reason=pd.array(["content" if row else None for row in attacked], dtype="string"),
            zero_gradients=pd.array([0 if row else None for row in attacked], dtype="Int64"),
        )

    forger.records(node, change)
    return [node.id]


def failed(forger: Forger, draw: random.Random) -> list[str]:
    """One attack is said to have failed for want of memory: broken becomes inconclusive."""
    node = draw.choice(forger.cells())
    for path in forger.folder.files("cell", node.id).values():
        path.unlink()
    outcome = {"status": "failed", "reason": "OutOfMemoryError: CUDA out of memory"}
    write_json(forger.folder.cell(node.id),
               {"id": node.id, "outcome": outcome, "document": node.document})  # fmt: skip
    return [node.id]


def confidences(forger: Forger, draw: random.Random) -> list[str]:
    """Said to be of another machine, with confidences lower by 0.0009 in one cell."""
    elsewhere(forger)
    node = draw.choice(forger.cells())
    forger.records(node, lambda records: records.assign(
        adversarial_confidence=(records["adversarial_confidence"] - 0.0009).clip(lower=0)
    ))  # fmt: skip
    return [node.id]


def other_code(forger: Forger, draw: random.Random) -> list[str]:
    """Every cell is said to be made by other code of the harness."""
    source = f"{draw.getrandbits(256):064x}"
    for node in forger.cells():
        forger.edit(
            forger.folder.cell(node.id),
            lambda document: document["key"].update(harness_source=source),
        )
    return [node.id for node in forger.cells()]


def elsewhere(forger: Forger) -> None:
    """Say that another processor made the run, and set its page anew."""
    forger.edit(
        forger.folder.top("environment.json"), lambda document: document.update(device="Abacus")
    )


NOTICED: tuple[Forgery, ...] = (
    noise_for_a_defense, noise_for_a_cell, exchanged, queries, reported, failed,
)  # fmt: skip
"""Consistent with themselves; found out where a cell is made anew that they touch."""

UNNOTICED: tuple[Forgery, ...] = (confidences, other_code)
"""Within what another machine or another version explains: the first changes no outcome, the second
no number at all."""


def forge(run: Path, to: Path, forgery: Forgery, seed: int) -> list[str]:
    """Copy a run and forge it; return the ids that were touched. Plugins must be loaded."""
    shutil.copytree(run, to)
    forger, draw = Forger(to), random.Random(seed)
    torch.manual_seed(seed)
    touched = forgery(forger, draw)
    forger.seal()
    return touched


def set_weights(run: Path, fit: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a model weights that nobody trained; the same run makes its probe and cells of them."""
    folder = read_run(run).folder
    folder.weights(fit).unlink()  # it may be a link to the cache's
    checksum = write_tensors(folder.weights(fit), tensors)
    write_json(folder.model(fit), {**read_json(folder.model(fit)), "weights": checksum})
