"""``logits.json``: the logits of each model on its sources, before an attack and after each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.base.fingerprint import digest
from bench.base.rows import MODEL
from bench.base.types import Document
from bench.evidence.cells import Trial
from bench.measure.logits import Array, measures, order_agreement, read
from bench.verdict.rates import mean_interval
from bench.verdict.verdict_rows import Model

MEASURES = ("max_logit", "logit_gap", "confidence", "entropy", "order_tau")
"""Each a mean over sources with its 95 % interval, under the name with ``_ci``.

All but the last also with ``_before``: the mean of the same sources without the attack.
"""

BOUNDS = {"confidence": (0.0, 1.0), "entropy": (0.0, math.inf), "order_tau": (-1.0, 1.0)}
"""What a measure can be at all."""


def logit_rows(models: Sequence[Model], sources: Sequence[int]) -> list[Document]:
    """Return one row a model and place: the clean sources, then the inputs of each finished cell.

    ``sources``: the sample ids that every model was attacked on. A source that was attacked at
    several targets counts once, with the mean of its attempts; ``samples`` is how many sources are
    counted, and an attempt whose logits are not finite is not. ``order_tau`` is Kendall's τ between
    the orders of the incorrect classes before the attack and after it; ``iterations`` the median
    over the attempts, where the attack counts them. There is no before for inputs that have no
    source.
    """
    found = []
    for model in models:
        if model.probe is None:
            continue
        clean = of_sources(model.probe, sources)
        found.append(_row(model, None, clean, None))
        for trial in model.trials:
            if trial.records is not None:
                attacked = trial.records[(trial.records["status"] == "attacked").to_numpy()]
                before = clean.set_index("sample_id").loc[attacked["sample_id"]]
                versions = trial.row["threat"]["norm"] != "none"
                found.append(_row(model, trial, attacked, read(before) if versions else None))
    return found


def of_sources(probe: pd.DataFrame, sources: Sequence[int]) -> pd.DataFrame:
    """Return the rows of ``probe`` for these test images, in the order of ``sources``."""
    test = probe[(probe["split"] == "test").to_numpy()]
    return test.set_index("sample_id", drop=False).loc[list(sources)].reset_index(drop=True)


def _row(model: Model, trial: Trial | None, rows: pd.DataFrame, before: Array | None) -> Document:
    logits = read(rows)
    both = logits if before is None else np.hstack([before, logits])
    known = np.flatnonzero(np.isfinite(both).all(axis=1))
    rows, logits = rows.iloc[known], logits[known]
    before = None if before is None else before[known]
    values = _values(logits)
    former = {} if before is None else _values(before)
    if before is not None:
        values["order_tau"] = order_agreement(before, logits, rows["label"].to_numpy())
    columns = {**values, **{f"{name}_before": value for name, value in former.items()}}
    each = pd.DataFrame(columns).groupby(rows["sample_id"].to_numpy()).mean()
    summary: Document = {}
    for name in MEASURES:
        mean, interval = _mean(each, name)
        summary |= {name: mean, f"{name}_ci": interval}
        if name != "order_tau":
            summary[f"{name}_before"] = _mean(each, f"{name}_before")[0]
    attack: Mapping[str, Any] = {} if trial is None else trial.row
    steps = pd.Series([]) if trial is None else rows["iterations"].dropna()
    return {
        "id": digest({"model": model.row["id"], "cell": attack.get("id")})[:16],
        "model": model.row["id"],
        **{name: value for name, value in model.row.items() if name in MODEL},
        **{name: attack.get(name) for name in ("attack", "attack_params", "threat")},
        "cell": attack.get("id"),
        "samples": len(each),
        **summary,
        "iterations": float(steps.median()) if len(steps) else None,
    }


def _values(logits: Array) -> dict[str, Array]:
    return {name: value.numpy() for name, value in measures(torch.tensor(logits)).items()}


def _mean(each: pd.DataFrame, name: str) -> tuple[float | None, tuple[float, float] | None]:
    if name not in each:
        return None, None
    kept = each[name][np.isfinite(each[name])]
    if kept.empty:
        return None, None
    interval = mean_interval(kept)
    if interval is not None and name in BOUNDS:
        low, high = np.clip(interval, *BOUNDS[name])  # the normal approximation knows no bounds
        interval = float(low), float(high)
    return float(kept.mean()), interval
