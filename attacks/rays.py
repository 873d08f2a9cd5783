"""RayS: the nearest adversarial along a ray of signs, by decisions alone, in batches.

Chen, Gu 2020, *RayS: A Ray Searching Method for Hard-label Adversarial Attack*, arXiv 2006.12792,
algorithms 1 to 3. Neither gradients nor scores are looked at, so that a model whose logits lead
away from its own mistakes leads nobody here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.kit.ball import check_counts, check_inputs, default_chunk
from attacks.kit.ball_attack import BallAttack, BallResult
from attacks.kit.draws import row_streams, uniform
from attacks.kit.model import Model, chunks
from attacks.kit.view import View
from bench.base.types import Access
from bench.measure.at_rest import at_rest


@dataclass(frozen=True)
class RayS(BallAttack):
    """RayS, a search along rays of signs by decisions alone: Chen and Gu 2020, arXiv 2006.12792.

    ``eps``, ``norm``, ``targets``, ``chunk``: see ``attacks.kit.ball_attack.BallAttack``; the rays
    are the same under ``l2``, where the paper has none. ``queries``: inputs of a row that are
    tried; one or two more of the first row check the model. ``tolerance``: how exactly the radius
    of a direction is found, in input units.
    """

    eps: float = 0.1
    queries: int = 10_000
    tolerance: float = 1e-3

    unfinished: ClassVar[str] = "queries"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(queries=self.queries)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), got {self.tolerance!r}")

    @property
    def access(self) -> Access:
        """Decisions: which class wins, and no score."""
        return "decisions"

    def run(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor | None, seed: int,
        streams: Tensor | None,
    ) -> BallResult:  # fmt: skip
        """Run the attack, as ``rays`` does."""
        check_inputs(x, y, target, streams)
        with torch.no_grad(), at_rest(model):
            view = View(model, x, y, target)
            x_adv, spent = view.clean.clone(), torch.full_like(view.y, self.queries)
            success, streams = torch.zeros_like(view.y, dtype=torch.bool), row_streams(x, streams)
            every = torch.arange(len(x), device=x.device)
            for rows in chunks(every, self.chunk or default_chunk(x)):
                _search(self, view, _start(view.clean[rows], rows, streams[rows]), seed,
                        BallResult(x_adv, success, spent))  # fmt: skip
        return BallResult(x_adv.view_as(x), success, spent)


def rays(
    model: Model,
    x: Tensor,
    y: Tensor,
    target: Tensor | None = None,
    *,
    eps: float,
    seed: int = 0,
    streams: Tensor | None = None,
    **parameters: Any,
) -> BallResult:
    """Find a direction of signs along which the goal is reached within `eps`.

    A row starts with all signs positive, and flips one block of them after another: all features,
    halves, quarters, down to single ones. A direction that does not reach the goal at the smallest
    radius so far is given up after that one query; of a better one the radius is bisected, under
    linf from `eps` on, so that a boundary just within it is not missed (ours). Where the single
    features are through, the row starts again from random signs, which is ours: the
    paper goes on with them.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored. Only which class wins is looked at.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the labels to leave.
        target: (batch,) integers, the classes to reach instead.
        eps: radius in input units, in (0, 1].
        seed: of the random signs; any integer.
        streams: (batch,) integers, which random stream each row has, by default its position.
        parameters: the other fields of `RayS`: queries, tolerance, chunk.

    A row stops at the first radius of at most `eps`; without one it is left as it was.
    `iterations` of the result: inputs of a row that were given to the model.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    settings = RayS(eps=eps, targets="untargeted" if target is None else "all", **parameters)
    return settings.run(model, x, y, target, seed, streams)


@dataclass
class _At:
    """Where the search of each row stands; ``row``: which of the batch it is.

    ``best``: its signs with the smallest ``radius`` since its last start; ``tried``: those that
    are asked now, which differ in ``block`` of ``level``. ``low``, ``high``: the goal is missed
    and reached there, ``high`` being NaN until it was asked.
    """

    row: Tensor
    clean: Tensor
    streams: Tensor
    best: Tensor
    tried: Tensor
    radius: Tensor
    level: Tensor
    block: Tensor
    start: Tensor
    low: Tensor
    high: Tensor

    def rows(self, going: Tensor) -> _At:
        """Return some of the rows."""
        return _At(*(getattr(self, field.name)[going] for field in fields(self)))

    def points(self, radius: Tensor) -> Tensor:
        """Return the inputs at ``radius`` (rows,) along the signs that are tried."""
        return (self.clean + radius[:, None] * self.tried).clamp_(0, 1)


