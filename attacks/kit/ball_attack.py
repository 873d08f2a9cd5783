"""The plugin of an attack in a ball: the fields that all of them have, and how they are run."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor, nn

from attacks.kit.ball import BallNorm, check_ball, check_counts
from attacks.kit.draws import sample_streams
from attacks.kit.model import Model
from bench.base.types import Targets, ThreatModel
from bench.plugins.contracts import Attack, AttackContext, Perturbation


@dataclass(frozen=True)
class BallResult:
    """One entry for each row of x, all on the device of x.

    `x_adv`: the shape and dtype of x. `success`: bool, the goal holds with a strict margin.
    `iterations`: int64, steps taken, all restarts together, or inputs tried.
    """

    x_adv: Tensor
    success: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class ClimbResult(BallResult):
    """The same of an attack by gradients.

    `zero_gradients`: int64, how many of them were exactly zero (or NaN) everywhere, at most one a
    step.
    """

    zero_gradients: Tensor


@dataclass(frozen=True)
class BallAttack(Attack):
    """``eps``: the budget in input units, in (0, 1] for linf and positive for l2.

    ``norm``: ``linf`` or ``l2``. ``targets``: which attempts the runner makes. ``chunk``: rows at
    once, by default 256 on a CPU and 2048 elsewhere; results depend on it only by floating-point
    rounding. ``unfinished``: why a row stops that never reaches its goal.
    """

    eps: float | None = 0.1
    norm: BallNorm = "linf"
    targets: Targets = "untargeted"
    chunk: int | None = None

    unfinished: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        check_ball(self.norm, 1.0 if self.eps is None else self.eps)
        check_counts(chunk=self.chunk)
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets must be one of {get_args(Targets)}, got {self.targets!r}")

    @property
    def rowwise(self) -> bool:
        """Each row has its own steps and its own random stream."""
        return True

    @abstractmethod
    def run(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor | None, seed: int,
        streams: Tensor | None,
    ) -> BallResult:  # fmt: skip
        """Run the attack on the rows of ``x``, each with its own random stream."""

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of radius ``eps``, whatever the ``shape``; without one the least norm."""
        return ThreatModel(self.norm, self.eps)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows; each source and target has a random stream of its own."""
        streams = sample_streams(context.sample_ids, target, context.info.classes)
        result = self.run(model, x, y, target, context.seed, streams)
        reasons = ["reached" if done else self.unfinished for done in result.success.tolist()]
        zero = result.zero_gradients if isinstance(result, ClimbResult) else None
        return Perturbation(result.x_adv, result.iterations, reasons, zero)
