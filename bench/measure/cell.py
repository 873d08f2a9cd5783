"""One cell: choose the attempts, run the attack, query another instance, emit records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo, Targets
from bench.measure.logits import columns as logit_columns
from bench.measure.query import (
    Anew,
    ContractError,
    Distances,
    answer,
    ask,
    confidence,
    copies,
    differs,
    distances,
    hashes,
    lead,
)
from bench.measure.watch import SpentError, Watch
from bench.plugins.contracts import SPENT, Attack, AttackContext, Perturbation

NO_TARGET = -1

BLOCK = 500
"""Sources that are attacked in one call where a cell has more and its attack takes row by row."""

STATUSES = ("misclassified", "attacked", "seen")
"""What a record is about: a source that needs no attack, an attempt, an input seen on the way."""

REPORTED: dict[str, Literal["Int64", "string"]] = {
    "iterations": "Int64",
    "stop_reason": "string",
    "zero_gradients": "Int64",
}
"""Columns of a record that the runner takes from the attack, and cannot measure itself."""


@dataclass(frozen=True)
class Sources:
    """The images a cell attacks: their index in the test split, inputs and labels, in order.

    ``seed`` chooses random targets, the same for every model. ``start``: how many sources of the
    cell come before the first of these, where it is attacked block by block.
    """

    ids: Tensor
    x: Tensor
    y: Tensor
    seed: int = 0
    start: int = 0

    def only(self, ids: Tensor) -> Sources:
        """Return those with an index in ``ids``."""
        kept = torch.isin(self.ids, ids.to(self.ids.device))
        return Sources(self.ids[kept], self.x[kept], self.y[kept], self.seed)

    def block(self, number: int) -> Sources:
        """Return those of one block."""
        rows = slice(number * BLOCK, (number + 1) * BLOCK)
        return Sources(self.ids[rows], self.x[rows], self.y[rows], self.seed, rows.start)


@dataclass(frozen=True)
class Subject:
    """Who is attacked and how it is judged.

    ``model`` is what the attack asks; ``anew`` builds the instances that choose the attempts and
    judge the outcome, by default copies of ``model`` as it is before the attack. ``surrogate`` is
    what gradient attacks differentiate instead. ``draws``: how often each judging question is
    asked, more than once of a stochastic model, against which attacks go on after their first
    success. ``most_passes``: forward and backward passes an
    attempt may cost, None without a limit.
    """

    model: nn.Module
    anew: Anew | None = None
    surrogate: nn.Module | None = None
    draws: int = 1
    most_passes: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What a cell leaves: one record a row, the adversarial input of each, the queries spent.

    Row i of ``records`` belongs to ``x_adv[i]``. A source that the model misclassifies is one row
    with status ``misclassified`` and its clean input. A row of status ``seen`` holds an input that
    the attack asked about and got a wrong answer to, where it returned none for that source.
    ``forwards`` and ``backwards`` count rows through the model during the attack, by the runner's
    own hooks. ``differing``: of how many rows the attacked instance says something else than the
    judging one.
    """

    records: pd.DataFrame
    x_adv: Tensor
    forwards: int
    backwards: int
    differing: int = 0


@dataclass(frozen=True)
class Attempts:
    """Which sources are attacked at which targets, (attempts,) each.

    ``source``: a row of the sources; ``target``: a class, or ``NO_TARGET``; ``attacked``: False
    for a source that the model misclassifies; ``seen``: True for a row that is no attempt but an
    input that the attack asked about.
    """

    source: Tensor
    target: Tensor
    attacked: Tensor
    seen: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        if len(self.seen) != len(self.source):
            object.__setattr__(self, "seen", torch.zeros_like(self.attacked))

    def with_seen(self, source: Tensor) -> Attempts:
        """Return these and behind them a row for what was seen of each of ``source``."""
        more = torch.ones_like(source, dtype=torch.bool)
        return Attempts(
            torch.cat([self.source, source]),
            torch.cat([self.target, torch.full_like(source, NO_TARGET)]),
            torch.cat([self.attacked, ~more]),
            torch.cat([self.seen, more]),
        )


