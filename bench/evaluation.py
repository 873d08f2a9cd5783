"""A trained network, some tensors, some attacks: a table, without plugin, file or registry."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, cast

import pandas as pd
import torch
from torch import Tensor, nn

from bench.base.rows import CellRow, FlagRow, ModelRow, warns
from bench.base.types import DataInfo, Document, Outcome, Spec, ThreatModel, UserError
from bench.handed.adapt import Form, adapt
from bench.handed.diagnose import doubt
from bench.handed.inputs import check_inputs
from bench.measure.arithmetic import exact
from bench.measure.at_rest import at_rest
from bench.measure.cell import Sources, attack_sources
from bench.measure.probes import Samples, probe
from bench.measure.query import copies
from bench.plan.graph import SCALE
from bench.plan.panel import make_attack
from bench.plugins import discovery, registry
from bench.plugins.contracts import LEARNT, Attack, AttackContext, DataSource, LearningAttack
from bench.plugins.data import Dataset, Split
from bench.plugins.parameter import as_spec, as_table
from bench.plugins.recipes import find_recipe
from bench.results.cell_metrics import summarise
from bench.results.collect import row
from bench.results.model_metrics import summarise_model, summarise_probe
from bench.suspicion.suspect import suspect
from bench.training.fit import derive_seed, fit_attack, untaught
from bench.verdict.flags import ModelFacts, model_flags

Named = str | Mapping[str, Any] | Spec | Attack
"""An attack as it is named in Python."""


@exact()
def evaluate(  # noqa: PLR0913 (what a reader finds in one call)
    model: nn.Module,
    x: Any,
    y: Any,
    attacks: Named | Sequence[Named] = ("jsma", "fgsm"),
    *,
    sources: int | Literal["all"] | None = 100,
    seed: int = 0,
    name: str = "model",
    expect_accuracy: float | None = None,
    train: tuple[Any, Any] | None = None,
) -> Evaluation:
    """Attack ``model`` and return one row an attack: the columns of ``results.json``.

    ``model`` maps (n, *shape) float32 in [0, 1] to logits (n, classes), which may be the first
    item of a tuple or ``logits`` of what it returns; it is put in eval mode for the call and stays
    as it is. ``x``: (n, *shape), bytes or in [0, 1], and ``y``: (n,) integer labels, tensors or
    arrays, test data that the model has not seen: all of it measures accuracy and confidence, the
    first ``sources`` (``"all"`` or None: all) are attacked. What is guessed is a Python warning.
    ``attacks``: registered names, tables as in a matrix (``{"name": "pgd", "eps": 0.1}``),
    ``bench.Spec``, attack instances, or one. Intervals are split into ``*_low`` and
    ``*_high``. ``expect_accuracy``: what the model should have, a fraction.
    ``train``: (x, y) like those above, for attacks that learn before they perturb: without it they
    are skipped, with the reason in their row.

    The model is suspected as in a run (``bench.suspicion.suspect``): ``flagged`` holds what was
    found of the model and of each attack, and what warns is also a Python warning. (In
    ``results.json`` it is called ``flags``, which pandas has an attribute for.)

    Raises UserError for inputs that cannot be used; an attack that fails on this model raises.
    """
    discovery.load_plugins()
    named = [attacks] if isinstance(attacks, str | Mapping | Spec | Attack) else attacks
    chosen_attacks = [_attack(item) for item in named]  # before anything is measured
    if not chosen_attacks:
        raise UserError('no attack was named: attacks = "pgd", or a list of names or tables')
    if sources == "all":
        sources = None
    whole = isinstance(sources, Integral) and not isinstance(sources, bool)
    if sources is not None and not (whole and sources >= 1):
        raise UserError(f'sources must be a whole number from 1, or "all", got {sources!r}')
    if expect_accuracy is not None and not 0 < expect_accuracy <= 1:
        raise UserError(
            f"expect_accuracy must be a fraction, 0.84 for 84 %, got {expect_accuracy!r}"
        )
    test, model, notes = _handed(model, x, y)
    for note in notes:
        warnings.warn(note, stacklevel=3)  # ``exact`` stands between
    with at_rest(model):
        classes = _classes(model, test)
        info = DataInfo(name, tuple(test.stored.shape[1:]), classes, (0.0,), (1.0,))
        count = len(test) if sources is None else min(sources, len(test))
        first = test.take(slice(0, count))
        chosen = Sources(torch.arange(count, device=first.y.device), first.x, first.y, seed)
        clean, flags = _suspect(model, test, chosen, info, expect_accuracy)
        data = Dataset(info, *_training(train, test), test, "")
        rows = [_evaluate(model, attack, chosen, data, clean, seed) for attack in chosen_attacks]
    for flag in flags:
        if warns(flag):
            warnings.warn(f"{flag['id']}: {flag['evidence']}; {flag['advice']}", stacklevel=3)
    for found in rows:
        found["flags"] = [*flags, *(flag for flag in found["flags"] if flag["id"] != "chance")]
    frame = Evaluation(rows).rename(columns={"flags": "flagged"})
    for column in [name for name in frame.columns if name.endswith("_ci")]:
        stem = column.removesuffix("_ci")
        bounds = [pair or (None, None) for pair in frame[column]]
        frame[f"{stem}_low"] = pd.array([low for low, _ in bounds], dtype="Float64")
        frame[f"{stem}_high"] = pd.array([high for _, high in bounds], dtype="Float64")
    return Evaluation(frame)


class Evaluation(pd.DataFrame):
    """What ``evaluate`` returns: a table of all columns; a notebook shows those to read."""

    def _repr_html_(self) -> str:
        shown = [name for name in BRIEF if name in self.columns]
        if len(shown) < len(BRIEF):
            return str(self.to_html())  # somebody picked columns: these are what he wants to see
        brief = pd.DataFrame(
            {
                "attack": self["attack"],
                "threat": [str(ThreatModel(**threat)) for threat in self["threat"]],
                "success": [_share(*row) for row in self[RATE].itertuples(index=False)],
                "accuracy left": [_share(left) for left in self["robust_accuracy"]],
                "accuracy": [_share(clean) for clean in self["accuracy"]],
                "flagged": [
                    ", ".join(flag["id"] for flag in flags if warns(flag)) or "–"
                    for flags in self["flagged"]
                ],
            }
        )
        return str(brief.to_html(index=False, border=0))


RATE = ["success_rate", "success_low", "success_high"]

BRIEF = ("attack", "threat", *RATE, "robust_accuracy", "accuracy", "flagged")


def _share(rate: Any, low: Any = None, high: Any = None) -> str:
    if pd.isna(rate):
        return "–"
    ends = "" if pd.isna(low) else f" [{low:.1%}, {high:.1%}]"
    return f"{rate:.1%}{ends}"


def _suspect(
    model: nn.Module, test: Split, sources: Sources, info: DataInfo, expected: float | None
) -> tuple[Document, list[FlagRow]]:
    """Return what stands beside every attack, and what is suspicious about the model."""
    count = len(sources.ids)
    data = Dataset(info, test, test, test, "")
    found = probe(model, data, Samples(count, count, sources.seed))
    suspicion = suspect(copies(model), lambda module: module, sources.x, sources.y, SCALE)
    summary = summarise_model(found.rows, found.rows["sample_id"].tolist())
    row = {
        "status": "done",
        "errors": found.errors,
        **summary,
        "suspicion": suspicion.document(),
        "handed": doubt(model, test, expected),
    }
    flags = model_flags(ModelFacts(cast("ModelRow", row), info.classes)).document()["flags"]
    return summarise_probe(found.rows), flags


def _training(train: tuple[Any, Any] | None, test: Split) -> tuple[Split, Split]:
    """Return what attacks may learn from, and an empty validation split."""
    none = test.take(slice(0, 0))
    if train is None:
        return none, none
    x, y = train
    found = check_inputs(x, y).split().to(test.y.device)
    if found.stored.shape[1:] != test.stored.shape[1:]:
        raise UserError(
            f"train holds inputs of shape {tuple(found.stored.shape[1:])}, and x those of "
            f"{tuple(test.stored.shape[1:])}: an attack learns on inputs of one shape"
        )
    return found, none


def _evaluate(
    model: nn.Module, attack: Attack, sources: Sources, data: Dataset, clean: Document, seed: int
) -> CellRow:
    info = data.info
    threat = attack.threat(info.shape)
    if attack.access == "gradients" and not _differentiable(model, sources):
        raise UserError(
            f"{_name(attack)} follows gradients and the model's answer has none: no torch.no_grad, "
            "detach or NumPy inside, or attack by queries alone, as square does"
        )
    identity = {"attack": _name(attack), "attack_params": registry.parameters(attack)}
    fitted = {}
    if isinstance(attack, LearningAttack):
        if not len(data.train):
            outcome = Outcome("skipped", untaught(info.name))
            warnings.warn(f"{_name(attack)} is skipped: {outcome.reason}", stacklevel=4)
            return row(identity, outcome, threat, {}, clean, {}, info.classes)
        fitted[LEARNT] = _learnt(attack.fitted_as(), model, data, seed)
    evidence = attack_sources(model, attack, sources, AttackContext(info, seed, fitted))
    summary = summarise(evidence.records, threat, info.features)
    queries = {"forwards": evidence.forwards, "backwards": evidence.backwards}
    return row(identity, Outcome("done"), threat, summary, clean, queries, info.classes)


def _learnt(attack: LearningAttack, model: nn.Module, data: Dataset, seed: int) -> nn.Module:
    """Return what ``attack`` learns about ``model``, seeded as in a run."""
    with torch.random.fork_rng(devices=[]):
        return fit_attack(
            attack, model, data, find_recipe(DataSource.recipe), derive_seed(seed, _name(attack)),
            {}, registry.ATTACKS.make,
        )  # fmt: skip


def _differentiable(model: nn.Module, sources: Sources) -> bool:
    try:
        with torch.enable_grad():
            answer: Tensor = model(sources.x[:2].clone().requires_grad_())
    except RuntimeError as error:
        if "requires grad" in str(error):  # NumPy inside, without a detach
            return False
        raise
    return answer.requires_grad


def _attack(item: Named) -> Attack:
    if isinstance(item, Attack):
        return item
    if isinstance(item, Spec):
        return make_attack(item)
    try:
        return make_attack(as_spec(as_table("attacks", item, "fgsm")))
    except ValueError as error:
        raise UserError(str(error)) from error


def _name(attack: Attack) -> str:
    try:
        return registry.ATTACKS.name_of(attack)
    except UserError:
        return type(attack).__name__  # an instance of a class that nobody registered


def _handed(model: nn.Module, x: Any, y: Any) -> tuple[Split, nn.Module, tuple[str, ...]]:
    """Return the data on the model's device, the model as the harness takes it, and notes."""
    found = check_inputs(x, y)
    adapted, notes = adapt(model, Form(), found.x.shape[1:])
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return found.split().to(device), adapted, (*found.notes, *notes)


def _classes(model: nn.Module, test: Split) -> int:
    """Return how many classes the model has; raises UserError where a label is none of them."""
    with torch.no_grad():
        classes = int(model(test.take(slice(0, 2)).x).shape[1])
    if int(test.y.max()) >= classes:
        raise UserError(
            f"y must hold labels in [0, {classes}), as many as the model has logits, and goes up "
            f"to {int(test.y.max())}: do they count from 0?"
        )
    return classes
