"""What logits say: how large, how far apart, how sure, and in what order the classes come.

Seguin et al. 2021, arXiv 2108.12001, hold adversarially trained networks against standard ones by
these. Rows of a probe and of a cell keep their logits in columns ``logit_0``, ``logit_1``, …, so
that every measure can be made of them again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

PREFIX = "logit_"

PAIRS = 2**22
"""Pairs of classes that are compared at once: a thousand classes have half a million an image."""

Array = npt.NDArray[Any]


def columns(logits: Tensor) -> dict[str, Tensor]:
    """Return the columns that keep ``logits`` (n, classes), (n,) each."""
    return {f"{PREFIX}{label}": logits[:, label] for label in range(logits.shape[1])}


def read(rows: pd.DataFrame) -> Array:
    """Return the logits that ``rows`` keep, (n, classes) float64."""
    return rows[[f"{PREFIX}{label}" for label in range(len(_kept(rows)))]].to_numpy(np.float64)


def keeps(column: str) -> bool:
    """Return whether a column of that name keeps a logit."""
    return column.removeprefix(PREFIX).isdigit()


def _kept(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows.columns if keeps(name)]


def measures(logits: Tensor) -> dict[str, Tensor]:
    """Return max logit, logit gap (max minus runner-up), confidence and entropy, (n,) float64.

    ``confidence``: the top probability at T = 1; ``entropy`` in nats, of the same probabilities.
    """
    exact = logits.double()
    top = exact.topk(2, dim=1).values
    probs = exact.softmax(dim=1)
    return {
        "confidence": probs.amax(dim=1),
        "entropy": torch.special.entr(probs).sum(dim=1),
        "max_logit": top[:, 0],
        "logit_gap": top[:, 0] - top[:, 1],
    }


def order_agreement(first: Array, second: Array, labels: Array) -> Array:
    """Return Kendall's τ between two orders of the incorrect classes, (n,) in [-1, 1].

    ``first``, ``second``: logits (n, classes) of the same n samples; ``labels``: (n,), the class
    that is left out of each row. Kendall 1938: concordant minus discordant pairs of classes over
    all pairs; a tie counts for neither. NaN where there are fewer than two incorrect classes, or
    where a logit of either is not finite.
    """
    rows, classes = first.shape
    if classes < 3:
        return np.full(rows, np.nan)
    others = np.arange(classes) != labels[:, None]
    a, b = (np.asarray(z)[others].reshape(rows, classes - 1) for z in (first, second))
    left, right = np.triu_indices(classes - 1, k=1)
    tau = np.full(rows, np.nan)
    known = np.flatnonzero(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
    step = max(1, PAIRS // len(left))
    for start in range(0, len(known), step):
        part = known[start : start + step]
        signs = [np.sign(z[part][:, left] - z[part][:, right]) for z in (a, b)]
        tau[part] = (signs[0] * signs[1]).mean(axis=1)
    return tau
