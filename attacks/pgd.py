"""Projected gradient descent in an L-infinity or L2 ball, in batches.

Madry, Makelov, Schmidt, Tsipras, Vladu 2018, *Towards Deep Learning Models Resistant to
Adversarial Attacks*, arXiv 1706.06083. What is climbed stands in ``attacks.kit.losses``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.kit.ball import (
    check_counts,
    check_inputs,
    default_chunk,
    project,
    random_point,
    steepest,
)
from attacks.kit.ball_attack import BallAttack, ClimbResult
from attacks.kit.draws import row_streams
from attacks.kit.losses import LOSSES, Output, check_classes, reached, unanswered, unsure
from attacks.kit.model import Model, chunks, finite_gradient, widened
from attacks.kit.view import View
from bench.measure.at_rest import at_rest


@dataclass(frozen=True)
class PGD(BallAttack):
    """Projected gradient descent: Madry et al. 2018, arXiv 1706.06083.

    ``eps``, ``norm``, ``targets``, ``chunk``: see ``attacks.kit.ball_attack.BallAttack``; ``linf``
    steps along the sign of the gradient, ``l2`` along its direction.
    ``steps``: gradient steps of each restart.
    ``step_size``: length of a step, by default 2.5 eps / steps: enough to reach the boundary from
    anywhere in the ball and to move along it (the paper's appendix, figure 6).
    ``restarts``: how often it runs; each run after the first attacks the rows that still stand.
    ``output``: what is differentiated, a key of ``attacks.kit.losses.LOSSES``.
    ``random_start``: whether the first run, too, starts from a point uniform in the ball. If not,
    it starts from x: then one step of length eps is the fast gradient method.
    ``early_stop``: whether a row is done as soon as the goal holds. If not, it climbs on to the
    largest loss, as adversarial training and transfer want it.
    ``confidence``: a goal of its own, in (0, 1], without a target: that no class has this
    probability. Then it climbs against the class that leads, whichever that is.
    ``adaptive``: whether a defense's surrogate is differentiated, where it has one; without, the
    attack is the naive one.
    """

    eps: float = 0.1
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    output: Output = "log_odds"
    random_start: bool = True
    early_stop: bool = True
    confidence: float | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, restarts=self.restarts)
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, got {self.step_size!r}")
        if self.output not in LOSSES:
            raise ValueError(f"output must be one of {tuple(LOSSES)}, got {self.output!r}")
        if self.confidence is not None and not 0 < self.confidence <= 1:
            raise ValueError(f"confidence must be in (0, 1], got {self.confidence!r}")
        if self.confidence is not None and self.targets != "untargeted":
            raise ValueError(
                "confidence is a goal without a target: give it with targets untargeted"
            )

    def run(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor | None, seed: int,
        streams: Tensor | None,
    ) -> ClimbResult:  # fmt: skip
        """Run the attack, as ``pgd`` does."""
        return _climb(self, model, x, y, target, seed, streams)


def pgd(
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
    """Climb a loss from x, inside the ball of radius eps and the box [0, 1].

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored, and no `.grad` is touched, so the attack may be
            called in the middle of a training step.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the labels to leave.
        target: (batch,) integers, the classes to reach instead.
        eps: radius of the ball, in input units.
        seed: of the random starts; any integer.
        streams: (batch,) integers, which random stream each row has, by default its position. The
            starts depend on the seed, the restart and this alone: not on the batch.
        parameters: the other fields of `PGD`: norm, steps, step_size, restarts, output,
            random_start, early_stop, confidence, chunk.

    Returns the first point of a row at which the goal holds; with `early_stop=False` the one of
    the largest loss among those. Without any, the point of the largest loss that was visited; an
    answer that is NaN or infinite is the largest untargeted, and ends the row, without success. A
    gradient that is missing, because the model detaches it or does not depend on its input, is a
    zero gradient: the random starts still act. What the model raises is not caught.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    settings = PGD(eps=eps, targets="untargeted" if target is None else "all", **parameters)
    return _climb(settings, model, x, y, target, seed, streams)


def _climb(
    settings: PGD,
    model: Model,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    seed: int,
    streams: Tensor | None,
) -> ClimbResult:
    check_inputs(x, y, target, streams)
    eps, norm, steps = settings.eps, settings.norm, settings.steps
    size = settings.chunk or default_chunk(x)
    length = 2.5 * eps / steps if settings.step_size is None else settings.step_size
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        view = _View(model, x, y, target, settings.output, settings.confidence)
        streams = row_streams(x, streams)
        clean, point, state = view.clean, view.clean.clone(), _State.of(view.clean)
        done = torch.zeros_like(state.success)
        for restart in range(settings.restarts):
            rows = (~done).nonzero().squeeze(1)
            if restart or settings.random_start:
                point[rows] = random_point(clean[rows], eps, norm, seed, restart, streams[rows])
            else:
                point[rows] = clean[rows]
            for left in range(steps, -1, -1):  # after the last step there is only a look
                for part in chunks(rows, size):
                    seen = view.look(point[part], part, gradient=left > 0)
                    state.keep(part, point[part], seen)
                    done[part] |= seen.done
                    if seen.gradient is None:
                        continue
                    here = point[part]
                    moved = here + length * steepest(seen.gradient, norm)
                    moved = project(moved, clean[part], eps, norm)
                    # Chosen by a mask: rows picked by one would make a device wait for the host.
                    going = ~seen.done if settings.early_stop else torch.ones_like(seen.done)
                    state.count(part, going, seen.gradient)
                    point[part] = torch.where(going[:, None], moved, here)
                if settings.early_stop:
                    rows = rows[~done[rows]]
    return ClimbResult(state.best.view_as(x), state.success, state.iterations, state.zero_gradients)


@dataclass(frozen=True)
class _Seen:
    """What one query of some rows shows: loss, goal, and the gradient where it was asked for.

    ``done``: the goal is reached, or the model has no answer: then the loss is infinite.
    """

    loss: Tensor
    reached: Tensor
    done: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class _State:
    """The best point of each row so far, (rows, features), and what has been counted."""

    best: Tensor
    loss: Tensor
    success: Tensor
    iterations: Tensor
    zero_gradients: Tensor

    @classmethod
    def of(cls, clean: Tensor) -> _State:
        """Nothing is seen yet: any loss is better."""
        zeros = clean.new_zeros(len(clean), dtype=torch.int64)
        loss = clean.new_full((len(clean),), -torch.inf, dtype=torch.float64)
        return cls(clean.clone(), loss, zeros.bool(), zeros, zeros.clone())

    def keep(self, rows: Tensor, points: Tensor, seen: _Seen) -> None:
        """Keep ``points`` where they beat the best: first by the goal, then by the loss."""
        already, loss = self.success[rows], seen.loss.double()
        most = self.loss[rows]
        better = (seen.reached & ~already) | ((seen.reached == already) & (loss > most))
        self.best[rows] = torch.where(better[:, None], points, self.best[rows])
        self.loss[rows] = torch.where(better, loss, most)
        self.success[rows] = already | (better & seen.reached)

    def count(self, rows: Tensor, going: Tensor, gradient: Tensor) -> None:
        """Count a step of the ``rows`` that are ``going``, and which have a gradient of zero."""
        self.iterations[rows] += going
        self.zero_gradients[rows] += going & ~gradient.any(dim=1)


class _View(View):
    """The same, with what is climbed and the goal that no class has the probability asked for."""

    def __init__(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor | None, output: Output,
        confidence: float | None,
    ) -> None:  # fmt: skip
        super().__init__(model, x, y, target)
        self.confidence = confidence
        self.output = output

    def look(self, points: Tensor, rows: Tensor, *, gradient: bool) -> _Seen:
        """Query the model at ``points`` (rows, features), where ``rows`` stand."""
        y, target = self.y[rows], None if self.target is None else self.target[rows]
        leaf = self.layout(self._shaped(points)).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = self.model(leaf)
            check_classes(self.output, logits.shape[1], targeted=target is not None)
            logits = widened(logits)
            if self.confidence is not None:
                y = logits.detach().argmax(1)  # whichever class leads
            loss = LOSSES[self.output](logits, y, target)
        won = self._reached(logits.detach(), y, target)
        lost = unanswered(logits.detach(), y, target)
        return _Seen(
            loss.detach().masked_fill(lost, torch.inf),
            won,
            won | lost,
            finite_gradient(loss, leaf) if gradient else None,
        )

    def _reached(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        if self.confidence is not None:
            return unsure(logits, self.confidence)
        return reached(logits, y, target)
