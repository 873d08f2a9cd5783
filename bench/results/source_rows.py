"""``sources.json``: which source of a model falls to which attack, and some that fell as inputs."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from bench.base.fingerprint import digest
from bench.base.rows import MODEL, ExampleRow, ReachRow, SourcesRow
from bench.base.types import Document, ThreatModel
from bench.evidence.cells import Evidence, Trial
from bench.evidence.folder import RunFolder
from bench.evidence.records import Budgets, correct, relative_distance, smallest, within
from bench.plan.matrix import MatrixConfig
from bench.plugins.data import Dataset
from bench.verdict.verdict_rows import Model, panel_entries, placed

LARGEST = 4096
"""Features of an input that is kept as an example: more would make the file heavy."""

NEVER, BEYOND = ".", "+"

PLACES = "0123456789abcdefghijklmnopqrstuvwxyz"
"""How the place of a budget is written."""


def source_rows(
    matrix: MatrixConfig, data: Dataset, sources: Sequence[int], models: Sequence[Model],
    folder: RunFolder,
) -> list[SourcesRow]:  # fmt: skip
    """Return one row a model and norm under which it was attacked, in the order of ``models``.

    ``sources``: the sample ids that every model was attacked on. The budgets are those of the
    matrix's panel of the norm; without one, those of the model's cells.
    """
    ids = np.asarray(sources, dtype=np.int64)
    found = []
    for model in models:
        kinds = dict.fromkeys(
            (trial.row["threat"]["norm"], trial.row["threat"]["unit"]) for trial in model.trials
        )
        for norm, unit in kinds:
            if norm != "none":
                threat = ThreatModel(norm, None, unit)
                found.append(_Map(matrix, data, ids, model, threat, folder).row())
    return found


@dataclass(frozen=True)
class _Map:
    """One model under one norm."""

    matrix: MatrixConfig
    data: Dataset
    ids: np.ndarray
    model: Model
    threat: ThreatModel
    folder: RunFolder

    @cached_property
    def trials(self) -> list[Trial]:
        """The finished cells, with their places in the panel of the norm."""
        panels = [panel for panel in self.matrix.panel if panel.norm == self.threat.norm]
        entries = panel_entries(self.matrix, panels[0]) if panels else {}
        done = [trial for trial in self.model.trials if trial.records is not None]
        # What has no source is no version of one.
        return [placed(t, entries) for t in done if t.row["threat"]["norm"] != "none"]

    @cached_property
    def budgets(self) -> list[ThreatModel]:
        """The threat models whose budgets count, ascending."""
        norm, unit = self.threat.norm, self.threat.unit
        for panel in self.matrix.panel:
            if panel.norm == norm:
                return [panel.threat(b, self.data.info.features) for b in sorted(panel.budgets)]
        threats = [trial.row["threat"] for trial in self.model.trials]
        found = {t["budget"] for t in threats if (t["norm"], t["unit"]) == (norm, unit)}
        return [ThreatModel(norm, b, unit) for b in sorted(b for b in found if b is not None)]

    @cached_property
    def reach(self) -> dict[str, Budgets]:
        """From what distance on each cell breaks each source."""
        return {
            trial.id: smallest(trial.records, self.ids, self.threat, self.data.info.shape)
            for trial in self.trials
            if trial.records is not None
        }

    def row(self) -> SourcesRow:
        """Return the row."""
        model = self.model.row
        threat = {"norm": self.threat.norm, "budget": None, "unit": self.threat.unit}
        records = [trial.records for trial in self.trials if trial.records is not None]
        right = correct(records, self.ids)
        made: Document = {
            "id": digest({"model": model["id"], **threat})[:16],
            **{name: value for name, value in model.items() if name in MODEL},
            "model": model["id"],
            "threat": threat,
            "budgets": [budget.budget for budget in self.budgets],
            "shape": list(self.data.info.shape),
            "samples": self.ids.tolist(),
            "labels": self.data.test.y[torch.from_numpy(self.ids)].tolist(),
            "correct": "".join("01"[int(known)] for known in right),
            "reach": self._reached(),
            "examples": self._examples(right),
        }
        return cast("SourcesRow", made)

    def _reached(self) -> list[ReachRow]:
        together: dict[str, list[Trial]] = {}
        for trial in self.trials:
            together.setdefault(trial.label, []).append(trial)
        found = []
        for name, group in together.items():
            distance = np.min([self.reach[trial.id] for trial in group], axis=0)
            breaks = self._written(distance)
            foreign = all(t.row["threat"]["norm"] != self.threat.norm for t in group)
            if foreign and not set(breaks) - {NEVER, BEYOND}:
                continue
            role = next((trial.entry.role for trial in group if trial.entry is not None), None)
            found.append(ReachRow(attack=name, role=role, breaks=breaks))
        return found

    def _written(self, distance: Budgets) -> str:
        place = np.full(len(distance), NEVER)
        place[np.isfinite(distance)] = BEYOND
        for number, budget in reversed(list(enumerate(self.budgets[: len(PLACES)]))):
            place[within(distance, budget)] = PLACES[number]
        return "".join(place.tolist())

    def _examples(self, right: np.ndarray) -> list[ExampleRow]:
        """Return the source of the least change, of the median, and one at random.

        Of those that fall within the largest budget, where there is one.
        """
        if not self.reach:
            return []
        distances = np.array(list(self.reach.values()))
        nearest = np.where(right, distances.min(axis=0), np.inf)
        fell = within(nearest, self.budgets[-1]) if self.budgets else np.isfinite(nearest)
        # Most attacks spend their whole budget: of equal distances, what more attacks break.
        often = np.isfinite(distances).sum(axis=0)
        order = sorted(np.flatnonzero(fell).tolist(), key=lambda i: (nearest[i], -often[i], i))
        if not order:
            return []
        drawn = np.random.RandomState(self.matrix.source_seed).randint(len(order))
        chosen = {"least": order[0], "median": order[len(order) // 2], "random": order[drawn]}
        kept: dict[int, str] = {}
        for why, place in chosen.items():
            kept.setdefault(place, why)
        by = [self.trials[int(distances[:, place].argmin())] for place in kept]
        return [
            self._example(why, place, t) for (place, why), t in zip(kept.items(), by, strict=True)
        ]

    def _example(self, why: str, place: int, trial: Trial) -> ExampleRow:
        assert trial.records is not None
        sample = int(self.ids[place])
        mine = (trial.records["sample_id"] == sample) & trial.records["misclassified"].astype(bool)
        distance = relative_distance(trial.records, self.threat, self.data.info.shape)
        at = int(distance.where(mine).astype(float).argmin())
        example: dict[str, Any] = {
            "why": why,
            "sample": sample,
            "label": int(trial.records["label"].iloc[at]),
            "answer": int(trial.records["adversarial_prediction"].iloc[at]),
            "attack": trial.label,
            "cell": trial.id,
            "distance": float(distance.iloc[at]),
        }
        clean = self.data.test.x[sample].double().cpu().numpy()
        adversarial = Evidence(self.folder, "cell", trial.id).inputs()[at].double().numpy()
        change = adversarial - clean
        largest = float(np.abs(change).max())
        small = math.prod(self.data.info.shape) <= LARGEST
        pixels = {
            "clean": np.rint(255 * clean).astype(np.uint8),
            "adversarial": np.rint(255 * adversarial).astype(np.uint8),
            "change": _signed(change, largest),
        }
        coded = {name: _base64(value) if small else None for name, value in pixels.items()}
        return cast("ExampleRow", {**example, **coded, "largest": largest})


def _signed(change: np.ndarray, largest: float) -> np.ndarray:
    """Return a change as signed bytes, in which no change is zero that is not."""
    size = np.ceil(127 * np.abs(change) / (largest or 1))
    return np.asarray((np.sign(change) * size).astype(np.int8))


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
