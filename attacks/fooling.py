"""Fooling inputs: noise, driven up the gradient until a network is sure of a class.

Nguyen, Yosinski, Clune 2015, *Deep Neural Networks are Easily Fooled: High Confidence Predictions
for Unrecognizable Images*, arXiv 1412.1897. There is no source image, so nothing is perturbed. The
paper climbs the softmax output of the class; the start in uniform noise and the sign steps inside
the box are this module's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.kit import draws
from attacks.kit.ball import check_counts, check_inputs, default_chunk
from attacks.kit.draws import sample_streams
from attacks.kit.losses import LOSSES, log_odds_against, reached
from attacks.kit.model import Layout, Model, chunks, finite_gradient, probe, widened
from bench.base.types import ThreatModel
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import Attack, AttackContext, Perturbation

Output = Literal["probs", "deployed", "log_odds", "margin"]
Goals = Literal["all", "random"]


@dataclass(frozen=True)
class FoolingResult:
    """One entry for each row of x, all on the device of x.

    `x_adv`: the shape and dtype of x. `probability`: float64, of the target there. `success`: bool,
    the target wins strictly, with the confidence asked for. `iterations`: int64, steps taken, all
    restarts together. `zero_gradients`: int64, how many of their gradients were exactly zero (or
    NaN) everywhere.
    """

    x_adv: Tensor
    probability: Tensor
    success: Tensor
    iterations: Tensor
    zero_gradients: Tensor


@dataclass(frozen=True)
class Fooling(Attack):
    """Noise that a network is sure of, without a source: Nguyen et al. 2015, arXiv 1412.1897.

    ``confidence``: the probability of the target, in (0, 1), at which an attempt succeeds.
    ``steps``: how many steps a row may take in each restart.
    ``step_size``: how far a step moves every feature, along the sign of its gradient, in (0, 1].
    ``restarts``: how often it starts; each run after the first starts the rows that are not done
    from other noise: a climb may end on a local maximum below ``confidence``.
    ``output``: what is differentiated. ``probs``: the target's probability, as in the paper; its
    gradient is 0 in float32 wherever that probability is. ``deployed``, ``log_odds``, ``margin``:
    see ``attacks.kit.losses``.
    ``targets``: which attempts the runner makes: ``all`` classes but the source's own, or one at
    random.
    ``chunk``: rows at once, by default 256 on a CPU and 2048 elsewhere. Results depend on it only
    by floating-point rounding.

    A source lends its shape, and its number in the test split to the noise; its values and its
    label mean nothing, so no distance, no robust accuracy and no worst case is made of the records.
    """

    confidence: float = 0.99
    steps: int = 200
    step_size: float = 0.05
    restarts: int = 10
    output: Output = "log_odds"
    targets: Goals = "all"
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, restarts=self.restarts, chunk=self.chunk)
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence!r}")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], got {self.step_size!r}")
        if self.output not in CLIMBED:
            raise ValueError(
                f"output must be one of {tuple(CLIMBED)} (none that needs a label: an input "
                f"without a source has none), got {self.output!r}"
            )
        if self.targets not in get_args(Goals):
            raise ValueError(f"targets must be one of {get_args(Goals)}, got {self.targets!r}")

    @property
    def rowwise(self) -> bool:
        """Each row has its own steps and its own random stream."""
        return True

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the threat model of any input in the box, whatever the ``shape``."""
        return ThreatModel("none")

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack for all rows; each sample and target has a random stream of its own."""
        if target is None:
            raise ValueError("fooling needs a target for each row, got None")
        streams = sample_streams(context.sample_ids, target, context.info.classes)
        result = _climb(self, model, x, target, context.seed, streams)
        reasons = ["reached" if done else "budget" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.iterations, reasons, result.zero_gradients)


def fooling(
    model: Model,
    x: Tensor,
    target: Tensor,
    *,
    seed: int = 0,
    streams: Tensor | None = None,
    **parameters: Any,
) -> FoolingResult:
    """Climb from uniform noise in [0, 1] to inputs that ``model`` is sure are of class ``target``.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored, and no `.grad` is touched.
        x: (batch, *shape), floating-point. Only its shape, dtype and device count, no value does.
        target: (batch,) integers, the class that each row is to be taken for.
        seed: of the noise; any integer.
        streams: (batch,) integers, which random stream each row has, by default its position. The
            noise depends on the seed, the restart and this alone: not on model, batch or chunk.
        parameters: the fields of `Fooling`: confidence, steps, step_size, restarts, output, chunk.

    Returns the first input of a row at which the target wins strictly and has a probability of
    ``confidence``; without any, the one of the largest probability that was visited. A gradient
    that is missing is a zero gradient, and moves nothing. What the model raises is not caught.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    return _climb(Fooling(**parameters), model, x, target, seed, streams)


