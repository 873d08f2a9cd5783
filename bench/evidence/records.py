"""What the rows of records say of their sources."""

from __future__ import annotations

import math

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
