"""Sparse-RS, its L0 version: random search for few features that leave a class.

Croce, Andriushchenko, Singh, Flammarion, Hein 2022, "Sparse-RS: a versatile framework for
query-efficient sparse black-box adversarial attacks", arXiv 2006.12834, algorithm 1 with the L0
sampling distribution. It sees scores only: no gradient is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.kit.ball import check_counts, check_inputs, default_chunk
from attacks.kit.draws import row_streams, sample_streams, uniform
from attacks.kit.l0_budget import L0Budget
from attacks.kit.losses import unanswered
from attacks.kit.model import Layout, Model, chunks, probe, widened
from bench.base.types import Access, Targets, ThreatModel
from bench.measure.at_rest import at_rest
from bench.measure.query import lead
from bench.plugins.contracts import Attack, AttackContext, Perturbation

SCHEDULE = (
    (0, 1),
    (50, 2),
    (200, 4),
    (500, 5),
    (1000, 6),
    (2000, 8),
    (4000, 10),
    (6000, 12),
    (8000, 15),
)
"""Up to which query of 10,000 the share of exchanged features is alpha_init over what."""

LAST_DIVISOR = 20

BLOCK = 1 << 10
"""Random numbers drawn at once for each row, at most: enough that calls do not count."""


@dataclass(frozen=True)
class SparseRSResult:
    """One entry for each row of x, all on the device of x.

    `x_adv`: the shape and dtype of x; where nothing succeeded, the input of least loss.
    `success`: bool, the goal holds with a strict margin. `features_changed`: int64, features (or
    pixels) of x_adv that differ from x. `queries`: int64, inputs of this row that the search
    gave to the model.
    """

    x_adv: Tensor
    success: Tensor
    features_changed: Tensor
    queries: Tensor


@dataclass(frozen=True)
class SparseRs(Attack):
    """Sparse-RS within an L0 ball, by random search on scores: Croce et al. 2022, arXiv 2006.12834.

    ``gamma``: largest fraction of features, in (0, 1]: k = floor(gamma d + 1e-9).
    ``max_features``: k itself, instead: all features, if it exceeds their number. Without either,
    ``gamma`` is 0.145, as for ``jsma``.
    ``queries``: inputs of a row that are tried, the start included. Two more of the first row check
    the model.
    ``alpha_init``: alpha of the first exchanges, positive. The paper's L0 experiments take 0.3
    untargeted and 0.1 targeted.
    ``pixels``: x is (batch, C, H, W); pixels are chosen and counted, and each channel of one takes
    its own corner.
    ``targets``: ``untargeted``, ``all``, ``random``, ``runner-up``.
    ``chunk``: rows at once, by default 256 on a CPU and 2048 elsewhere.
    """

    gamma: float | None = None
    max_features: int | None = None
    queries: int = 10_000
    alpha_init: float = 0.3
    pixels: bool = False
    targets: Targets = "untargeted"
    chunk: int | None = None

    def __post_init__(self) -> None:
        L0Budget.of(self)
        check_counts(queries=self.queries, chunk=self.chunk)
        if not 0 < self.alpha_init < float("inf"):
            raise ValueError(f"alpha_init must be positive and finite, got {self.alpha_init!r}")

    @property
    def access(self) -> Access:
        """Scores: no gradient is taken."""
        return "scores"

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """L0, in features or pixels; ``max_features`` as a fraction of them."""
        return L0Budget.of(self).threat(shape)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Run the attack on all rows; each source and target has a random stream of its own."""
        streams = sample_streams(context.sample_ids, target, context.info.classes)
        result = _search(self, model, x, y, target, context.seed, streams)
        reasons = ["reached" if done else "queries" for done in result.success.tolist()]
        return Perturbation(result.x_adv, result.queries, reasons)


def sparse_rs(
    model: Model,
    x: Tensor,
    y: Tensor,
    target: Tensor | None = None,
    *,
    seed: int = 0,
    streams: Tensor | None = None,
    **parameters: Any,
) -> SparseRSResult:
    """Change k features of each row of x, to corners of the box, until the goal is reached.

    A row starts from k random features at random corners. Each query exchanges max(1, floor(
    alpha k)) of them, alpha falling with the queries made, for as many others at new random
    corners, and keeps the exchange if the loss falls: the margin z_y - max z_j (untargeted), or
    the cross-entropy of the target. Where more than one is exchanged, a corner may
    be the feature's own value, so that fewer than k features differ; where only one is, it is
    not, as in the authors' code.

    Args:
        model: maps (rows, *shape) to logits (rows, classes). An `nn.Module` runs in eval mode
            with frozen weights; both are restored.
        x: (batch, *shape), floating-point, in [0, 1].
        y: (batch,) integers, the class to leave; not looked at where there is a target.
        target: (batch,) integers, the class to reach, or None.
        seed: of the random search.
        streams: (batch,) integers: which random stream each row has, by default its position.
            With one stream a row has the same search in every batch, up to floating-point
            rounding of the model.
        parameters: the fields of `SparseRs`: gamma or max_features (one of the two must be given),
            queries, alpha_init, pixels, chunk.

    A row stops when the margin is strictly on the goal's side. Untargeted it also stops, without
    success, at logits that are NaN or infinite; towards a target they are no improvement.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model's output has the wrong shape.

    """
    L0Budget(parameters.get("gamma"), parameters.get("max_features"))  # no default here
    return _search(SparseRs(**parameters), model, x, y, target, seed, streams)


