"""A verdict on modules of this process, which go to the results folder and are judged there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bench.base.files import read_json
from bench.base.fingerprint import digest
from bench.base.types import DamagedError, Document, Norm, UserError
from bench.evidence.folder import HANDED, RunFolder
from bench.judging.answer import Verdict, verdict_of
from bench.judging.question import Question, prepared, slug
from bench.plan.options import RunOptions
from bench.runner.processes import main_hidden

if TYPE_CHECKING:
    from torch import nn

    from bench.handed.inputs import Inputs

ASKED = ("dataset", "network", "recipe", "out", "seeds", "sources", "budgets")
"""Options of a run that a question answers itself."""


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

    if norm not in get_args(Norm):
        raise UserError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
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
        reference = matrix["reference"].get("name") == "live"
        there = {role: [] for role in known} | {
            "model": matrix["defense"][0]["identity"],
            "reference": matrix["reference"]["identity"] if reference else [],
            "source": [one["identity"][0] for one in matrix["transfer_from"]],
        }
        held = read_arrays(folder / HANDED / f"{name}.npz")
        same = _contents(Inputs(held["x"], held["y"])) == _contents(data)
    except (DamagedError, UserError, LookupError, TypeError, AttributeError) as error:
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
