"""Random perturbations of a budget: what an attack has to beat before its gradients mean anything.

Szegedy et al. 2014, arXiv 1312.6199, section 4.2, and Goodfellow, Shlens, Szegedy 2015, arXiv
1412.6572, section 4, hold adversarial examples against noise of the same size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.kit import draws
from attacks.kit.ball import (
    BallNorm,
    check_ball,
    check_counts,
    check_inputs,
    default_chunk,
    random_extreme,
    random_point,
)
from attacks.kit.l0_budget import PAPER_GAMMA, L0Budget
from attacks.kit.losses import unanswered
from attacks.kit.model import chunks
from attacks.kit.view import View
from bench.base.types import Norm, Targets, ThreatModel
from bench.measure.at_rest import at_rest
from bench.plugins.contracts import Attack, AttackContext, Perturbation

Values = Literal["extreme", "uniform"]


@dataclass(frozen=True)
class Noise(Attack):
    """Random points of the budget, the worst of ``draws`` for each row.

    ``norm``: ``linf``, ``l2`` or ``l0``. ``eps``: the radius in input units, for linf (in (0, 1])
    and l2. ``gamma`` or ``max_features``: the budget of l0, a fraction of the features or their
    number. Without any, ``eps`` is 0.1, as for ``pgd``, and ``gamma`` 0.145, as for ``jsma``.
    ``values``: ``extreme`` draws corners (linf), points of the sphere (l2), features at
    0 or 1 (l0); ``uniform`` draws from the whole ball, or features from [0, 1]. ``access``: with
    ``scores`` a row that never reaches the goal is left at the draw with the worst margin; with
    ``decisions`` at the first. ``draws``: how many points of a row are tried; it is done at its
    first success. ``targets``: which attempts the runner makes. ``chunk``: rows at a time.
    """

    norm: Norm = "linf"
    eps: float | None = None
    gamma: float | None = None
    max_features: int | None = None
    draws: int = 100
    values: Values = "extreme"
    access: Literal["scores", "decisions"] = "scores"
    targets: Targets = "untargeted"
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, valid in (
            ("norm", get_args(Norm)),
            ("values", get_args(Values)),
            ("access", ("scores", "decisions")),
            ("targets", get_args(Targets)),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {valid}, got {getattr(self, name)!r}")
        check_counts(draws=self.draws, chunk=self.chunk, max_features=self.max_features)
        if (self.eps, self.gamma, self.max_features) == (None, None, None):
            name, default = ("gamma", PAPER_GAMMA) if self.norm == "l0" else ("eps", 0.1)
            object.__setattr__(self, name, default)
        self._check_budget()

    def _check_budget(self) -> None:
        names = ("eps", "gamma", "max_features")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        valid = ("gamma", "max_features") if self.norm == "l0" else ("eps",)
        if len(given) != 1 or not given.keys() <= set(valid):
            raise ValueError(f"norm {self.norm!r} takes {' or '.join(valid)}, got {given}")
        if self.eps is not None:
            check_ball(self.norm, self.eps)
        if self.norm == "l0":
            L0Budget.of(self)

    @property
    def rowwise(self) -> bool:
        """Each row has its own steps and its own random stream."""
        return True

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """Return the ball of the norm; an l0 budget is a fraction of the features."""
        if self.norm != "l0":
            return ThreatModel(self.norm, self.eps)
        return L0Budget.of(self).threat(shape)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Draw for all rows; each sample has a random stream of its own."""
        check_inputs(x, y, target, context.sample_ids)
        ids = draws.sample_streams(context.sample_ids, target, context.info.classes)
        streams = draws.row_streams(x, ids)
        size = self.chunk or default_chunk(x)
        tries = torch.zeros_like(streams)
        rows, done = torch.arange(len(x), device=x.device), torch.zeros_like(y, dtype=torch.bool)
        with torch.no_grad(), at_rest(model):
            view = View(model, x, y, target)
            best, score = view.clean.clone(), view.clean.new_full((len(x),), -torch.inf)
            for draw in range(self.draws):
                for part in chunks(rows, size):
                    point = self._point(view.clean[part], context.seed, draw, streams[part])
                    logits = view.logits(point)
                    goal = None if target is None else target[part]
                    gain = view.margin(logits, part)
                    done[part] = gain > 0
                    lost = unanswered(logits, y[part], goal)
                    gain = gain.masked_fill(lost, torch.inf).to(score.dtype)
                    if self.access == "decisions":  # the first stays, until one reaches the goal
                        gain = torch.full_like(gain, -draw)
                    better = (gain > score[part]) | done[part] | lost
                    best[part[better]], score[part[better]] = point[better], gain[better]
                    tries[part] += 1
                rows = rows[~done[rows]]
        reasons = ["reached" if row else "budget" for row in done.tolist()]
        return Perturbation(best.view_as(x), tries, reasons)

    def _point(self, x: Tensor, seed: int, draw: int, streams: Tensor) -> Tensor:
        """Return one random point for each row of ``x`` (rows, features)."""
        if self.norm == "l0":
            return self._few(x, seed, draw, streams)
        assert self.eps is not None  # _check_budget
        norm: BallNorm = self.norm
        place = random_extreme if self.values == "extreme" else random_point
        return place(x, self.eps, norm, seed, draw, streams)

    def _few(self, x: Tensor, seed: int, draw: int, streams: Tensor) -> Tensor:
        """Return ``x`` with as many random features as the budget allows at random values."""
        features = x.shape[1]
        budget = min(L0Budget.of(self).steps((features,)), features)
        order, values = draws.uniform(seed, draw, streams, 2 * features).chunk(2, dim=1)
        chosen = order.topk(budget, dim=1).indices
        values = values.round() if self.values == "extreme" else values
        return x.scatter(1, chosen, values.gather(1, chosen).to(x.dtype))