def _search(
    settings: SparseRs,
    model: Model,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    seed: int,
    streams: Tensor | None,
) -> SparseRSResult:
    goal = y if target is None else target
    check_inputs(x, y if target is None else None, target, streams)
    allowed = L0Budget.of(settings).steps(x.shape[1:])
    batch, channels = len(x), x.shape[1] if settings.pixels else 1
    streams = row_streams(x, streams)
    goal = goal.detach().to(device=x.device, dtype=torch.int64)
    if not batch:
        return SparseRSResult(x.detach().clone(), goal.bool(), goal, goal.clone())
    clean = x.detach().reshape(batch, channels, -1).clone()
    k = min(allowed, clean.shape[2])
    found = [clean[:0], goal[:0].bool(), goal[:0]]
    with torch.no_grad(), at_rest(model):
        layout = probe(model, x.detach(), goal)
        size = settings.chunk or default_chunk(x)
        for rows in chunks(torch.arange(batch, device=x.device), size):
            task = _Task(model, layout, x.shape[1:], targeted=target is not None)
            search = _Search(settings.queries, settings.alpha_init, k, seed)
            done = _attack(task, search, clean[rows], goal[rows], streams[rows])
            found = [torch.cat(pair) for pair in zip(found, done, strict=True)]
    x_adv, success, spent = found
    changed = (x_adv != clean).any(dim=1).sum(dim=1)
    return SparseRSResult(x_adv.view_as(x), success, changed, spent)


def share(query: int, queries: int, alpha_init: float) -> float:
    """Return alpha of the `query`-th exchange of `queries`: the paper's schedule, rescaled."""
    scaled = int(query / queries * 10_000)
    divisor = next((by for bound, by in SCHEDULE if scaled <= bound), LAST_DIVISOR)
    return alpha_init / divisor


@dataclass(frozen=True)
class _Search:
    """The settings of a search: `features` is k."""

    queries: int
    alpha_init: float
    features: int
    seed: int

    def exchanged(self, query: int, free: int) -> int:
        """Return how many features a query exchanges, with `free` ones to choose from."""
        wanted = max(1, int(share(query, self.queries, self.alpha_init) * self.features))
        return min(wanted, self.features, free or self.features)


