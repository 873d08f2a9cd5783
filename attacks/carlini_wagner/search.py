"""What the three attacks share: Adam on a penalty of the change plus c times a loss, row by row.

Carlini and Wagner 2017, arXiv 1608.04644, section V. A row makes attempts: one value of c, at most
``steps`` steps of Adam. Its norm says what is penalised, when an attempt is over and what the next
one is. Nothing of a row depends on another, and one that is done leaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from attacks.carlini_wagner.losses import floor, unclipped
from attacks.carlini_wagner.settings import Settings
from attacks.kit.losses import unanswered
from attacks.kit.view import View

BETAS = (0.9, 0.999)
"""Decay of Adam's two moments: Kingma and Ba 2015, arXiv 1412.6980."""

TINY = 1e-8

EPSILON = 0.05
"""By how much tanh reaches beyond the box at each end: footnote 8 of the paper, where it only has
to be positive. What lies outside the box is clipped. The larger, the sooner a feature at 0 or 1
moves: at 100 steps of 0.1 the mean L2 on MNIST was 2.57, 2.37 and 2.27 with 5e-7, 5e-3 and 0.05
(32 targeted rows)."""

PROGRESS = 0.9999
"""An attempt ends where a tenth of its steps has not brought the objective below this share."""

GROWTH = 10.0
"""By what c grows after a failure, where no c has succeeded yet."""

SLOW_GROWTH = 2.0
"""The same where one has, on more features or a larger tau: the authors' CONST_FACTOR."""

LARGEST = 1e10
"""Where c stops growing, as in the authors' code."""


class Found:
    """What is known of each row of the batch: its nearest adversarial, and what it cost.

    Untargeted, an answer that is none (NaN or infinite) is kept as an adversarial is, and is no
    success.
    """

    def __init__(self, clean: Tensor) -> None:
        self.x_adv = clean.clone()
        self.distance = clean.new_full((len(clean),), torch.inf)
        self.steps = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        self.zero_gradients = torch.zeros_like(self.steps)
        self.success = torch.zeros_like(self.steps, dtype=torch.bool)

    def keep(self, rows: Tensor, seen: Seen, distance: Tensor) -> None:
        """Take the points of ``rows`` that are done and nearer than their last; count the pass."""
        nearer = seen.done & (distance < self.distance[rows])
        better = rows[nearer]
        self.x_adv[better] = seen.point[nearer]
        self.distance[better] = distance[nearer].to(self.distance.dtype)
        self.success[better] = seen.reached[nearer]
        self.steps[rows] += 1
        self.zero_gradients[rows] += ~seen.done & ~seen.slope.any(dim=1)


@dataclass(frozen=True)
class Seen:
    """What one pass shows of the rows that are at it.

    ``point``, ``change``: the input that was asked for, and what it is away from x. ``bend``: the
    derivative of the input by w. ``loss``, ``slope``: the loss before its max, and its gradient.
    ``reached``: the goal holds, by kappa. ``done``: that, or the model has no answer.
    """

    point: Tensor
    change: Tensor
    bend: Tensor
    loss: Tensor
    slope: Tensor
    reached: Tensor
    done: Tensor