def _climb(
    settings: Fooling, model: Model, x: Tensor, target: Tensor, seed: int, streams: Tensor | None
) -> FoolingResult:
    size = settings.chunk or default_chunk(x)
    with torch.inference_mode(mode=False), torch.enable_grad(), at_rest(model):
        blank = torch.zeros_like(x, memory_format=torch.contiguous_format)
        unlabelled = torch.zeros(x.shape[:1], dtype=torch.int64)
        check_inputs(blank, unlabelled, target, streams)
        goals = target.detach().to(device=x.device, dtype=torch.int64, copy=True)
        streams, point = draws.row_streams(x, streams), blank.flatten(1)
        view = _View(model, probe(model, blank, goals), x.shape[1:], settings.output)
        state = _State.of(point)
        for restart in range(settings.restarts):
            rows = (~state.success).nonzero().squeeze(1)
            for part in chunks(rows, size):
                noise = draws.uniform(seed, restart, streams[part], point.shape[1])
                point[part] = noise.to(point.dtype)
            for left in range(settings.steps, -1, -1):  # after the last step there is only a look
                for part in chunks(rows, size):
                    seen = view.look(point[part], goals[part], gradient=left > 0)
                    state.keep(part, point[part], seen, settings.confidence)
                    if seen.gradient is None:
                        continue
                    going = ~state.success[part]
                    moving, gradient = part[going], seen.gradient[going]
                    state.count(moving, gradient)
                    moved = point[moving] + settings.step_size * gradient.sign()
                    point[moving] = moved.clamp_(0, 1)
                rows = rows[~state.success[rows]]
                if not len(rows):
                    break
    return FoolingResult(
        state.best.view_as(x),
        state.probability,
        state.success,
        state.iterations,
        state.zero_gradients,
    )


def _probability(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, target[:, None]).squeeze(1)


def _towards(output: str) -> Callable[[Tensor, Tensor], Tensor]:
    loss = LOSSES[output]
    return lambda logits, target: loss(logits, target, target)  # with a target, no label counts


CLIMBED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probs": _probability,
    "deployed": _towards("deployed"),
    "log_odds": _towards("log_odds"),
    "margin": _towards("margin"),
}


@dataclass(frozen=True)
class _Seen:
    """What one query of some rows shows of their targets, and the gradient if it was asked for."""

    wins: Tensor
    odds: Tensor
    probability: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class _View:
    """The model, and what is differentiated of it."""

    model: Model
    layout: Layout
    shape: torch.Size
    output: str

    def look(self, points: Tensor, target: Tensor, *, gradient: bool) -> _Seen:
        """Query the model at ``points`` (rows, features)."""
        leaf = self.layout(points.reshape(len(points), *self.shape)).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = self.model(leaf)
            logits = widened(logits)
            climbed = CLIMBED[self.output](logits, target)
        exact = logits.detach().double()  # as the runner judges
        return _Seen(
            reached(exact, target, target),
            -log_odds_against(exact, target),
            _probability(exact, target),
            finite_gradient(climbed, leaf) if gradient else None,
        )


@dataclass(frozen=True)
class _State:
    """The best input of each row so far, (rows, features), and what has been counted.

    ``odds``: the target's log-odds there, which tell inputs apart whose probability rounds to 0.
    """

    best: Tensor
    odds: Tensor
    probability: Tensor
    success: Tensor
    iterations: Tensor
    zero_gradients: Tensor

    @classmethod
    def of(cls, start: Tensor) -> _State:
        """Nothing is seen yet: anything is better."""
        zeros = start.new_zeros(len(start), dtype=torch.int64)
        worst = start.new_full((len(start),), -torch.inf, dtype=torch.float64)
        return cls(start.clone(), worst, zeros.double(), zeros.bool(), zeros, zeros.clone())

    def keep(self, rows: Tensor, points: Tensor, seen: _Seen, confidence: float) -> None:
        """Keep ``points`` that reach the goal, or beat the best; no row here has reached it."""
        done = seen.wins & (seen.probability >= confidence)
        better = done | (seen.odds > self.odds[rows])
        self.success[rows] = done
        for mine, new in (
            (self.best, points),
            (self.odds, seen.odds),
            (self.probability, seen.probability),
        ):
            mine[rows[better]] = new[better]

    def count(self, rows: Tensor, gradient: Tensor) -> None:
        """Count a step of ``rows``, and those among them whose gradient is zero everywhere."""
        self.iterations[rows] += 1
        self.zero_gradients[rows] += ~gradient.any(dim=1)
