"""Stored inputs judged again, and the rows held against the stored ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.base.types import DamagedError, DataInfo
from bench.measure.cell import (
    NO_TARGET,
    REPORTED,
    STATUSES,
    Attempts,
    Sources,
    choose_attempts,
    judge,
    question,
)
from bench.measure.probes import GRADIENTS
from bench.measure.query import Anew, ask
from bench.plugins.contracts import Attack
from bench.results.cell_metrics import summarise
from bench.results.model_metrics import summarise_probe
from bench.verdict.rates import difference_spans_zero

Mode = Literal["exact", "tolerant", "stochastic"]
"""``exact`` on the machine of the run; ``tolerant`` on other hardware; ``stochastic`` models."""

CONFIDENCE = 1e-3
"""How far a confidence may move on other hardware."""

TIE = 1e-4
"""On other hardware a prediction may change where the two logits lie this near, relative to the
larger of 1 and the top logit."""

OTHERWISE = 0.05
"""On other hardware, the share of what is measured of gradients, and of attempts that are made
anew, at least one, that may come out otherwise."""

MODEL_MADE = ("finite", "entropy", "sums_to_one", *GRADIENTS)
"""What a stochastic model answers otherwise every time, beside predictions, logits, confidences."""

PREDICTED = ("prediction", "clean_prediction", "adversarial_prediction", "success", "misclassified")


@dataclass(frozen=True)
class Difference:
    """What ``verify`` found: where, what, and the two values."""

    node: str
    what: str
    stored: Any
    recomputed: Any


@dataclass(frozen=True)
class Comparison:
    """Differences of one file of rows, and how many predictions changed on a near tie."""

    differences: list[Difference]
    changed: int = 0


@dataclass(frozen=True)
class Subject:
    """The model that is asked again, the attack and the sources that the rows are about."""

    anew: Anew
    attack: Attack
    sources: Sources
    info: DataInfo
    mode: Mode
    draws: int = 1


def rejudge_cell(node: str, subject: Subject, stored: pd.DataFrame, x_adv: Tensor) -> Comparison:
    """Query the model on the stored inputs and compare every column that the runner can know.

    Raises DamagedError where the stored rows fit neither the sources nor the inputs.
    """
    attack, sources = subject.attack, subject.sources
    info, mode, draws = subject.info, subject.mode, subject.draws
    clean = ask(subject.anew(), sources.x, info.classes, sources.seed, draws)
    chosen = choose_attempts(clean, sources, attack.targets, info.classes)
    if mode == "exact":
        seen = _stored_attempts(stored[stored["status"] == "seen"], sources, info.classes)
        attempts = chosen.with_seen(seen.source)
    else:
        attempts = _stored_attempts(stored, sources, info.classes)
    if not len(stored) == len(x_adv) == len(attempts.source):
        raise DamagedError(
            f"{len(stored)} records and {len(x_adv)} inputs stand for {len(attempts.source)} "
            "attempts"
        )
    threat = attack.threat(info.shape)
    judged = question(subject.anew(), sources, x_adv, info.classes, draws)
    made = judge(judged, attack, sources, attempts, x_adv, info)
    if mode == "stochastic":
        first, second = (summarise(_reported(f), threat, info.features) for f in (stored, made))
        inside = _inside(node, "success_rate", first, second, "success_ci")
        return Comparison([*compare(node, stored, made, mode).differences, *inside])
    ranks = 3 if attack.targets == "runner-up" else 2
    tied = near_tie(clean, ranks)[attempts.source] | near_tie(judged.adversarial)
    found = compare(node, stored, made, mode, tied.cpu().numpy())
    if mode == "tolerant":
        firm = set(sources.ids[~near_tie(clean, ranks)].tolist())
        found.differences.extend(_other_attempts(node, stored, _named(chosen, sources), firm))
    return found


def rejudge_probe(
    node: str, stored: pd.DataFrame, made: pd.DataFrame, mode: Mode, logits: Tensor
) -> Comparison:
    """Compare a probe's rows; ``logits``: (n, classes), as the model answers now."""
    if len(stored) != len(made):
        raise DamagedError(f"{len(stored)} rows stand for {len(made)} images")
    found = compare(node, stored, made, mode, near_tie(logits).cpu().numpy())
    if mode == "stochastic":
        first, second = summarise_probe(stored), summarise_probe(made)
        found.differences.extend(_inside(node, "accuracy", first, second, "accuracy_ci"))
    return found


