"""Square attack: random search with square-shaped changes, by scores alone, in batches.

Andriushchenko, Croce, Flammarion, Hein 2020, *Square Attack: a query-efficient black-box
adversarial attack via random search*, arXiv 1912.00049, algorithms 1 to 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.kit.ball import (
    BallNorm,
    check_counts,
    check_inputs,
    default_chunk,
    project,
)
from attacks.kit.ball_attack import BallAttack, BallResult
from attacks.kit.draws import row_streams, uniform
from attacks.kit.model import Model, chunks
from attacks.kit.view import View
from bench.base.types import Access
from bench.measure.at_rest import at_rest

HALVED = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)
"""After which queries of 10,000 the share of the places in a window is halved."""

BLOCK = 64
"""Queries whose random numbers are drawn at once: enough that the calls do not count."""

TINY = 1e-12


@dataclass(frozen=True)
class Square(BallAttack):
    """Square attack, a random search by scores: Andriushchenko et al. 2020, arXiv 1912.00049.

    ``eps``, ``norm``, ``targets``, ``chunk``: see ``attacks.kit.ball_attack.BallAttack``.
    ``queries``: inputs of a row that are tried, the start included; one or two more of the first
    row check the model. ``p_init``: the share of the places in the first windows, in (0, 1].
    """

    eps: float = 0.1
    queries: int = 5000
    p_init: float = 0.8

    unfinished: ClassVar[str] = "queries"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(queries=self.queries)
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be in (0, 1], got {self.p_init!r}")

    @property
    def access(self) -> Access:
        """Scores: no gradient is taken."""
        return "scores"

    def run(
        self, model: Model, x: Tensor, y: Tensor, target: Tensor | None, seed: int,
        streams: Tensor | None,
    ) -> BallResult:  # fmt: skip
        """Run the attack, as ``square`` does."""
        check_inputs(x, y, target, streams)
        with torch.no_grad(), at_rest(model):
            view, places = View(model, x, y, target), Places.of(x.shape[1:])
            search = _Search(view, places, self.eps, self.norm, self.queries, self.p_init, seed)
            x_adv, spent = view.clean.clone(), torch.zeros_like(view.y)
            success, streams = torch.zeros_like(view.y, dtype=torch.bool), row_streams(x, streams)
            every = torch.arange(len(x), device=x.device)
            for rows in chunks(every, self.chunk or default_chunk(x)):
                _run(search, rows, streams[rows], x_adv, success, spent)
        return BallResult(x_adv.view_as(x), success, spent)


def square(
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
    """Change x in one window after another, and keep what brings the goal nearer.

    Images (channels, height, width) have square windows. Inputs of every other shape are taken as
    one line of features, and a window is a run of neighbours in it. A window holds the share p of
    the places, which is halved as the queries go by, at the paper's points, rescaled.

    "linf": a row starts from stripes of width 1, each at a side of the ball; a query sets each
    channel of a window to a side of the ball, and never to where the window stands already.
    "l2": it starts from tiles; a query takes the change out of one window, and adds it, with what
    the ball has left, to another in the shape of two opposite hills.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored. No gradient is taken.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the labels to leave.
        target: (batch,) integers, the classes to reach instead.
        eps: radius in input units, in (0, 1] for "linf", positive for "l2".
        seed: of the search; any integer.
        streams: (batch,) integers, which random stream each row has, by default its position. With
            one stream a row has the same search in every batch.
        parameters: the other fields of `Square`: norm, queries, p_init, chunk.

    A row stops at the first point where the goal holds; where nothing succeeded, the visited point
    that misses it by the least margin is returned. What is minimised is the margin of the logits,
    z_y - max z_j or max z_j - z_target; logits that are NaN are no improvement. `iterations` of the
    result: inputs of a row that the search gave to the model.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    settings = Square(eps=eps, targets="untargeted" if target is None else "all", **parameters)
    return settings.run(model, x, y, target, seed, streams)


def share(query: int, queries: int, p_init: float) -> float:
    """Return p, the share of the places in the window of the `query`-th of `queries`."""
    scaled = int(query / queries * 10_000)
    return math.ldexp(p_init, -sum(scaled > bound for bound in HALVED))


