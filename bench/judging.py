"""A verdict on models that others trained: files or live modules in, a matrix and its run out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.audit.repeat_command import as_toml
from bench.base.files import file_hash, read_json, write_text
from bench.base.fingerprint import digest
from bench.base.places import placed
from bench.base.rows import Results, VerdictRow, defense_of, warns
from bench.base.types import DamagedError, Document, UserError, spec_of
from bench.compose import RunResult, run_prepared
from bench.evidence.folder import HANDED, MATRIX, RunFolder
from bench.plan.graph import Node, Plan, data_name
from bench.plan.options import RunOptions
from bench.plugins import registry
from bench.runner.prepare import prepare
from bench.runner.processes import main_hidden
from bench.runner.schedule import check_kept

if TYPE_CHECKING:
    from torch import nn

    from bench.handed.inputs import Inputs
    from bench.plugins.contracts import Defense
    from bench.plugins.data import Dataset
    from bench.runner.task import Settings

FORM = ("mean", "std", "range", "layout", "order", "part")
"""Parameters of ``checkpoint`` that say how a network wants its inputs, the same for all given."""


ASKED = ("dataset", "network", "recipe", "out", "seeds", "sources", "budgets")
"""Options of a run that a question answers itself."""


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
    plan_document = registry.DEFENSES.document(registry.DEFENSES.make(_spec(question.defense)))
    rows = [r for r in result.results.verdicts if defense_of(r) == plan_document]
    if not rows:
        raise UserError(f"{result.folder} holds no verdict on {question.defense['name']!r}")
    row = next((row for row in rows if row["headline"]), rows[-1])
    return Verdict(row, result.results, result.folder, tuple(result.progress.notes))


def judge(  # noqa: PLR0913 (keywords, as of the command)
    models: nn.Module | Sequence[nn.Module],
    x: Any,
    y: Any,
    *,
    norm: str,
    budget: float | str | Sequence[float | str],
    reference: nn.Module | Sequence[nn.Module] | None = None,
    transfer_from: Sequence[nn.Module] = (),
    sources: int | str | None = None,
    name: str = "judge",
    out: str | Path | None = None,
    **options: Any,
) -> Verdict:
    """Return a verdict on ``models``: trained networks, each a training seed of one defense.

    ``models`` map (n, *shape) float32 in [0, 1] to logits; ``x``, ``y``: test data that they have
    not seen, as ``bench.evaluate`` takes them. ``norm``: ``linf``, ``l2`` or ``l0``; ``budget``: a
    length in input units, also ``"8/255"``, a number of features under L0, or several.
    ``reference``: the same network without the defense, one for all or one for each; without it the
    verdict says what stands, and never ``holds``. ``transfer_from``: further networks for transfer
    attacks. ``sources``: how many rows are attacked (a number or ``"all"``; 100, or all where there
    are fewer). ``name``, ``out``: of the run and its folder, by default named after all that was
    handed over. ``options``: fields of ``RunOptions``, as ``workers``.

    It is a run like any other: the modules and data go to ``out/handed``, the matrix to
    ``out/judge.toml``, and the same call goes on where an interrupted one stopped. Modules are
    pickled, so that other processes can attack them; nobody's are read without ``--unpickle``.

    Raises UserError for inputs that cannot be used and modules that cannot be pickled.
    """
    from bench.handed.inputs import check_inputs

    given = _several(models, "model")
    if not given:
        raise UserError("no model was given")
    plain = [] if reference is None else _several(reference, "reference")
    further = [] if not transfer_from else _several(transfer_from, "source")
    known = {role: _identities(found, role) for role, found in
             (("model", given), ("reference", plain), ("source", further))}  # fmt: skip
    if set(known["model"]) & set(known["reference"]):
        raise UserError("the reference is one of the models: it would be compared with itself")
    asked = RunOptions(**_known(options))
    data = check_inputs(x, y)
    count = len(data.y)
    question = Question(
        slug(name), {"name": "live"}, {}, norm, _budgets(budget),
        sources=min(100, count) if sources is None else sources,
    )  # fmt: skip
    home = question.folder()
    # Named after what was handed over too: two questions of one notebook are no one run.
    home = home.with_name(f"{home.name}-{digest([known, _contents(data)])[:8]}")
    folder = (Path(out) if out is not None else home).absolute()
    RunFolder(folder).prepare(question.name)
    if not asked.replace:
        _check_same(folder, known, data, slug(name))
    classes = _classes(given[0], data)
    question = replace(
        question,
        dataset={"name": "arrays", "path": _hand_data(data, classes, folder, slug(name))},
        defense=_hand(given, known["model"], folder, "model"),
        reference=_hand(plain, known["reference"], folder, "reference") if plain else None,
        transfer_from=[
            _hand([model], [known["source"][number]], folder, f"source-{number}")
            for number, model in enumerate(further)
        ],
    )
    with main_hidden():
        result = prepared(question, replace(asked, out=folder)).run()
    return verdict_of(result, question)


def _contents(data: Inputs) -> str:
    """Return a hash of inputs and labels."""
    found = hashlib.sha256()
    for array in (data.x, data.y):
        found.update(f"{array.dtype} {array.shape}".encode())
        for rows in range(0, len(array), 1000):  # they may lie on the disk
            found.update(array[rows : rows + 1000].tobytes())
    return found.hexdigest()


def _budgets(budget: Any) -> list[float | str]:
    """Return one or several budgets as a list of plain numbers and words."""
    several = [budget] if isinstance(budget, str) or not isinstance(budget, Iterable) else budget
    found: list[float | str] = []
    for one in several:
        if not isinstance(one, str | Real) and not (hasattr(one, "item") and one.ndim == 0):
            raise UserError(f"a budget is a number or a text as '8/255', got {one!r}")
        found.append(one if isinstance(one, str | int | float) else one.item())
    return found


def _check_same(folder: Path, known: Mapping[str, Sequence[str]], data: Inputs, name: str) -> None:
    """Raise UserError where a folder holds results of other models or data, before it is touched.

    Raises it also where what it was made of cannot be read any more.
    """
    home = RunFolder(folder)
    if not home.top("results.json").exists():
        return
    from bench.handed.arrays import read_arrays
    from bench.handed.inputs import Inputs

    told = "choose another out, or give replace=True"
    try:
        matrix = read_json(home.top("plan.json"))["matrix"]
        reference = isinstance(matrix["reference"], dict)
        there = {role: [] for role in known} | {
            "model": matrix["defense"][0]["identity"],
            "reference": matrix["reference"]["identity"] if reference else [],
            "source": [one["identity"][0] for one in matrix["transfer_from"]],
        }
        held = read_arrays(folder / HANDED / f"{name}.npz")
        same = _contents(Inputs(held["x"], held["y"])) == _contents(data)
    except (DamagedError, UserError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"results folder {folder} holds a run whose models or data cannot be told: {told}"
        ) from error
    for role, found in known.items():
        if list(found) != list(there[role]):
            raise UserError(f"results folder {folder} holds a run of another {role}: {told}")
    if not same:
        raise UserError(f"results folder {folder} holds a run on other data: {told}")


def _classes(model: nn.Module, data: Inputs) -> int:
    """Return how many classes a model tells apart; raises UserError where it gives no logits."""
    import torch

    from bench.handed.adapt import Form, adapt
    from bench.measure.at_rest import at_rest
    from bench.measure.query import copies

    # A copy: what a module keeps of a call, as a cache, would make it another one next time.
    adapted, _ = adapt(copies(model)(), Form(), data.x.shape[1:])
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    with at_rest(adapted), torch.no_grad():
        return int(adapted(data.split().take(slice(0, 1)).x.to(device)).shape[1])


def _hand_data(data: Inputs, classes: int, folder: Path, name: str) -> str:
    """Write test data to a results folder, and return where they lie there."""
    import numpy as np

    from bench.base.files import atomic

    path = folder / HANDED / f"{name}.npz"
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, x=data.x, y=data.y, classes=classes)
    return path.relative_to(folder).as_posix()


def _known(options: Mapping[str, Any]) -> Mapping[str, Any]:
    from bench.base.text import nearest

    known = [name for name in RunOptions.__dataclass_fields__ if name not in ASKED]
    if unknown := set(options) - set(known):
        name = min(unknown)
        raise UserError(f"unknown option {name!r}: {nearest(name, known)}")
    return options


def _several(given: Any, role: str) -> list[nn.Module]:
    """Return one or several modules as a list; raises UserError for what is none."""
    from torch import nn

    several = list(given) if isinstance(given, list | tuple) else [given]
    for number, model in enumerate(several):
        if not isinstance(model, nn.Module):
            raise UserError(
                f"{role} {number} must be a torch.nn.Module, got {type(model).__name__}; weights "
                "in a file are for the command judge, and a function goes into a module's forward"
            )
    return several


def _identities(models: Sequence[nn.Module], role: str) -> list[str]:
    """Return what each module is, as a hash; raises UserError where two are the same."""
    from bench.handed.identity import identity

    known = [identity(model) for model in models]
    if len(set(known)) < len(known):
        raise UserError(f"{role}: the same module was given twice, which is no further training")
    return known


def _hand(models: Sequence[nn.Module], known: Sequence[str], folder: Path, role: str) -> Document:
    """Write modules to a results folder, and return the table of the defense that they are."""
    from bench.base.files import atomic
    from bench.plugins.unpickle import pickled

    paths = [folder / HANDED / f"{role}-{number}.pkl" for number in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        with atomic(path) as temporary:
            temporary.write_bytes(pickled(model))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return {"name": "live", "modules": names, "identity": list(known)}


def _spec(table: Document) -> Any:
    from bench.plugins.parameter import as_spec

    return as_spec(table)
