"""One cell: choose the attempts, run the attack, query the model again, emit records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo, Targets
from bench.measure.logits import columns as logit_columns
from bench.measure.query import (
    ContractError,
    Distances,
    confidence,
    distances,
    hashes,
    lead,
    predict,
)
from bench.plugins.contracts import Attack, AttackContext, Perturbation

NO_TARGET = -1

REPORTED: dict[str, Literal["Int64", "string"]] = {
    "iterations": "Int64",
    "stop_reason": "string",
    "zero_gradients": "Int64",
}
"""Columns of a record that the runner takes from the attack, and cannot measure itself."""


@dataclass(frozen=True)
class Sources:
    """The images a cell attacks: their index in the test split, inputs and labels, in order.

    ``seed`` chooses random targets, the same for every model.
    """

    ids: Tensor
    x: Tensor
    y: Tensor
    seed: int = 0


@dataclass(frozen=True)
class Evidence:
    """What a cell leaves: one record a row, the adversarial input of each, the queries spent.

    Row i of ``records`` belongs to ``x_adv[i]``; a source that the model misclassifies is one
    row with status ``misclassified`` and its clean input. ``forwards`` and ``backwards`` count
    rows through the model during the attack, by the runner's own hooks.
    """

    records: pd.DataFrame
    x_adv: Tensor
    forwards: int
    backwards: int


@dataclass(frozen=True)
class Attempts:
    """Which sources are attacked at which targets, (attempts,) each.

    ``clean``: logits (n, classes) of the sources; ``source``: a row of the sources; ``target``: a
    class, or ``NO_TARGET``; ``attacked``: False for a source that the model misclassifies.
    """

    clean: Tensor
    source: Tensor
    target: Tensor
    attacked: Tensor


def attack_sources(
    model: nn.Module,
    attack: Attack,
    sources: Sources,
    context: AttackContext,
    surrogate: nn.Module | None = None,
) -> Evidence:
    """Attack ``model`` on ``sources`` and judge every row on ``model`` itself.

    ``surrogate`` is what a gradient attack differentiates instead of the model. Raises
    ContractError where model or attack return what they must not.
    """
    clean = predict(model, sources.x, context.info.classes)
    attempts = choose_attempts(clean, sources, attack.targets, context.info.classes)
    x, y = sources.x[attempts.source], sources.y[attempts.source]
    differentiates = attack.access == "gradients" and attack.adaptive
    subject = surrogate if surrogate is not None and differentiates else model
    rows = attempts.attacked
    target = attempts.target[rows] if attack.targeted else None
    context = replace(context, sample_ids=sources.ids.to(x.device)[attempts.source[rows]])
    queries = _Queries()
    with queries.counted(subject):
        result = _perturb(attack, subject, x[rows], y[rows], target, context)
    x_adv = x.clone()
    x_adv[rows] = result.x_adv.detach()
    records = judge(model, attack, sources, attempts, x_adv, context.info)
    _report(records, rows.cpu().numpy(), result)
    return Evidence(records, x_adv, queries.forwards, queries.backwards)


def choose_attempts(clean: Tensor, sources: Sources, targets: Targets, classes: int) -> Attempts:
    """Expand sources into attempts: (source, target), by source and then by target.

    ``clean``: logits (n, classes). Misclassified sources stay as one row that is not attacked.
    """
    labels = sources.y
    correct = clean.argmax(dim=1) == labels
    wanted = _wanted(clean, labels, targets, classes, sources.seed)
    wanted = torch.where(correct[:, None], wanted, torch.zeros_like(wanted))
    wanted[~correct, 0] = True
    source, target = wanted.nonzero(as_tuple=True)
    attacked = correct[source]
    if targets == "untargeted":
        target = torch.full_like(target, NO_TARGET)
    return Attempts(clean, source, target.masked_fill(~attacked, NO_TARGET), attacked)


def _wanted(clean: Tensor, labels: Tensor, targets: Targets, classes: int, seed: int) -> Tensor:
    wanted = torch.zeros(len(labels), classes, dtype=torch.bool, device=labels.device)
    rows = torch.arange(len(labels), device=labels.device)
    if targets == "all":
        wanted[:] = True
        wanted[rows, labels] = False
    elif targets == "random":
        shift = np.random.RandomState(seed).randint(1, classes, size=len(labels))
        wanted[rows, (labels + torch.from_numpy(shift).to(labels)) % classes] = True
    elif targets == "runner-up":
        others = clean.scatter(1, labels[:, None], -torch.inf)
        wanted[rows, others.argmax(dim=1)] = True
    else:
        wanted[:, 0] = True
    return wanted


def _perturb(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    context: AttackContext,
) -> Perturbation:
    if not len(x):
        return Perturbation(x)
    result = attack.perturb(model, x.clone(), y, target, context)
    if not isinstance(result, Perturbation):
        raise ContractError(
            f"perturb must return a bench.Perturbation, got {type(result).__name__}"
        )
    x_adv = result.x_adv
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        got = f"{tuple(x_adv.shape)} {x_adv.dtype}" if isinstance(x_adv, Tensor) else type(x_adv)
        raise ContractError(f"x_adv must be {tuple(x.shape)} {x.dtype}, got {got}")
    for name in REPORTED:
        column = getattr(result, name)
        if column is not None and len(column) != len(x):
            raise ContractError(f"{name} must have {len(x)} entries, got {len(column)}")
    return result


def judge(
    model: nn.Module, attack: Attack, sources: Sources, attempts: Attempts, x_adv: Tensor,
    info: DataInfo,
) -> pd.DataFrame:  # fmt: skip
    """Query ``model`` again on every attempt's input and return the records.

    ``attack`` says what it may change and what it is after; ``x_adv``: (attempts, *shape). All
    columns but those of ``REPORTED``, which only the attack can know. Raises ContractError where
    the model returns what it must not.
    """
    logits = predict(model, x_adv, info.classes)
    measured = distances(sources.x[attempts.source], x_adv)
    in_budget = measured.within(attack.threat(info.shape), info.shape)
    valid = attempts.attacked & measured.in_box & in_budget & torch.isfinite(logits).all(dim=1)
    label = sources.y[attempts.source]
    # An input without a source is no version of it, and the source's label says nothing of it.
    versions = attack.threat(info.shape).norm != "none"
    misclassified = valid & (lead(logits, label) < 0) & versions
    if attack.targeted:
        success = valid & (lead(logits, attempts.target.clamp(min=0)) > 0)
        if attack.confidence is not None:
            success &= confidence(logits) >= attack.confidence
    elif attack.confidence is not None:
        success = valid & (confidence(logits) < attack.confidence)
    else:
        success = misclassified
    source = attempts.source
    columns: dict[str, Any] = {
        "sample_id": sources.ids.to(source.device)[source],
        "label": label,
        "target": attempts.target,
        "clean_prediction": attempts.clean.argmax(dim=1)[source],
        "adversarial_prediction": logits.argmax(dim=1),
        "clean_confidence": confidence(attempts.clean)[source],
        "adversarial_confidence": confidence(logits),
        **logit_columns(logits),
        "success": success,
        "misclassified": misclassified,
        **_distance_columns(measured),
        "in_budget": in_budget,
    }
    frame = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    hashed = np.array(hashes(sources.x))
    frame.insert(1, "input_hash", hashed[source.cpu().numpy()])
    frame.insert(2, "adversarial_hash", hashes(x_adv))
    status = np.where(attempts.attacked.cpu().numpy(), "attacked", "misclassified")
    frame.insert(3, "status", status)
    return frame


def _distance_columns(measured: Distances) -> dict[str, Tensor]:
    names = ("l0_features", "l0_pixels", "l2", "linf", "finite", "in_box")
    return {name: getattr(measured, name) for name in names}


def _report(records: pd.DataFrame, rows: np.ndarray, result: Perturbation) -> None:
    # What only the attack can know: how long it ran, why it stopped, what it saw.
    for name, dtype in REPORTED.items():
        records[name] = pd.array([None] * len(records), dtype=dtype)
        column = getattr(result, name)
        if column is not None:
            values = column.cpu().numpy() if isinstance(column, Tensor) else list(column)
            records.loc[rows, name] = values


class _Queries:
    """Counts the rows that pass through a module, forward and backward."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0

    def counted(self, model: nn.Module) -> torch.utils.hooks.RemovableHandle:
        """Count while the returned handle, a context manager, is open."""
        return model.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.forwards += len(output)
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
