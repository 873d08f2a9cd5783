"""The plugin face of ``attacks.pgd.pgd``: parameters, threat model, targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from attacks.ball import BallNorm, check_ball
from attacks.draws import sample_streams
from attacks.losses import Output
from attacks.pgd import check_climb, check_confidence, pgd
from bench.plugin import Attack, AttackContext, Perturbation
from bench.types import Targets, ThreatModel


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent: Madry et al. 2018, arXiv 1706.06083.

    The parameters are those of ``attacks.pgd.pgd``, which says more of each. ``eps``: the budget
    in input units, in (0, 1] for linf and positive for l2. ``norm``: ``linf`` or ``l2``.
    ``steps``, ``step_size`` (default 2.5 eps / steps), ``restarts``: how long it climbs.
    ``output``: what is differentiated, see ``attacks.losses``. ``targets``: which attempts the
    runner makes. ``random_start``: whether the first restart, too, starts at random.
    ``confidence``: the goal that no class has this probability, in place of another label.
    ``early_stop``: whether a row is done at its first success; transfer and training climb on.
    ``adaptive``: whether a defense's surrogate is differentiated, where it has one; without, the
    attack is the naive one. ``chunk``: rows at a time.
    """

    eps: float = 0.1
    norm: BallNorm = "linf"
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    output: Output = "log_odds"
    targets: Targets = "untargeted"
    random_start: bool = True
    early_stop: bool = True
    confidence: float | None = None
    adaptive: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_ball(self.norm, self.eps)
        check_climb(self.steps, self.step_size, self.restarts, self.output, self.chunk)
        check_confidence(self.confidence, targeted=self.targets != "untargeted")
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets must be one of {get_args(Targets)}, got {self.targets!r}")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of radius ``eps``, whatever the ``shape``."""
        return ThreatModel(self.norm, self.eps)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows; each sample has a random stream of its own."""
        result = pgd(
            model,
            x,
            y,
            target,
            eps=self.eps,
            norm=self.norm,
            steps=self.steps,
            step_size=self.step_size,
            restarts=self.restarts,
            output=self.output,
            random_start=self.random_start,
            early_stop=self.early_stop,
            confidence=self.confidence,
            seed=context.seed,
            streams=sample_streams(context.sample_ids, target, context.info.classes),
            chunk=self.chunk,
        )
        reasons = ["reached" if done else "budget" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.iterations, reasons, result.zero_gradients)
