"""An attack that asks a model only what could be an input: rows of the levels that data have.

A picture of eight bits has 256 levels; what lies between is never seen by a model that is deployed
on files. Attacks in the continuous box leave those points out, and a model that answers otherwise
on them than between them, by chance or by intent, shows attacks another face. As in Carlini and
Wagner 2017, arXiv 1608.04644, section VIII: what is found counts once it is written with the
levels of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.kit.around import AroundAttack, inner_attack
from bench.base.types import Access
from bench.plugins import parameter
from bench.plugins.contracts import Attack, AttackContext, Perturbation
from bench.plugins.parameter import NameOrTable

DEFAULT = "apgd"
"""The attack that searches, unless told otherwise."""

MOST = 255
"""Steps between the levels of a picture of eight bits; finer ones are taken for none."""

NO_LEVEL = "no level within the budget"
"""Why a search ended that had nowhere to go: within the budget there is no other such input."""

EXACT = 1e-4
"""How far a value may lie from a level, in steps: float32 of 255 levels is far nearer."""


@dataclass(frozen=True)
class Quantised(AroundAttack):
    """Let ``attack`` search on the levels that the sources have, as 0, 1/255, … 1.

    Every query is rounded to the nearest level, with the gradient of the identity (Bengio, Léonard,
    Courville 2013, arXiv 1308.3432), and so is what is returned, within the budget: under L∞ the
    budget is that of whole steps. The levels are the fewest, of at most 256, that all sources lie
    on; of data without any, all is as with ``attack`` alone. ``attack``: a name or a table, in
    whose place stand further keys of a flat table. Threat model, goal and targets are its own.

    Raises ``ValueError`` for an unknown attack or a wrong parameter of it, and for one that learns
    or needs other models.
    """

    attack: NameOrTable = field(default_factory=lambda: {"name": DEFAULT}, hash=False)

    @classmethod
    def from_params(cls, *, attack: Any = DEFAULT, **params: Any) -> Quantised:
        """Make the plugin from a table: its own key, and the inner attack's beside it."""
        return cls({**parameter.as_table("attack", attack, DEFAULT), **params})

    def __post_init__(self) -> None:
        inner, table = inner_attack(self.attack, DEFAULT)
        object.__setattr__(self, "attack", table)
        object.__setattr__(self, "inner", inner)

    @property
    def access(self) -> Access:
        """The inner attack's."""
        return self.inner.access

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Search on the levels of ``x``."""
        steps = levels(x)
        if steps is None:
            return self.inner.perturb(model, x, y, target, context)
        inner = self._within(x, steps)
        if inner is None:
            return Perturbation(x, torch.zeros_like(y), [NO_LEVEL] * len(x))
        found = inner.perturb(OnLevels(model, steps), x, y, target, context)
        return replace(found, x_adv=self._rounded(x, found.x_adv, steps))

    def _rounded(self, x: Tensor, x_adv: Tensor, steps: int) -> Tensor:
        """Return what was asked about in place of ``x_adv``; where that is too far, nearer rows."""
        asked = nearest(x_adv, steps)
        threat = self.threat(tuple(x.shape[1:]))
        if threat.norm != "l2" or threat.budget is None:
            return asked  # whole steps stay whole steps, and no further feature changes
        far = (asked - x).flatten(1).norm(dim=1) > threat.budget
        return torch.where(far.view(-1, *[1] * (x.dim() - 1)), towards(x, x_adv, steps), asked)

    def _within(self, x: Tensor, steps: int) -> Attack | None:
        """Return the inner attack with the budget of whole steps, None where that is none."""
        threat = self.threat(tuple(x.shape[1:]))
        if threat.norm != "linf" or threat.budget is None:
            return self.inner
        whole = math.floor(threat.budget * steps + EXACT)
        return replace(self.inner, eps=whole / steps) if whole else None  # type: ignore[call-arg]


def levels(x: Tensor) -> int | None:
    """Return the least k up to ``MOST`` with all of ``x`` in {0, 1/k, … 1}, or None."""
    values = torch.unique(x.detach().double().flatten())
    for steps in range(1, MOST + 1):
        scaled = values * steps
        if ((scaled - scaled.round()).abs() <= EXACT).all():
            return steps
    return None


def nearest(x: Tensor, steps: int) -> Tensor:
    """Return ``x`` on the nearest of the levels 0, 1/k, … 1, of which there are k ``steps``."""
    return (x.detach() * steps).round() / steps


def towards(clean: Tensor, x_adv: Tensor, steps: int) -> Tensor:
    """Return ``x_adv`` on the levels, rounded towards ``clean``: no distance grows.

    ``clean`` lies on them; what rounding errors of less than ``EXACT`` steps moved is kept.
    """
    moved = (x_adv - clean).double() * steps
    whole = torch.where((moved - moved.round()).abs() <= EXACT, moved.round(), moved.trunc())
    return (((clean.double() * steps).round() + whole) / steps).clamp(0, 1).to(clean.dtype)


class OnLevels(nn.Module):
    """What ``model`` answers to rows rounded to k ``steps``, with the gradient of the identity."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, classes)."""
        # Exactly on the level, for what is added is zero: a model may look at the last bit.
        logits: Tensor = self.model(nearest(x, self.steps) + (x - x.detach()))
        return logits
