"""What is asked about models that others trained, as a matrix, and its run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.audit.repeat_command import as_toml
from bench.base.files import file_hash, write_text
from bench.base.places import placed
from bench.base.types import Document, UserError, spec_of
from bench.compose import RunResult, run_prepared
from bench.evidence.folder import MATRIX, RunFolder
from bench.plan.graph import Node, Plan, data_name
from bench.plan.options import RunOptions
from bench.plugins import registry
from bench.runner.prepare import prepare
from bench.runner.schedule import check_kept

if TYPE_CHECKING:
    from torch import nn

    from bench.plugins.contracts import Defense
    from bench.plugins.data import Dataset
    from bench.runner.task import Settings

FORM = ("mean", "std", "range", "layout", "order", "part")
"""Parameters of ``checkpoint`` that say how a network wants its inputs, the same for all given."""


@dataclass(frozen=True)
class Question:
    """What is asked: a verdict on ``defense``, in the terms of a matrix.

    ``defense``, ``reference``, ``transfer_from``: tables as in a matrix, ``reference`` None for a
    verdict without one. ``budgets``: as a panel takes them. ``name``: of the matrix; what the
    results folder is called begins with it.
    """

    name: str
    defense: Document
    dataset: Document
    norm: str
    budgets: Sequence[float | str]
    reference: Document | None = None
    transfer_from: Sequence[Document] = ()
    sources: int | str = 100

    def matrix(self) -> Document:
        """Return the matrix that answers it."""
        return {
            "name": self.name,
            "dataset": self.dataset,
            "sources": self.sources,
            "probe_samples": self.sources,
            "defense": [self.defense],
            "panel": [{"norm": self.norm, "budgets": list(self.budgets)}],
            "reference": self.reference or "none",
            **({"transfer_from": list(self.transfer_from)} if self.transfer_from else {}),
        }

    def folder(self) -> Path:
        """Return where its results lie unless told otherwise: named after all that is asked."""
        data = self.dataset
        named = [data_name({"params": data, **data})] if data else []  # none: handed over in memory
        parts = [self.name, *named, self.norm, *map(str, self.budgets)]
        return Path("runs") / slug("-".join(parts))


def slug(text: str) -> str:
    """Return ``text`` as a name for a matrix or a folder.

    >>> slug("my_models.py:build 8/255")
    'my_models.py_build_8_255'
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("._-") or "model"


def checkpoint(builder: str | None, weights: Sequence[str], form: Mapping[str, Any]) -> Document:
    """Return the table of a defense whose training seeds are ``weights``."""
    given = {key: value for key, value in form.items() if value is not None}
    named = {} if builder is None else {"builder": builder}
    return {"name": "checkpoint", **named, "weights": list(weights), **given}


def travelling(path: str, folder: Path) -> str:
    """Return ``path``, which starts here, as it is written in a matrix that lies in ``folder``.

    Relative where both lie below the current folder, so that they can be moved together. Raises
    UserError, with the path as it was given, where nothing is there.
    """
    here, target = Path.cwd(), Path(path).absolute()
    if not target.exists():
        raise UserError(f"{path!r} does not exist")
    if target.is_relative_to(here) and folder.absolute().is_relative_to(here):
        return Path(os.path.relpath(target, folder.absolute())).as_posix()
    return str(target)


def placed_builder(builder: str, folder: Path) -> str:
    """Return a builder as a matrix in ``folder`` names it: only a file has a path."""
    source, colon, name = builder.rpartition(":")
    if colon and (source.endswith(".py") or "/" in source):
        return f"{travelling(source, folder)}:{name}"
    return builder


@dataclass(frozen=True)
class Prepared:
    """A question that can be run: its plan and data were checked, and its models tried.

    ``text``: the matrix as TOML. ``notes``: what was guessed of a model, by the name of its file.
    """

    plan: Plan
    settings: Settings
    data: Dataset
    options: RunOptions
    text: str

    @property
    def sources(self) -> int:
        """How many rows are attacked."""
        asked = self.plan.matrix.sources
        return len(self.data.test) if asked == "all" else asked

    def run(self, watch: bool = False) -> RunResult:
        """Run it, with the matrix beside its results.

        Raises UserError, before anything is written, where the folder holds another run.
        """
        folder = RunFolder(self.settings.run)
        folder.prepare(self.plan.matrix.name)
        if not self.options.replace:
            check_kept(self.plan, folder)
        write_text(folder.top(MATRIX), self.text)
        return run_prepared((self.plan, self.settings, self.data), self.options, watch)


def prepared(question: Question, options: RunOptions) -> Prepared:
    """Plan ``question``, and check all that can be checked before anything runs.

    Relative paths in it start at the results folder, where the matrix will lie. Raises UserError,
    also for weights that do not fit their builder and a model with other inputs or classes than
    the data.
    """
    out = (options.out or question.folder()).absolute()
    options = replace(options, out=out)
    plan, settings, data = prepare(question.matrix(), options, base=out)
    _check_distinct(plan)
    return Prepared(plan, settings, data, options, as_toml(question.matrix()))


def _check_distinct(plan: Plan) -> None:
    """Raise UserError where a model would be compared with itself, under whatever name."""
    spec = plan.matrix.defenses()[0]
    asked = registry.DEFENSES.make(spec)
    reference = plan.matrix.compared_with()
    if reference is None:
        return
    plain = registry.DEFENSES.make(reference)
    if _built(asked) != _built(plain):
        return  # a defense that needs no training of its own stands on the reference's weights
    known = {file_hash(placed(path)): path for path in asked.files()}
    for path in plain.files():
        if (found := known.get(file_hash(placed(path)))) is not None:
            raise UserError(
                f"the reference {path} holds the same bytes as {found}: give the weights of a "
                "network that was trained without the defense"
            )


def _built(defense: Defense) -> Document:
    """Return what is made of the weights of a checkpoint: its parameters without them."""
    parameters = registry.parameters(defense)
    return {key: parameters[key] for key in parameters if key not in ("weights", "expect_accuracy")}


def own_models(plan: Plan) -> list[Node]:
    """Return the fits of a plan that only load what was trained elsewhere, one a training seed."""
    return [node for node in plan.of("fit") if node.defense().trained() is not None]


def model_of(node: Node, settings: Settings, data: Dataset) -> nn.Module:
    """Return the model of a fit that only loads; raises UserError where it does not serve."""
    from bench.plugins.recipes import find_recipe
    from bench.runner.rebuild import make_defense
    from bench.training.fit import fit

    document = node.document
    network = registry.NETWORKS.make(spec_of(document["network"]))
    recipe = find_recipe(document["recipe"]["name"])
    model = fit(make_defense(document), network, data, recipe, 0, {}, registry.ATTACKS.make)
    return model.to(settings.device)