@dataclass
class Search(ABC):
    """The rows that are still at it, one entry of each tensor a row.

    ``rows``: which of the batch. ``clean``, ``origin``: x, and its w. ``w``: where the row is, in
    tanh space; ``first``, ``second``: Adam's moments. ``taken``: steps of this attempt. ``c``: the
    weight of the loss. ``tried``: attempts, as the norm counts them. ``won``: whether any attempt
    has succeeded. ``least``, ``before``: the least objective of this attempt, and what it was at
    the last look.
    """

    settings: Settings
    rows: Tensor
    clean: Tensor
    origin: Tensor
    w: Tensor
    first: Tensor
    second: Tensor
    taken: Tensor
    c: Tensor
    tried: Tensor
    won: Tensor
    least: Tensor
    before: Tensor

    @classmethod
    def begin(cls, settings: Settings, view: View, rows: Tensor, **own: Any) -> Self:
        """Return the search before its first pass on ``rows`` of the batch."""
        clean = view.clean[rows]
        clean = clean.to(torch.promote_types(clean.dtype, torch.float32))
        origin = torch.atanh((clean - 0.5) / (0.5 + EPSILON))
        c = clean.new_full((len(rows),), settings.initial_const)
        count, none = torch.zeros_like(rows), torch.full_like(c, torch.inf)
        return cls(
            settings, rows, clean, origin, w=origin, first=torch.zeros_like(clean),
            second=torch.zeros_like(clean), taken=count, c=c, tried=count, won=count.bool(),
            least=none, before=none, **own,
        )  # fmt: skip

    def run(self, view: View, found: Found) -> None:
        """Go on until every row is done."""
        while len(self.rows):
            seen = self.look(view)
            found.keep(self.rows, seen, self.length(seen.change))
            over = self.advance(seen)
            self.won = self.won | seen.done
            going = self.conclude(over, seen)
            if not bool(going.all()):
                self.select(going)

    def look(self, view: View) -> Seen:
        """Ask the model about each row where it is."""
        curve = torch.tanh(self.w)
        # A feature that has not moved is that of x to the bit, and does not count as changed.
        moved = (0.5 + EPSILON) * (curve - torch.tanh(self.origin))
        point = (self.clean + moved).clamp(0, 1).to(view.clean.dtype)
        y, target = view.y[self.rows], None if view.target is None else view.target[self.rows]
        logits, loss, slope = view.climb(
            point, lambda logits: unclipped(self.settings.loss, logits, y, target)
        )
        margin = view.margin(logits, self.rows)
        reached = (margin > 0) & (margin >= self.settings.kappa)
        return Seen(
            point,
            point - self.clean,
            (0.5 + EPSILON) * (1 - curve.square()),
            loss.to(self.c.dtype),
            slope.to(self.c.dtype),
            reached,
            reached | unanswered(logits, y, target),
        )

    def advance(self, seen: Seen) -> Tensor:
        """Take a step of Adam; return the rows that did not, for their attempt is over."""
        settings = self.settings
        clip = floor(settings.loss, settings.kappa)
        value, push = self.penalty(seen.change)
        objective = value + self.c * seen.loss.clamp(min=clip)
        self.least = torch.fmin(self.least, objective)  # which leaves a NaN aside
        looks = (self.taken > 0) & (self.taken % max(settings.steps // 10, 1) == 0)
        stuck = looks & (self.least > self.before * PROGRESS)
        self.before = torch.where(looks, self.least, self.before)
        over = self.succeeded(seen) | stuck | (self.taken >= settings.steps)
        pull = (self.c * (seen.loss > clip))[:, None] * seen.slope
        self.step((push + pull) * seen.bend, ~over)
        return over

    def step(self, gradient: Tensor, moving: Tensor) -> None:
        """Take a step of Adam down ``gradient`` where a row is ``moving``."""
        self.taken = self.taken + moving
        time = self.taken.clamp(min=1)[:, None].to(gradient.dtype)
        self.first = self.first.lerp(gradient, 1 - BETAS[0])
        self.second = self.second.lerp(gradient.square(), 1 - BETAS[1])
        scale = (self.second / (1 - BETAS[1] ** time)).sqrt_().add_(TINY)
        move = self.first / scale / (1 - BETAS[0] ** time)
        self.w = self.w - move * (self.rate() * moving)[:, None]

    def rate(self) -> Tensor:
        """Return Adam's step size, (rows,)."""
        return torch.full_like(self.c, self.settings.learning_rate)

    def restart(self, rows: Tensor) -> None:
        """Begin another attempt where ``rows`` (bool) say so; w stays."""
        self.first = self.first * ~rows[:, None]
        self.second = self.second * ~rows[:, None]
        self.taken = self.taken.masked_fill(rows, 0)
        self.least = self.least.masked_fill(rows, torch.inf)
        self.before = self.before.masked_fill(rows, torch.inf)

    def raise_c(self, failed: Tensor) -> None:
        """Let c grow where an attempt has ``failed``."""
        grown = self.c * torch.where(self.won, SLOW_GROWTH, GROWTH)
        self.c = torch.where(failed, grown.clamp(max=LARGEST), self.c)

    def select(self, keep: Tensor) -> None:
        """Keep some of the rows, (rows,) bool."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                setattr(self, entry.name, value[keep])

    @abstractmethod
    def length(self, change: Tensor) -> Tensor:
        """Return the norm of each change, (rows,)."""

    @abstractmethod
    def penalty(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is minimised of the change, (rows,), and its gradient (rows, features)."""

    @abstractmethod
    def succeeded(self, seen: Seen) -> Tensor:
        """Return whose attempt is over because it has what it was for, (rows,) bool."""

    @abstractmethod
    def conclude(self, over: Tensor, seen: Seen) -> Tensor:
        """Begin the next attempt of the rows whose last is ``over``; return which rows go on."""
