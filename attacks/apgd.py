"""Auto-PGD: a projected ascent with momentum that sets its own step size, in batches.

Croce and Hein 2020, *Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks*, arXiv 2003.01690, algorithm 1 and section 3; APGD-T, section 4. What is
climbed stands in ``attacks.kit.losses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from attacks.kit.ball import (
    BallNorm,
    check_counts,
    check_inputs,
    default_chunk,
    project,
    random_point,
    steepest,
)
from attacks.kit.ball_attack import BallAttack, ClimbResult
from attacks.kit.draws import row_streams
from attacks.kit.losses import LOSSES, Output, defined
from attacks.kit.model import Model, chunks
from attacks.kit.view import View
from bench.measure.at_rest import at_rest

MOMENTUM = 0.75
"""The share of a step that is new; the rest goes on in the direction of the last one."""

RHO = 0.75
"""The share of a window's steps that have to raise the loss, or the step size is halved."""

Climb = tuple[int, Tensor | None]
"""One climb of every row: the draw of its start, and the class of each that it aims at."""

TOGETHER = 8
"""Climbs of a row that are made side by side, once the first of them has failed."""


@dataclass(frozen=True)
class APGD(BallAttack):
    """Auto-PGD, and APGD-T with ``runners_up``: Croce and Hein 2020, arXiv 2003.01690.

    ``eps``, ``norm``, ``targets``, ``chunk``: see ``attacks.kit.ball_attack.BallAttack``; ``linf``
    steps along the sign of the gradient, ``l2`` along its direction.
    ``steps``: gradient steps of each climb; the step size sets itself.
    ``restarts``: how often the attack runs. The first climb of all is made alone, the further ones
    up to eight at once: a row leaves as soon as one of them is at its goal.
    ``output``: what is differentiated, a key of ``attacks.kit.losses.LOSSES``; ``margin`` stands in
    for a DLR that the model has too few classes for.
    ``runners_up``: in each restart, one climb towards each of so many wrong classes, those of the
    largest logits at x first (the paper's APGD-T, with output ``dlr``); at most all of them are
    taken. The goal is still any class but y, so it goes with ``targets`` untargeted. With 0 there
    is one climb a restart, away from y or towards the target.
    ``adaptive``: whether a defense's surrogate is differentiated, where it has one; without, the
    attack is the naive one.
    """

    eps: float = 0.1
    steps: int = 100
    restarts: int = 1
    output: Output = "dlr"
    runners_up: int = 0
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, restarts=self.restarts)
        if self.output not in LOSSES:
            raise ValueError(f"output must be one of {tuple(LOSSES)}, got {self.output!r}")
        if self.runners_up < 0:
            raise ValueError(f"runners_up must be at least 0, got {self.runners_up!r}")
        if self.runners_up and self.targeted:
            raise ValueError(
                f"runners_up aims at classes of its own: give it with targets untargeted, "
                f"got {self.runners_up!r}"
            )

    def run(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor | None, seed: int,
        streams: Tensor | None,
    ) -> ClimbResult:  # fmt: skip
        """Run the attack, as ``apgd`` does."""
        check_inputs(x, y, target, streams)
        size = self.chunk or default_chunk(x)
        with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
            view = View(model, x, y, target)
            search = _Search(
                view, self.eps, self.norm, self.steps, self.output, seed, row_streams(x, streams)
            )
            found = _Found(view.clean)
            aims = [view.target]
            if self.runners_up and len(x):
                aims = _runners_up(view, self.runners_up, size)
            for group in _groups(list(enumerate(aims * self.restarts))):
                standing = (~found.success).nonzero().squeeze(1)
                for rows in chunks(standing, max(1, size // len(group))):
                    _climb(search, rows, group, found)
        x_adv = found.x_adv.view_as(x)
        return ClimbResult(x_adv, found.success, found.iterations, found.zero_gradients)


def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    target: Tensor | None = None,
    *,
    eps: float,
    seed: int = 0,
    streams: Tensor | None = None,
    **parameters: Any,
) -> ClimbResult:
    """Climb a loss from random points of the ball of radius eps around x, inside the box [0, 1].

    The first step is as long as the ball is wide. At the checkpoints a row whose loss rose in
    less than three quarters of the steps since the last one, or whose best loss stands still, goes
    back to its best point and halves its step.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored, and no `.grad` is touched.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the labels to leave.
        target: (batch,) integers, the classes to reach instead.
        eps: radius in input units, in (0, 1] for "linf", positive for "l2".
        seed: of the random starts; any integer.
        streams: (batch,) integers, which random stream each row has, by default its position. The
            starts depend on the seed, the climb and this alone: not on the batch.
        parameters: the other fields of `APGD`: norm, steps, restarts, output, runners_up, chunk.

    Returns the first point of a row at which the goal holds; without any, the visited point that
    misses it by the least margin of the logits. A gradient that is missing, because the model
    detaches it or does not depend on its input, is a zero gradient: the random starts still act.
    What the model raises is not caught.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    settings = APGD(eps=eps, targets="untargeted" if target is None else "all", **parameters)
    return settings.run(model, x, y, target, seed, streams)


def checkpoints(steps: int) -> dict[int, int]:
    """Return after which steps the step size is judged, each with the steps since the last one."""
    at, percent, width = {}, 22, 22
    before = 0
    while percent <= 100:
        step = -(-percent * steps // 100)
        if step > before:
            at[step], before = step - before, step
        width = max(width - 3, 6)
        percent += width
    return at


@dataclass(frozen=True)
class _Search:
    """What all climbs share."""

    view: View
    eps: float
    norm: BallNorm
    steps: int
    output: Output
    seed: int
    streams: Tensor

    def start(self, rows: Tensor, draws: Sequence[int]) -> Tensor:
        """Return a random point of the ball for each climb of each row, (climbs, features)."""
        clean, streams = self.view.clean[rows], self.streams[rows]
        points = [
            random_point(clean, self.eps, self.norm, self.seed, draw, streams) for draw in draws
        ]
        return torch.stack(points, dim=1).flatten(0, 1)

    def look(self, points: Tensor, rows: Tensor, aim: Tensor | None) -> tuple[Tensor, ...]:
        """Return margin, loss and gradient of ``points``, away from y or towards ``aim``."""
        y = self.view.y[rows]

        def climbed(logits: Tensor) -> Tensor:
            output = defined(self.output, logits.shape[1], targeted=aim is not None)
            return LOSSES[output](logits, y, aim)

        logits, loss, gradient = self.view.climb(points, climbed)
        loss = torch.where(loss.isnan(), -torch.inf, loss)
        return self.view.margin(logits, rows), loss, gradient

    def step(self, at: _At, share: float) -> Tensor:
        """Return the next points: ``share`` of a gradient step, the rest of the last step's."""
        ahead = at.point + at.length * steepest(at.gradient, self.norm)
        ahead = project(ahead, at.clean, self.eps, self.norm)
        moved = at.point + share * (ahead - at.point) + (1 - share) * (at.point - at.previous)
        return project(moved, at.clean, self.eps, self.norm)


@dataclass
class _At:
    """Where climbs stand, one entry a climb, those of a row one behind the other.

    ``row``: which of the batch it is; ``aim``: the class that it climbs to, or None; ``nearest``:
    the visited point of the largest ``margin`` to the goal; ``flat``: how many of its gradients
    were zero everywhere.
    """

    row: Tensor
    aim: Tensor | None
    clean: Tensor
    point: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    checked_loss: Tensor
    length: Tensor
    rises: Tensor
    halved: Tensor
    nearest: Tensor
    margin: Tensor
    flat: Tensor

    @classmethod
    def first(cls, search: _Search, rows: Tensor, aim: Tensor | None, point: Tensor) -> _At:
        """Stand at a start, with a step as long as the ball is wide."""
        margin, loss, gradient = search.look(point, rows, aim)
        return cls(
            row=rows,
            aim=aim,
            clean=search.view.clean[rows],
            point=point,
            previous=point,
            gradient=gradient,
            loss=loss,
            best=point,
            best_gradient=gradient,
            best_loss=loss,
            checked_loss=loss,
            length=point.new_full((len(rows), 1), 2 * search.eps),
            rises=torch.zeros_like(rows),
            halved=torch.zeros_like(rows, dtype=torch.bool),
            nearest=point,
            margin=margin.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf),
            flat=torch.zeros_like(rows),
        )

    def only(self, going: Tensor) -> _At:
        """Return some of the climbs."""
        values = [getattr(self, field.name) for field in fields(self)]
        kept: list[Any] = [None if value is None else value[going] for value in values]
        return _At(*kept)

    def look(self, point: Tensor, margin: Tensor) -> None:
        """Keep the points that are nearer to their goals than all before."""
        nearer = margin > self.margin  # never where it is NaN
        self.nearest = torch.where(nearer[:, None], point, self.nearest)
        self.margin = torch.where(nearer, margin, self.margin)

    def move(self, point: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Take a step to ``point``, and keep it if it is the best."""
        self.rises += loss > self.loss
        self.previous, self.point = self.point, point
        self.loss, self.gradient = loss, gradient
        better = loss > self.best_loss
        self.best = torch.where(better[:, None], point, self.best)
        self.best_gradient = torch.where(better[:, None], gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, window: int) -> None:
        """Halve the steps that have not paid in the last ``window``, and go back to the best."""
        still = ~self.halved & (self.best_loss <= self.checked_loss)
        self.halved = (self.rises < RHO * window) | still
        back = self.halved[:, None]
        self.length = torch.where(back, self.length / 2, self.length)
        self.point = torch.where(back, self.best, self.point)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.loss = torch.where(self.halved, self.best_loss, self.loss)
        self.checked_loss, self.rises = self.best_loss, torch.zeros_like(self.rises)


class _Found:
    """The visited point of each row that is nearest to its goal, and what has been counted."""

    def __init__(self, clean: Tensor) -> None:
        self.x_adv = clean.clone()
        self.margin = clean.new_full((len(clean),), -torch.inf, dtype=torch.float64)
        self.iterations = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        self.zero_gradients = torch.zeros_like(self.iterations)

    @property
    def success(self) -> Tensor:
        """Where the goal holds with a strict margin, (batch,) bool."""
        return self.margin > 0

    def keep(self, at: _At, climbs: int, steps: int) -> None:
        """Keep what ``climbs`` a row have found and counted in ``steps`` of each."""
        rows = at.row[::climbs]
        margin, place = at.margin.view(-1, climbs).max(dim=1)
        nearest = at.nearest[torch.arange(len(rows), device=rows.device) * climbs + place]
        better = margin.double() > self.margin[rows]
        self.margin[rows[better]], self.x_adv[rows[better]] = (
            margin[better].double(),
            nearest[better],
        )
        self.iterations[rows] += climbs * steps
        self.zero_gradients[rows] += at.flat.view(-1, climbs).sum(dim=1)


def _climb(search: _Search, rows: Tensor, group: list[Climb], found: _Found) -> None:
    """Run algorithm 1 for ``rows`` once for each draw and aim of a ``group``, side by side.

    A row leaves at once where one of its climbs reaches its goal.
    """
    checks, climbs = checkpoints(search.steps), len(group)
    aims = [aim[rows] for _, aim in group if aim is not None]
    aim = torch.stack(aims, dim=1).flatten() if aims else None
    point = search.start(rows, [draw for draw, _ in group])
    at = _At.first(search, rows.repeat_interleave(climbs), aim, point)
    for step in range(search.steps + 1):
        done = (at.margin > 0).view(-1, climbs).any(dim=1)
        if step == search.steps:
            found.keep(at, climbs, step)
            return
        if bool(done.any()):
            done = done.repeat_interleave(climbs)
            found.keep(at.only(done), climbs, step)
            at = at.only(~done)
            if not len(at.row):
                return
        at.flat += ~at.gradient.any(dim=1)
        point = search.step(at, MOMENTUM if step else 1.0)
        if step == search.steps - 1:  # there is nowhere to go on to: a look without a gradient
            at.look(point, search.view.margin(search.view.logits(point), at.row))
            continue
        margin, loss, gradient = search.look(point, at.row, at.aim)
        at.look(point, margin)
        at.move(point, loss, gradient)
        if step + 1 in checks:
            at.check(checks[step + 1])


def _groups(climbs: list[Climb]) -> list[list[Climb]]:
    """Return the first climb, on which most rows fall, and the others as many as fit together."""
    later = range(1, len(climbs), TOGETHER)
    return [climbs[:1], *(climbs[first : first + TOGETHER] for first in later)]


def _runners_up(view: View, count: int, size: int) -> list[Tensor | None]:
    """Return the wrong classes of the largest logits at the clean rows, (batch,) each."""
    logits = torch.cat([view.logits(rows) for rows in torch.split(view.clean, size)])
    wrong = logits.scatter(1, view.y[:, None], -torch.inf)
    return list(wrong.topk(min(count, wrong.shape[1] - 1)).indices.unbind(1))
