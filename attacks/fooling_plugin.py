"""The plugin face of ``attacks.fooling.fooling``: parameters, threat model, targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from attacks.draws import sample_streams
from attacks.fooling import Output, check_ascent, fooling
from bench.plugin import Attack, AttackContext, Perturbation
from bench.types import ThreatModel

Goals = Literal["all", "random"]


@dataclass(frozen=True)
class Fooling(Attack):
    """Noise that a network is sure of, without a source: Nguyen et al. 2015, arXiv 1412.1897.

    The parameters are those of ``attacks.fooling.fooling``, which says more of each.
    ``confidence``: the probability of the target, in (0, 1), at which an attempt succeeds.
    ``steps``, ``step_size``: how long it climbs, and how far a step moves each feature;
    ``restarts``: from how many noises, until one reaches the goal.
    ``output``: what is differentiated: ``probs``, as in the paper, ``deployed``, ``log_odds`` or
    ``margin``. ``targets``: which attempts the runner makes: ``all`` classes but the source's own,
    or one at random. ``chunk``: rows at a time. A source lends its shape, and its number in the
    test split to the noise; its values and its label mean nothing, so no distance, no robust
    accuracy and no worst case is made of the records.
    """

    confidence: float = 0.99
    steps: int = 200
    step_size: float = 0.05
    restarts: int = 10
    output: Output = "log_odds"
    targets: Goals = "all"
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_ascent(
            self.confidence, self.steps, self.step_size, self.restarts, self.output, self.chunk
        )
        if self.targets not in get_args(Goals):
            raise ValueError(f"targets must be one of {get_args(Goals)}, got {self.targets!r}")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the threat model of any input in the box, whatever the ``shape``."""
        return ThreatModel("none")

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack for all rows; each sample and target has a random stream of its own."""
        if target is None:
            raise ValueError("fooling needs a target for each row, got None")
        result = fooling(
            model,
            x,
            target,
            confidence=self.confidence,
            steps=self.steps,
            step_size=self.step_size,
            restarts=self.restarts,
            output=self.output,
            seed=context.seed,
            streams=sample_streams(context.sample_ids, target, context.info.classes),
            chunk=self.chunk,
        )
        reasons = ["reached" if done else "budget" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.iterations, reasons, result.zero_gradients)
