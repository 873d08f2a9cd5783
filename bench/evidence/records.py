"""What the rows of records say of their sources."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.types import ThreatModel


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


def smallest(
    records: pd.DataFrame, ids: npt.NDArray[np.int64], threat: ThreatModel, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Return from what budget on ``records`` break each source, (n,): infinity where never.

    In the norm and unit of ``threat``, whose own budget does not matter; a source that is
    misclassified without an attack is not broken by any.
    """
    broken = records["misclassified"].to_numpy(bool)
    distance = relative_distance(records, threat, shape).to_numpy(np.float64)
    order = np.argsort(ids)
    place = order[np.searchsorted(ids, records["sample_id"].to_numpy(), sorter=order)]
    found = np.full(len(ids), np.inf)
    np.minimum.at(found, place[broken], distance[broken])
    return found


def correct_sources(
    cells: Sequence[pd.DataFrame], ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which sources the model got right in every cell, (n,): it may be stochastic."""
    # Where no cell is done, nothing is known to be right.
    correct = np.full(len(ids), bool(cells))
    for cell in cells:
        wrong = (cell["status"] == "misclassified").to_numpy(bool)
        correct &= ~np.isin(ids, cell["sample_id"].to_numpy()[wrong])
    return correct
