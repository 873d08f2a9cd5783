"""One model as its verdict sees it: which sources each attack breaks, and from what budget on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.base.types import DataInfo, Document, ThreatModel
from bench.evidence.cells import Trial
from bench.evidence.records import Budgets, Ids, Mask, alone, correct, smallest, within
from bench.plan.panel import LATE, Entry, Panel
from bench.verdict.panel_flags import Sibling, Siblings


@dataclass(frozen=True)
class Subject:
    """One fitted model under one panel.

    ``ids``: (n,) sample ids of the sources, the same for every model, and every record is of one
    of them. ``trials``: all cells of the model;
    ``expected``: what the panel asks for. Budgets are the panel's: numbers of features under L0.
    """

    panel: Panel
    info: DataInfo
    ids: Ids
    trials: Sequence[Trial]
    expected: Sequence[Entry] = ()
    correct: Mask = field(init=False)
    reach: Mapping[str, Budgets] = field(init=False)

    def __post_init__(self) -> None:
        threat, shape = self.threat(self.panel.budgets[-1]), self.info.shape
        done = {trial.id: trial.records for trial in self.trials if trial.records is not None}
        reach = {name: smallest(rows, self.ids, threat, shape) for name, rows in done.items()}
        object.__setattr__(self, "reach", reach)
        object.__setattr__(self, "correct", correct(list(done.values()), self.ids))

    def threat(self, budget: float) -> ThreatModel:
        """Return the threat model of one of the panel's budgets."""
        return self.panel.threat(budget, self.info.features)

    def members(self, budget: float) -> list[Trial]:
        """Return the cells that are the panel at ``budget``."""
        return [t for t in self.trials if t.entry is not None and t.entry.serves(budget)]

    def missing(self, budget: float) -> list[str]:
        """Return in words which cells of the panel did not do their work, or are not there."""
        members = self.members(budget)
        run = [trial.entry for trial in members]
        absent = [e for e in self.expected if e.serves(budget) and e not in run]
        return [why for trial in members if (why := trial.trouble())] + [
            f"{entry.spec.name} ({entry.role}) was not run" for entry in absent
        ]

    def broken(self, trial: Trial, budget: float) -> Mask:
        """Return which correctly classified sources a finished cell breaks within ``budget``."""
        return within(self.reach[trial.id], self.threat(budget))

    def survivors(
        self, budget: float, effort: int | None = None, rounds: int | None = None
    ) -> Mask:
        """Return which sources no stored input within ``budget`` breaks, whoever made it.

        ``effort``: leave out the panel's cells of a greater effort; ``rounds``: its closers of
        later rounds.
        """
        left = self.correct.copy()
        for trial in self.trials:
            harder = effort is not None and trial.entry is not None and trial.entry.effort > effort
            later = rounds is not None and trial.entry is not None and trial.entry.round > rounds
            if trial.id in self.reach and not harder and not later:
                left &= ~self.broken(trial, budget)
        return left

    def unsettled(self, budget: float) -> float:
        """Return by how much the last round of closers moved the share of survivors."""
        last = max((trial.entry.round for trial in self.members(budget) if trial.entry), default=0)
        if not last or not len(self.ids):
            return 0.0
        before, after = self.survivors(budget, rounds=last - 1), self.survivors(budget)
        # Of counts, for rounding decides the difference of two shares: 1 of 100 is a hundredth.
        return int(before.sum() - after.sum()) / len(self.ids)

    def followed_up(self, budget: float) -> int | None:
        """Return how many sources only follow-ups break; None where none of them ran."""
        late = {t.id for t in self.trials if t.entry and t.entry.role == "follow-up"}
        ran = late & self.reach.keys()
        if not ran:
            return None
        others = replace(self, trials=[trial for trial in self.trials if trial.id not in ran])
        return int(others.survivors(budget).sum() - self.survivors(budget).sum())

    def naive(self, budget: float) -> Mask | None:
        """Return which sources survive the naive attack of the panel; None where it is not done."""
        found = [
            trial
            for trial in self.members(budget)
            if trial.entry is not None and trial.entry.role == "naive" and trial.entry.effort == 1
        ]
        if not found or found[0].id not in self.reach:
            return None
        return self.correct & ~self.broken(found[0], budget)

    def siblings(self, budget: float) -> Siblings:
        """Return the panel at ``budget`` for the flags, at the effort for which they are made."""
        members = []
        for trial in self.members(budget):
            entry = trial.entry
            if entry is None or entry.effort > 1 or entry.role in LATE:
                continue
            broken = None
            if trial.id in self.reach:
                free = entry.role == "unbounded"
                broken = np.isfinite(self.reach[trial.id]) if free else self.broken(trial, budget)
            follows = trial.access == "gradients"
            members.append(Sibling(entry.role, trial.label, broken, follows))
        return Siblings(self.panel.norm, self.ids, self.correct, members)

    def breakers(self, budget: float) -> list[Document]:
        """Return who broke the model: each attack's own breaks, and those that only it made.

        The cells of one attack at several budgets count as one; most breaks first.
        """
        together: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if trial.id in self.reach:
                together.setdefault(trial.label, []).append(trial)
        masks = {
            name: np.any([self.broken(trial, budget) for trial in group], axis=0)
            for name, group in together.items()
        }
        only = alone(masks)
        found = [
            {
                "attack": name,
                "role": _role(together[name]),
                "breaks": int(mask.sum()),
                "only": int(only[name].sum()),
                "cells": [t.id for t in together[name] if self.broken(t, budget).any()],
            }
            for name, mask in masks.items()
            if mask.any()
        ]
        return sorted(found, key=lambda item: -item["breaks"])

    def queries(self, budget: float) -> dict[str, int | None]:
        """Return the forward and backward passes of the panel's cells, in rows."""
        members = [t for t in self.members(budget) if t.row["status"] != "skipped"]
        counts = {name: [t.row[name] for t in members] for name in ("forwards", "backwards")}
        return {
            name: None if None in values else sum(value or 0 for value in values)
            for name, values in counts.items()
        }


def _role(trials: Sequence[Trial]) -> Any:
    return next((trial.entry.role for trial in trials if trial.entry is not None), None)
