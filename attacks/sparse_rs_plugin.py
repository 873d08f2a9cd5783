"""The plugin face of ``attacks.sparse_rs.sparse_rs``: parameters, threat model, targets."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from attacks.draws import sample_streams
from attacks.jsma_plugin import PAPER_GAMMA
from attacks.sparse_rs import sparse_rs
from bench.plugin import Attack, AttackContext, Perturbation
from bench.types import Access, Targets, ThreatModel, count_features


@dataclass(frozen=True)
class SparseRs(Attack):
    """Sparse-RS within an L0 ball, by random search on scores: Croce et al. 2022, arXiv 2006.12834.

    The parameters are those of ``attacks.sparse_rs.sparse_rs``, which says more of each.
    ``gamma`` or ``max_features``: the budget, a fraction of the features or their number; without
    either, ``gamma`` is 0.145, as for ``jsma``. ``queries``: how many inputs of a row are tried.
    ``alpha_init``: the share of features exchanged at first. ``pixels``: whether pixels are
    counted and changed whole. ``targets``: ``untargeted``, ``all``, ``random``, ``runner-up``.
    ``chunk``: rows at a time.
    """

    gamma: float | None = None
    max_features: int | None = None
    queries: int = 10_000
    alpha_init: float = 0.3
    pixels: bool = False
    targets: Targets = "untargeted"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.gamma is None and self.max_features is None:
            object.__setattr__(self, "gamma", PAPER_GAMMA)
        if self.gamma is not None and self.max_features is not None:
            raise ValueError(
                f"give one of gamma and max_features, got {self.gamma} and {self.max_features}"
            )
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma!r}")
        for name in ("max_features", "queries", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if not 0 < self.alpha_init < float("inf"):
            raise ValueError(f"alpha_init must be positive and finite, got {self.alpha_init!r}")

    @property
    def access(self) -> Access:
        """Scores: no gradient is taken."""
        return "scores"

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """L0, in features or pixels; ``max_features`` as a fraction of them."""
        total = count_features(shape[1:] if self.pixels else shape)
        budget = self.gamma if self.max_features is None else min(1.0, self.max_features / total)
        return ThreatModel("l0", budget, "pixels" if self.pixels else "features")

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows; each source and target has a random stream of its own."""
        result = sparse_rs(
            model,
            x,
            y,
            target,
            gamma=self.gamma,
            max_features=self.max_features,
            queries=self.queries,
            alpha_init=self.alpha_init,
            pixels=self.pixels,
            seed=context.seed,
            streams=sample_streams(context.sample_ids, target, context.info.classes),
            chunk=self.chunk,
        )
        reasons = ["reached" if done else "queries" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.queries, reasons)