@dataclass(frozen=True)
class Places:
    """Where features lie: channels of a grid, a line being a grid of height 1."""

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Places:
        """Take (channels, height, width) for an image, and any other shape for a line."""
        if len(shape) == 3:
            return cls(*shape)
        return cls(1, 1, math.prod(shape))

    def window(self, p: float, norm: BallNorm) -> tuple[int, int]:
        """Return height and width of a window of the share ``p`` of the places.

        Under l2 it is odd and at least 3, so that it has hills.
        """
        line = self.height == 1
        side = round(p * self.width if line else math.sqrt(p * self.height * self.width))
        side = max(side, 1) if norm == "linf" else max(side, 3) | 1
        if line:
            return 1, min(side, self.width)
        side = min(side, self.height, self.width)
        return side, side

    def inside(self, size: tuple[int, int], numbers: Tensor) -> Tensor:
        """Return the places (rows, h w) of windows at random: ``numbers`` (rows, 2) in (0, 1)."""
        h, w = size
        top = (numbers[:, 0] * (self.height - h + 1)).long()
        left = (numbers[:, 1] * (self.width - w + 1)).long()
        places = self.width * torch.arange(h, device=top.device)[:, None]
        places = (places + torch.arange(w, device=top.device)).flatten()
        return (self.width * top + left)[:, None] + places

    def tiles(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hills of five tiles a side (places,), and which tile a place is in."""
        h, w = max(self.height // 5, 1), max(self.width // 5, 1)
        rows = torch.arange(self.height, device=like.device)[:, None]
        columns = torch.arange(self.width, device=like.device)
        tile = (rows // h) * -(-self.width // w) + columns // w
        return hills((h, w), like)[rows % h, columns % w].flatten(), tile.flatten()


def hills(size: tuple[int, int], like: Tensor) -> Tensor:
    """Return two hills of opposite sign side by side (h, w), of length 1: the paper's eta."""
    h, w = size
    if h == 1 and w > 1:
        return hills((w, h), like).T
    first = h // 2
    both = torch.cat((_hill(first, w, like), -_hill(h - first, w, like)))
    length: Tensor = torch.linalg.vector_norm(both)
    return both / length


def _hill(h: int, w: int, like: Tensor) -> Tensor:
    """Return a pyramid (h, w): in the k-th ring around the middle, the sum of 1 / i^2 from k on."""
    rows = (torch.arange(h, device=like.device) - h // 2).abs()[:, None]
    columns = (torch.arange(w, device=like.device) - w // 2).abs()
    rings = torch.arange(1, max(h, w) // 2 + 2, device=like.device, dtype=like.dtype)
    heights = (1 / rings.square()).flip(0).cumsum(0).flip(0)
    return heights[torch.maximum(rows, columns)]


@dataclass(frozen=True)
class _Search:
    """What all rows share; points are (rows, channels, places)."""

    view: View
    places: Places
    eps: float
    norm: BallNorm
    queries: int
    p_init: float
    seed: int

    @property
    def width(self) -> int:
        """How many random numbers a query takes: two windows, how they lie, and signs."""
        return 5 + self.places.channels

    def grid(self, points: Tensor) -> Tensor:
        """Return flat points as (rows, channels, places)."""
        return points.view(len(points), self.places.channels, -1)

    def start(self, clean: Tensor, streams: Tensor) -> Tensor:
        """Return stripes (linf) or tiles (l2) of random signs, at the edge of the ball."""
        grid, places = self.grid(clean), self.places
        if self.norm == "linf":
            hill = clean.new_ones(grid.shape[2])
            tile = torch.arange(grid.shape[2], device=clean.device) % places.width
        else:
            hill, tile = places.tiles(clean)
        count = int(tile.max()) + 1
        signs = uniform(self.seed, 0, streams, places.channels * count) - 0.5
        signs = signs.sign().to(clean).view(len(clean), places.channels, count)
        offset = (hill * signs[:, :, tile]).flatten(1)
        if self.norm == "l2":  # from outside: what the box takes here is spent there
            offset = 8 * offset / offset.norm(dim=1, keepdim=True)
        return project(clean + self.eps * offset, clean, self.eps, self.norm)

    def propose(self, points: Tensor, clean: Tensor, query: int, numbers: Tensor) -> Tensor:
        """Return the next input of each row, (rows, features)."""
        size = self.places.window(share(query, self.queries, self.p_init), self.norm)
        signs = (numbers[:, 5:, None] - 0.5).sign().to(clean)
        at = self._spread(self.places.inside(size, numbers[:, :2]))
        if self.norm == "linf":
            return self._sides(self.grid(points), self.grid(clean), at, signs)
        other = self._spread(self.places.inside(size, numbers[:, 2:4]))
        shape = hills(size, clean)
        lain = shape.T if size[0] == size[1] else shape
        shape = torch.where(numbers[:, 4, None] < 0.5, shape.flatten(), lain.flatten())
        delta = self.grid(points - clean)
        offset = self._moved(delta, at, other, signs * shape[:, None])
        return project(clean + offset.flatten(1), clean, self.eps, self.norm)

    def _sides(self, points: Tensor, clean: Tensor, at: Tensor, signs: Tensor) -> Tensor:
        own, stands = clean.gather(2, at), points.gather(2, at)
        tried = (own + self.eps * signs).clamp_(0, 1)
        idle = (tried == stands).flatten(1).all(1)[:, None, None]
        tried = torch.where(idle, (own - self.eps * signs).clamp_(0, 1), tried)
        return points.scatter(2, at, tried).flatten(1)

    def _moved(self, delta: Tensor, at: Tensor, other: Tensor, shape: Tensor) -> Tensor:
        kept = delta.scatter(2, at, 0).scatter(2, other, 0)
        before = delta.square().sum(2, keepdim=True)
        freed = before - kept.square().sum(2, keepdim=True)
        left = (self.eps**2 - before.sum(1, keepdim=True)).clamp_(min=0) / self.places.channels
        stands = delta.gather(2, at)
        shape = shape + stands / stands.norm(dim=2, keepdim=True).clamp_(min=TINY)
        shape = shape / shape.norm(dim=2, keepdim=True).clamp_(min=TINY)
        return kept.scatter(2, at, shape * (freed + left).clamp_(min=0).sqrt())

    def _spread(self, places: Tensor) -> Tensor:
        return places[:, None, :].expand(-1, self.places.channels, -1)


@dataclass
class _At:
    """The best point so far of each row that goes on; ``row``: which of the batch it is."""

    row: Tensor
    clean: Tensor
    point: Tensor
    margin: Tensor
    streams: Tensor
    numbers: Tensor

    def rows(self, going: Tensor) -> _At:
        """Return some of the rows."""
        return _At(*(getattr(self, field.name)[going] for field in fields(self)))


def _run(
    search: _Search,
    rows: Tensor,
    streams: Tensor,
    x_adv: Tensor,
    success: Tensor,
    spent: Tensor,
) -> None:
    """Search for ``rows`` of the batch, and write what is found of them into the last three."""
    view, clean = search.view, search.view.clean[rows]
    point = search.start(clean, streams)
    margin = view.margin(view.logits(point), rows)
    margin = torch.where(margin.isnan(), -torch.inf, margin)
    at = _At(rows, clean, point, margin, streams, clean.new_empty(len(rows), 0))
    spent[rows] = search.queries
    for query in range(1, search.queries + 1):
        going = (~(at.margin > 0)).nonzero().squeeze(1)
        if len(going) < len(at.row):
            done = at.rows((at.margin > 0).nonzero().squeeze(1))
            x_adv[done.row], success[done.row], spent[done.row] = done.point, True, query
            at = at.rows(going)
        if query == search.queries or not len(at.row):
            break
        block, step = divmod(query - 1, BLOCK)
        if step == 0:  # draw 0 is the start
            drawn = uniform(search.seed, block + 1, at.streams, BLOCK * search.width)
            at.numbers = drawn.view(-1, BLOCK, search.width)
        tried = search.propose(at.point, at.clean, query, at.numbers[:, step])
        margin = view.margin(view.logits(tried), at.row)
        better = margin > at.margin  # never where it is NaN
        at.point = torch.where(better[:, None], tried, at.point)
        at.margin = torch.where(better, margin, at.margin)
    x_adv[at.row] = at.point
