"""Which sources of a model still stand, by the records that lie in the folder so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.base.files import read_json, read_records
from bench.base.types import DamagedError
from bench.evidence.folder import RunFolder
from bench.evidence.records import correct_sources, smallest
from bench.measure.query import TOLERANCE
from bench.plan.graph import Closes
from bench.plugins.data import Dataset


class Standing:
    """Reads each cell's records once: a run asks for every closer what others left."""

    def __init__(self, folder: RunFolder, data: Dataset) -> None:
        self.folder = folder
        self.data = data
        self._reach: dict[tuple[str, str], npt.NDArray[np.float64] | None] = {}

    def left(self, closes: Closes, sources: int | None, seed: int) -> tuple[int, ...]:
        """Return the sample ids, ascending, that no finished cell of ``closes.after`` breaks.

        Of the first ``sources`` (None: all) in the order of ``seed``. A cell that is not done
        breaks nothing.
        """
        ids = self.data.sources(sources, seed).numpy()
        threat = closes.threat(self.data.info.features)
        assert threat.budget is not None  # a panel's budgets are numbers
        stands = np.ones(len(ids), dtype=bool)
        for cell in closes.after:
            if (cell, closes.norm) not in self._reach:
                self._reach[cell, closes.norm] = self._read(cell, closes, ids)
            if (reach := self._reach[cell, closes.norm]) is not None:
                stands &= ~(reach <= threat.budget + TOLERANCE)
        return tuple(sorted(int(value) for value in ids[stands]))

    def _read(
        self, cell: str, closes: Closes, ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64] | None:
        """Return from what budget on a cell breaks each source: 0 where it needs no attack."""
        try:
            document = read_json(self.folder.cell(cell))
            if document["outcome"]["status"] != "done":
                return None
            checksum = document["files"]["records"]
            records = read_records(self.folder.files("cell", cell)["records"], checksum)
        except (DamagedError, KeyError, TypeError):
            return None
        threat = closes.threat(self.data.info.features)
        reach = smallest(records, ids, threat, self.data.info.shape)
        return np.where(correct_sources([records], ids), reach, 0.0)
