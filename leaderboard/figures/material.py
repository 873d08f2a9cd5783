"""What figures are made of beyond the aggregates: the rows of a run's probes, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.files import read_json
from bench.evidence.cells import Evidence
from bench.evidence.folder import RunFolder
from bench.plan.graph import read_plan
from bench.plugins.data import Dataset


@dataclass(frozen=True)
class Material:
    """The folder of a run and its data set."""

    folder: RunFolder
    data: Dataset

    @cached_property
    def _probes(self) -> dict[str, str]:
        plan = read_plan(read_json(self.folder.top("plan.json")))
        return {node.needs["model"]: node.id for node in plan.of("probe")}

    def test_rows(self, model: str) -> pd.DataFrame:
        """Return the rows of a model's probe on the test split; ``model``: its id."""
        rows = Evidence(self.folder, "probe", self._probes[model]).records()
        return rows[(rows["split"] == "test").to_numpy()]

    def image(self, sample: int) -> npt.NDArray[np.float32]:
        """Return a test image, (height, width) or (height, width, 3), in [0, 1].

        Raises ValueError where the inputs are no images.
        """
        x = self.data.test.take(slice(sample, sample + 1)).x[0].cpu().numpy()
        if x.ndim != 3:
            raise ValueError(f"inputs of shape {x.shape} are no images")
        image: npt.NDArray[np.float32] = x[0] if x.shape[0] == 1 else x.transpose(1, 2, 0)
        return image
