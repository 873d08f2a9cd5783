"""Which sources of a model still stand, by the records that lie in the folder so far."""

from __future__ import annotations

import numpy as np

from bench.base.types import DamagedError
from bench.evidence.cells import Evidence
from bench.evidence.folder import RunFolder
from bench.evidence.records import Budgets, Ids, correct, smallest, within
from bench.plan.graph import Closes
from bench.plugins.data import Dataset

NEEDED = frozenset(
    {"sample_id", "status", "misclassified", "l0_features", "l0_pixels", "l2", "linf"}
)
"""The columns of a record that say which sources stand."""


class Standing:
    """Reads each cell's records once: a run asks for every closer what others left."""

    def __init__(self, folder: RunFolder, data: Dataset) -> None:
        self.folder = folder
        self.data = data
        self._reach: dict[tuple[str, str], Budgets | None] = {}

    def left(self, closes: Closes, sources: int | None, seed: int) -> tuple[int, ...]:
        """Return the sample ids, ascending, that no finished cell of ``closes.after`` breaks.

        Of the first ``sources`` (None: all) in the order of ``seed``. A cell that is not done
        breaks nothing.
        """
        ids = self.data.sources(sources, seed).numpy()
        threat = closes.threat(self.data.info.features)
        stands = np.ones(len(ids), dtype=bool)
        for cell in closes.after:
            if (cell, closes.norm) not in self._reach:
                self._reach[cell, closes.norm] = self._read(cell, closes, ids)
            if (reach := self._reach[cell, closes.norm]) is not None:
                stands &= ~within(reach, threat)
        return tuple(sorted(int(value) for value in ids[stands]))

    def suspected(self, probe: str) -> bool:
        """Return whether ``probe`` found a gradient that is not that of the answers.

        One that left nothing behind clears nobody.
        """
        try:
            found = Evidence(self.folder, "probe", probe).document["suspicion"]["gradient"]
        except (DamagedError, KeyError, TypeError):
            return True
        return bool(found != "agrees")

    def _read(self, cell: str, closes: Closes, ids: Ids) -> Budgets | None:
        """Return from what budget on a cell breaks each source: 0 where it needs no attack."""
        evidence = Evidence(self.folder, "cell", cell)
        try:
            if evidence.outcome.status != "done":
                return None
            records = evidence.records(NEEDED.__contains__)
        except (DamagedError, KeyError, TypeError):
            return None
        threat = closes.threat(self.data.info.features)
        reach = smallest(records, ids, threat, self.data.info.shape)
        return np.where(correct([records], ids), reach, 0.0)
