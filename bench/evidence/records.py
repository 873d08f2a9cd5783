"""What the rows of records say of their sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.types import ThreatModel
from bench.measure.query import slack

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Budgets = npt.NDArray[np.float64]


def correct(cells: Sequence[pd.DataFrame], ids: Ids) -> Mask:
    """Return which sources the model classified correctly in every cell: it may be stochastic.

    ``cells``: the records of each; ``ids``: (n,) sample ids. Where no cell is done, nothing is
    known to be right.
    """
    found = np.full(len(ids), bool(cells))
    for cell in cells:
        wrong = (cell["status"] == "misclassified").to_numpy(bool)
        found &= ~np.isin(ids, cell["sample_id"].to_numpy()[wrong])
    return found


def smallest(
    records: pd.DataFrame, ids: Ids, threat: ThreatModel, shape: tuple[int, ...]
) -> Budgets:
    """Return from what budget on ``records`` break each source, (n,): infinity where never.

    In the norm and unit of ``threat``, whose own budget does not matter. ``ids``: (n,), all that
    the records are of; a source that is misclassified without an attack is not broken by any.
    """
    broken = records["misclassified"].to_numpy(bool)
    distance = relative_distance(records, threat, shape).to_numpy(np.float64)
    order = np.argsort(ids)
    place = order[np.searchsorted(ids, records["sample_id"].to_numpy(), sorter=order)]
    found = np.full(len(ids), np.inf)
    np.minimum.at(found, place[broken], distance[broken])
    return found


def within(distance: Budgets, threat: ThreatModel) -> Mask:
    """Return which distances, in the unit of ``threat``, keep to its budget.

    So what breaks a source within the budget is ``within(smallest(…), threat)``. Raises ValueError
    where the threat model has no budget.
    """
    if threat.budget is None:
        raise ValueError(f"nothing is within a budget that is not there: {threat}")
    return np.asarray(distance <= threat.budget + slack(threat))


def alone(masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Return by attack what only it reached; ``masks``: what each did, all of one shape."""
    times = np.sum(list(masks.values()), axis=0) if masks else 0
    return {name: mask & (times == 1) for name, mask in masks.items()}


def relative_distance(
    records: pd.DataFrame, threat: ThreatModel, shape: tuple[int, ...]
) -> pd.Series:
    """Return the distance of every record in the norm of ``threat`` and the unit of its budget.

    Raises ValueError for norm ``none``, under which there is no distance.
    """
    if threat.norm == "none":
        raise ValueError("norm 'none' measures no distance: its inputs have no source")
    column = {"features": "l0_features", "pixels": "l0_pixels", "input": threat.norm}[threat.unit]
    total = {"features": math.prod(shape), "pixels": math.prod(shape[1:]), "input": 1}[threat.unit]
    return records[column] / total