def _start(clean: Tensor, rows: Tensor, streams: Tensor) -> _At:
    zeros, signs = torch.zeros_like(rows), torch.ones_like(clean)
    far = clean.new_ones(len(rows))  # nothing lies further away in the box
    return _At(
        rows, clean, streams, best=signs, tried=signs, radius=far, level=zeros - 1, block=zeros,
        start=zeros, low=torch.zeros_like(far), high=torch.full_like(far, torch.nan),
    )  # fmt: skip


def _search(settings: RayS, view: View, at: _At, seed: int, found: BallResult) -> None:
    """Search for the rows of ``at``, and write what is found of them into ``found``."""
    for query in range(1, settings.queries + 1):
        asking = at.high.isnan()
        middle = (at.low + at.high) / 2
        if settings.norm == "linf":  # whether ε is enough comes first, and exactly
            open_ = ~((at.low >= settings.eps) | (at.high <= settings.eps))
            middle = middle.masked_fill(open_, settings.eps)
        radius = torch.where(asking, at.radius, middle)
        points = at.points(radius)
        reached = view.margin(view.logits(points), at.row) > 0
        done = reached & _within(points - at.clean, radius, settings)
        if bool(done.any()):
            rows = at.row[done]
            found.x_adv[rows], found.success[rows] = points[done], True
            found.iterations[rows] = query
            going = (~done).nonzero().squeeze(1)
            if not len(going):
                return
            at = at.rows(going)
            asking, reached, radius = asking[going], reached[going], radius[going]
        at = _told(settings, at, asking, reached, radius, seed)


def _within(offset: Tensor, radius: Tensor, settings: RayS) -> Tensor:
    assert settings.eps is not None
    return (radius if settings.norm == "linf" else offset.norm(dim=1)) <= settings.eps


def _told(
    settings: RayS, at: _At, asking: Tensor, reached: Tensor, radius: Tensor, seed: int
) -> _At:
    """Return where the search goes on, now that ``radius`` was asked."""
    high = torch.where(reached, radius, at.high)
    low = torch.where(asking | reached, at.low, radius)
    ended = high - low <= settings.tolerance  # never where high is NaN
    at = replace(
        at, low=low, high=high, best=torch.where(ended[:, None], at.tried, at.best),
        radius=torch.where(ended, high, at.radius),
    )  # fmt: skip
    moves = ended | (asking & ~reached)
    return _next(at, moves, seed) if bool(moves.any()) else at


def _next(at: _At, moves: Tensor, seed: int) -> _At:
    """Return the rows of ``moves`` with the next block of their signs flipped, others as are."""
    features = at.clean.shape[1]
    deepest = math.ceil(math.log2(features)) if features > 1 else 0
    size = _size(features, at.level)
    over = moves & ((at.block + 1) * size >= features)  # level −1: the signs as they are
    block = torch.where(moves, torch.where(over, 0, at.block + 1), at.block)
    level = at.level + over
    again = level > deepest
    best, radius, start = at.best.clone(), at.radius, at.start + again
    for row in again.nonzero().flatten().tolist():
        drawn = uniform(seed, int(start[row]), at.streams[row : row + 1], features)
        best[row] = (drawn[0] - 0.5).sign().to(best)
    radius = radius.masked_fill(again, 1)
    level, block = level.masked_fill(again, -1), block.masked_fill(again, 0)
    size = _size(features, level)[:, None]
    places = torch.arange(features, device=block.device)
    flipped = (places // size == block[:, None]) & (level >= 0)[:, None]
    tried = torch.where(moves[:, None], torch.where(flipped, -best, best), at.tried)
    return replace(
        at, best=best, radius=radius, start=start, tried=tried, level=level, block=block,
        low=at.low.masked_fill(moves, 0), high=at.high.masked_fill(moves, torch.nan),
    )  # fmt: skip


def _size(features: int, level: Tensor) -> Tensor:
    """Return how many features a block of each row's ``level`` holds: (rows,)."""
    parts = 2 ** level.clamp(min=0)
    return (features + parts - 1) // parts