@dataclass(frozen=True)
class _Task:
    """The model and its goal."""

    model: Model
    layout: Layout
    shape: torch.Size
    targeted: bool

    def judge(self, x: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (rows,), infinite where it is NaN, and whether the row is done.

        Untargeted, it is also done without an answer, which has a loss of minus infinity.
        """
        logits = widened(self.model(self.layout(x.reshape(len(x), *self.shape))))
        margin = lead(logits, goal)
        if not self.targeted:
            lost = unanswered(logits, goal, None)
            loss = margin.nan_to_num(nan=torch.inf, posinf=torch.inf)
            return loss.masked_fill(lost, -torch.inf), lost | (margin < 0)
        loss = logits.logsumexp(dim=1) - logits.gather(1, goal[:, None]).squeeze(1)
        return loss.nan_to_num(nan=torch.inf), margin > 0


@dataclass(frozen=True)
class _State:
    """The best point of each row that goes on.

    `row`: which row of the chunk it is. `x`: (rows, channels, features). `order`: (rows,
    features), a permutation whose first k entries are the chosen features.
    """

    row: Tensor
    x: Tensor
    loss: Tensor
    order: Tensor

    def at(self, rows: Tensor) -> _State:
        """Return some of the rows."""
        return _State(self.row[rows], self.x[rows], self.loss[rows], self.order[rows])


def _attack(
    task: _Task, search: _Search, clean: Tensor, goal: Tensor, streams: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_adv (rows, channels, features), success and the queries spent, of one chunk."""
    rows, channels, features = clean.shape
    k, widest = search.features, search.exchanged(1, features - search.features)
    spent = torch.full_like(goal, search.queries)
    success = torch.zeros_like(goal, dtype=torch.bool)
    start = uniform(search.seed, 0, streams, k + channels * k)
    order = torch.arange(features, device=clean.device).repeat(rows, 1)
    _draw_first(order, start[:, :k])
    x_adv = _put(clean, order[:, :k], _corners(start[:, k:], clean))
    loss, reached = task.judge(x_adv, goal)
    state = _State(torch.arange(rows, device=clean.device), x_adv.clone(), loss, order)
    draws = _Draws(search.seed, streams, (2 + channels) * widest)
    for query in range(1, search.queries + 1):
        if bool(reached.any()):
            done, going = state.at(reached), ~reached
            x_adv[done.row] = done.x
            spent[done.row], success[done.row] = query, done.loss > -torch.inf
            state = state.at(going)
            draws.keep(going)
        if query == search.queries or not len(state.row):
            break
        count = search.exchanged(query, features - k)
        state, reached = _exchange(task, state, clean, goal, draws.next(), (k, count, widest))
    x_adv[state.row] = state.x
    return x_adv, success, spent


def _exchange(
    task: _Task,
    state: _State,
    clean: Tensor,
    goal: Tensor,
    numbers: Tensor,
    sizes: tuple[int, int, int],
) -> tuple[_State, Tensor]:
    """Try another set of features for each row; return what is kept, and which are done."""
    k, count, widest = sizes
    chosen, others = state.order[:, :k], state.order[:, k:]
    if not others.shape[1]:  # all are chosen: the ones that leave come back at new corners
        others = chosen
    _draw_first(chosen, numbers[:, :count])
    _draw_first(others, numbers[:, widest : widest + count])
    leave, enter = chosen[:, :count].clone(), others[:, :count].clone()
    own = clean[state.row]
    tried = _put(state.x, leave, own.gather(2, _spread(leave, own)))
    corners = _corners(numbers[:, 2 * widest :], own)[:, :, :count]
    if count == 1:
        corners = _other(corners, state.x.gather(2, _spread(enter, own)), numbers[:, 2 * widest])
    tried = _put(tried, enter, corners)
    loss, reached = task.judge(tried, goal[state.row])
    better = (loss < state.loss) | reached
    chosen[:, :count] = torch.where(better[:, None], enter, leave)
    others[:, :count] = torch.where(better[:, None], leave, enter)
    kept = replace(
        state,
        x=torch.where(better[:, None, None], tried, state.x),
        loss=torch.where(better, loss, state.loss),
    )
    return kept, reached


def _draw_first(order: Tensor, numbers: Tensor) -> None:
    """Bring random entries of each row to its front: Fisher and Yates, as many as `numbers`."""
    size = order.shape[1]
    for place in range(numbers.shape[1]):
        pick = place + (numbers[:, place, None] * (size - place)).long()
        picked, first = order.gather(1, pick), order[:, place, None].clone()
        order.scatter_(1, pick, first)
        order[:, place, None] = picked


def _corners(numbers: Tensor, like: Tensor) -> Tensor:
    """Return a corner of the box, 0 or 1, for each number: (rows, channels, any)."""
    return (numbers < 0.5).to(like).view(len(like), like.shape[1], -1)


def _other(corners: Tensor, current: Tensor, numbers: Tensor) -> Tensor:
    """Return the corners (rows, channels, 1), and random other ones where they are the `current`.

    `numbers`: (rows,), those that made the first channel's corners; what they hold below their
    first bit is as random, and says which channels to turn.
    """
    channels = torch.arange(corners.shape[1], device=corners.device)
    turned = 1 + ((2 * numbers % 1) * (2 ** len(channels) - 1)).long()
    turn = ((turned[:, None] >> channels) & 1).bool()[:, :, None]
    same = (corners == current).all(dim=1, keepdim=True)
    return torch.where(same & turn, 1 - corners, corners)


def _put(x: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """Return x (rows, channels, features) with `values` at some features of each row."""
    return x.scatter(2, _spread(features, x), values)


def _spread(features: Tensor, x: Tensor) -> Tensor:
    return features[:, None, :].expand(-1, x.shape[1], -1)


class _Draws:
    """The random numbers of each query, drawn for many queries at once."""

    def __init__(self, seed: int, streams: Tensor, width: int) -> None:
        self.seed, self.streams, self.width = seed, streams, width
        self.steps = max(1, BLOCK // width)
        self.drawn = 0
        self.block = streams.new_empty((len(streams), 0))

    def keep(self, going: Tensor) -> None:
        """Forget the rows that are done."""
        self.streams, self.block = self.streams[going], self.block[going]

    def next(self) -> Tensor:
        """Return (rows, width) numbers in (0, 1)."""
        block, step = divmod(self.drawn, self.steps)
        if step == 0:  # draw 0 is the start
            numbers = uniform(self.seed, block + 1, self.streams, self.steps * self.width)
            self.block = numbers.view(-1, self.steps, self.width)
        self.drawn += 1
        return self.block[:, step]