def compare(
    node: str, stored: pd.DataFrame, made: pd.DataFrame, mode: Mode,
    tied: np.ndarray | None = None,
) -> Comparison:  # fmt: skip
    """Compare two tables of equal length; one difference a column, with its first row."""
    names = [name for name in stored.columns if name not in REPORTED]
    if missing := set(made.columns) ^ set(names):
        what = f"columns {', '.join(sorted(missing))}"
        return Comparison([Difference(node, what, sorted(names), sorted(made.columns))])
    differences, moved = [], np.zeros(len(stored), dtype=bool)
    for name in names:
        unequal = _unequal(name, stored[name], made[name], mode)
        if mode == "tolerant" and tied is not None and name in PREDICTED:
            moved |= unequal & tied
            unequal &= ~tied
        if mode == "tolerant" and name in GRADIENTS:
            # Other hardware rounds otherwise: a gradient may be 1e-45 there and zero here.
            few = max(1.0, OTHERWISE * int(stored[name].notna().sum()))
            unequal &= int(unequal.sum()) > few
        if unequal.any():
            differences.append(_first(node, name, unequal, stored, made))
    return Comparison(differences, int(moved.sum()))


def near_tie(logits: Tensor, ranks: int = 2) -> Tensor:
    """Return whether two of the first ``ranks`` logits lie so near that hardware decides, (n,)."""
    top = logits.double().topk(min(ranks, logits.shape[1]), dim=1).values
    gap = (top[:, :-1] - top[:, 1:]).amin(dim=1)
    return gap <= TIE * top[:, 0].abs().clamp(min=1)


def _unequal(name: str, stored: pd.Series, made: pd.Series, mode: Mode) -> np.ndarray:
    first, second = stored.to_numpy(), made.to_numpy()
    model_made = name in (*PREDICTED, *MODEL_MADE) or "confidence" in name or "logit" in name
    if mode == "stochastic" and model_made:
        return np.zeros(len(first), dtype=bool)
    if first.dtype.kind == "f" and second.dtype.kind == "f":
        slack = {"rtol": 0.0, "atol": 0.0} if mode == "exact" else _slack(name)
        close: np.ndarray = np.isclose(first, second, equal_nan=True, **slack)
        return ~close
    if first.dtype.kind != second.dtype.kind:
        return np.ones(len(first), dtype=bool)
    return np.asarray(first != second)


def _slack(name: str) -> dict[str, float]:
    if name in GRADIENTS:
        return {"rtol": OTHERWISE, "atol": OTHERWISE}
    if "confidence" in name:
        return {"rtol": 0.0, "atol": CONFIDENCE}
    if name in ("l2", "linf"):  # float64 sums of float32 values: only the order may differ
        return {"rtol": 1e-9, "atol": 0.0}
    return {"rtol": CONFIDENCE, "atol": CONFIDENCE}


def _first(
    node: str, name: str, unequal: np.ndarray, stored: pd.DataFrame, made: pd.DataFrame
) -> Difference:
    row = int(unequal.argmax())
    count, sample = int(unequal.sum()), stored["sample_id"].iloc[row]
    what = f"{name} in {count} of {len(stored)} rows, first row {row} (sample {sample})"
    return Difference(node, what, _plain(stored[name].iloc[row]), _plain(made[name].iloc[row]))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _inside(
    node: str, name: str, stored: dict[str, Any], made: dict[str, Any], interval: str
) -> list[Difference]:
    first, second = (stored[name], stored[interval]), (made[name], made[interval])
    if None in (*first, *second) or difference_spans_zero(*first, *second):
        return []
    what = f"{name} of a stochastic model, apart by more than two samples differ"
    return [Difference(node, what, first[0], second[0])]


def _reported(records: pd.DataFrame) -> pd.DataFrame:
    return records.assign(**{name: None for name in REPORTED if name not in records})


def _stored_attempts(stored: pd.DataFrame, sources: Sources, classes: int) -> Attempts:
    place = {int(sample): row for row, sample in enumerate(sources.ids.tolist())}
    try:
        source = _integers(place[int(sample)] for sample in stored["sample_id"])
        target = _integers(int(value) for value in stored["target"])
        code = _integers(STATUSES.index(status) for status in stored["status"])
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedError(f"the stored attempts fit no source: {error}") from error
    if len(target) and not NO_TARGET <= int(target.min()) <= int(target.max()) < classes:
        raise DamagedError(f"a stored target is no class of {classes}")
    device = sources.x.device
    return Attempts(
        source.to(device), target.to(device), (code == 1).to(device), (code == 2).to(device)
    )


def _integers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)  # without a type, none would be floats


def _named(attempts: Attempts, sources: Sources) -> list[tuple[int, int]]:
    samples = sources.ids.to(attempts.source.device)[attempts.source]
    return list(zip(samples.tolist(), attempts.target.tolist(), strict=True))


def _other_attempts(
    node: str, stored: pd.DataFrame, chosen: list[tuple[int, int]], firm: set[int]
) -> list[Difference]:
    attempted = stored[stored["status"] != "seen"]
    kept = zip(attempted["sample_id"].tolist(), attempted["target"].tolist(), strict=True)
    first = {pair for pair in kept if pair[0] in firm}
    second = {pair for pair in chosen if pair[0] in firm}
    if first == second:
        return []
    return [
        Difference(node, "attempts (sample, target)", sorted(first - second)[:3],
                   sorted(second - first)[:3])
    ]  # fmt: skip