def blocks(sources: int, attack: Attack) -> int:
    """Return into how many blocks a cell of so many ``sources`` falls: 1 where it stays whole.

    The same blocks whoever attacks them: how they are handed out changes no byte.
    """
    return -(-sources // BLOCK) if attack.rowwise and sources > BLOCK else 1


def attack_sources(
    subject: nn.Module | Subject,
    attack: Attack,
    sources: Sources,
    context: AttackContext,
) -> Evidence:
    """Attack a model on ``sources`` and judge every row on another instance of it.

    The attempts are chosen by one instance, the attack asks a second, and a third, which has been
    asked nothing, judges: adversarial inputs first, in another order and other batches. Raises
    ContractError where model or attack return what they must not.
    """
    if isinstance(subject, nn.Module):
        subject = Subject(subject)
    if subject.draws > 1:
        attack = tireless(attack)
    anew = subject.anew or copies(subject.model)
    classes = context.info.classes
    clean = ask(anew(), sources.x, classes, sources.seed, subject.draws)
    attempts = choose_attempts(clean, sources, attack.targets, classes)
    x, y = sources.x[attempts.source], sources.y[attempts.source]
    differentiates = attack.access == "gradients" and attack.adaptive
    asked = subject.surrogate if subject.surrogate is not None and differentiates else subject.model
    rows = attempts.attacked
    target = attempts.target[rows] if attack.targeted else None
    context = replace(context, sample_ids=sources.ids.to(x.device)[attempts.source[rows]])
    shape = context.info.shape
    watch = Watch(
        sources.x, sources.y, _distinct(attempts.source[rows]), attack.threat(shape), shape
    )
    most = None if subject.most_passes is None else subject.most_passes * int(rows.sum())
    with _watched(watch, subject.model, asked, most):
        result = _perturb(attack, asked, x[rows], y[rows], target, context)
    x_adv = x.clone()
    x_adv[rows] = result.x_adv.detach()
    said = ask(subject.model, x_adv, classes, sources.seed + 1, subject.draws)
    wrong = answer(said) != y
    valid = distances(x, x_adv)
    wrong &= valid.in_box & valid.within(attack.threat(shape), shape)
    returned = torch.isin(watch.sources(), attempts.source[rows & wrong])
    if len(found := watch.sources()[~returned]):  # seen, and neither it nor another was returned
        attempts = attempts.with_seen(found)
        x_adv = torch.cat([x_adv, watch.inputs()[~returned]])
    judged = question(anew(), sources, x_adv, classes, subject.draws)
    records = judge(judged, attack, sources, attempts, x_adv, context.info)
    _report(records, np.flatnonzero(rows.cpu().numpy()), result)
    differing = differs(said, judged.adversarial[: len(said)]).sum() if subject.draws == 1 else 0
    return Evidence(records, x_adv, watch.forwards, watch.backwards, int(differing))


def tireless(attack: Attack) -> Attack:
    """Return ``attack`` without ``early_stop``: of a stochastic model a first success is chance.

    What a lucky draw lets pass, the most frequent answer of several seldom does.
    """
    if not any(item.name == "early_stop" and item.init for item in fields(attack)):
        return attack
    return replace(attack, early_stop=False)  # type: ignore[call-arg]


@contextmanager
def _watched(watch: Watch, model: nn.Module, asked: nn.Module, most: int | None) -> Iterator[None]:
    with ExitStack() as hooks:
        hooks.enter_context(watch.counted(asked, most))
        hooks.enter_context(watch.seeing(model))
        yield


def _distinct(rows: Tensor) -> Tensor:
    """Return ``rows`` ascending, each once."""
    return torch.tensor(sorted(set(rows.tolist())), dtype=torch.int64, device=rows.device)


def choose_attempts(clean: Tensor, sources: Sources, targets: Targets, classes: int) -> Attempts:
    """Expand sources into attempts: (source, target), by source and then by target.

    ``clean``: logits (n, classes). Misclassified sources stay as one row that is not attacked.
    """
    labels = sources.y
    correct = answer(clean) == labels
    wanted = _wanted(clean, sources, targets, classes)
    wanted = torch.where(correct[:, None], wanted, torch.zeros_like(wanted))
    wanted[~correct, 0] = True
    source, target = wanted.nonzero(as_tuple=True)
    attacked = correct[source]
    if targets == "untargeted":
        target = torch.full_like(target, NO_TARGET)
    return Attempts(source, target.masked_fill(~attacked, NO_TARGET), attacked)


def _wanted(clean: Tensor, sources: Sources, targets: Targets, classes: int) -> Tensor:
    labels, start = sources.y, sources.start
    wanted = torch.zeros(len(labels), classes, dtype=torch.bool, device=labels.device)
    rows = torch.arange(len(labels), device=labels.device)
    if targets == "all":
        wanted[:] = True
        wanted[rows, labels] = False
    elif targets == "random":
        drawn = np.random.RandomState(sources.seed).randint(1, classes, size=start + len(labels))
        shift = drawn[start:]
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
    try:
        result = attack.perturb(model, x.clone(), y.clone(), target, context)
    except SpentError:
        return Perturbation(x, stop_reason=[SPENT] * len(x))
    if not isinstance(result, Perturbation):
        raise ContractError(
            f"perturb must return a bench.Perturbation, got {type(result).__name__}"
        )
    x_adv = result.x_adv
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        got = f"{tuple(x_adv.shape)} {x_adv.dtype}" if isinstance(x_adv, Tensor) else type(x_adv)
        raise ContractError(f"x_adv must be {tuple(x.shape)} {x.dtype}, got {got}")
    if x_adv.device != x.device:
        raise ContractError(f"x_adv must lie on the device of x, {x.device}, got {x_adv.device}")
    for name in REPORTED:
        column = getattr(result, name)
        if column is not None and len(column) != len(x):
            raise ContractError(f"{name} must have {len(x)} entries, got {len(column)}")
    return result


@dataclass(frozen=True)
class Judged:
    """What the judging instance answered: logits of the adversarial inputs, then of the sources."""

    adversarial: Tensor
    clean: Tensor


def question(
    model: nn.Module, sources: Sources, x_adv: Tensor, classes: int, draws: int = 1
) -> Judged:
    """Ask an instance that has been asked nothing yet: adversarial inputs first, then clean ones.

    ``x_adv``: (rows, *shape). Raises ContractError where the model returns what it must not.
    """
    adversarial = ask(model, x_adv, classes, sources.seed + 2, draws)
    return Judged(adversarial, ask(model, sources.x, classes, sources.seed + 3, draws))


def judge(
    judged: Judged, attack: Attack, sources: Sources, attempts: Attempts, x_adv: Tensor,
    info: DataInfo,
) -> pd.DataFrame:  # fmt: skip
    """Return the records of every row, by what the judging instance answered.

    ``attack`` says what it may change and what it is after; ``x_adv``: (attempts, *shape). All
    columns but those of ``REPORTED``, which only the attack can know. ``misclassified``: an input
    within box and budget whose label does not win strictly with finite logits. ``success``: the
    attack's own goal, with a strict margin.
    """
    logits, clean = judged.adversarial, judged.clean
    measured = distances(sources.x[attempts.source], x_adv)
    in_budget = measured.within(attack.threat(info.shape), info.shape)
    kept = (attempts.attacked | attempts.seen) & measured.in_box & in_budget
    finite = torch.isfinite(logits).all(dim=1)
    label = sources.y[attempts.source]
    # An input without a source is no version of it, and the source's label says nothing of it.
    versions = attack.threat(info.shape).norm != "none"
    misclassified = kept & (answer(logits) != label) & versions
    valid = kept & finite & attempts.attacked
    if attack.targeted:
        success = valid & (lead(logits, attempts.target.clamp(min=0)) > 0)
        if attack.confidence is not None:
            success &= confidence(logits) >= attack.confidence
    elif attack.confidence is not None:
        success = valid & (confidence(logits) < attack.confidence)
    else:
        success = valid & (lead(logits, label) < 0) & versions
    source = attempts.source
    columns: dict[str, Any] = {
        "sample_id": sources.ids.to(source.device)[source],
        "label": label,
        "target": attempts.target,
        "clean_prediction": answer(clean)[source],
        "adversarial_prediction": answer(logits),
        "clean_confidence": confidence(clean)[source],
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
    code = (attempts.attacked.long() + 2 * attempts.seen.long()).cpu().numpy()
    frame.insert(3, "status", np.array(STATUSES)[code])
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
