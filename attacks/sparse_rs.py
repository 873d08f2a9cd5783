"""Sparse-RS, its L0 version: random search for few features that leave a class.

Croce, Andriushchenko, Singh, Flammarion, Hein 2022, "Sparse-RS: a versatile framework for
query-efficient sparse black-box adversarial attacks", arXiv 2006.12834, algorithm 1 with the L0
sampling distribution. It sees scores only: no gradient is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
"""Random numbers drawn at once for each search, at most: enough that calls do not count."""

APART = 1 << 40
"""Between the random streams of a row's searches: more than there are samples and targets."""


@dataclass(frozen=True)
class SparseRSResult:
    """One entry for each row of x, all on the device of x.

    `x_adv`: the shape and dtype of x; where nothing succeeded, the input of least loss.
    `success`: bool, the goal holds with a strict margin. `features_changed`: int64, features (or
    pixels) of x_adv that differ from x. `queries`: int64, inputs of this row that its searches
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
    ``queries``: inputs of a row that each search tries, the start included. Two more of the first
    row check the model.
    ``restarts``: how many searches a row gets, from starts of their own, side by side; the first to
    reach the goal ends them all.
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
    restarts: int = 1
    alpha_init: float = 0.3
    pixels: bool = False
    targets: Targets = "untargeted"
    chunk: int | None = None

    def __post_init__(self) -> None:
        L0Budget.of(self)
        check_counts(queries=self.queries, restarts=self.restarts, chunk=self.chunk)
        if not 0 < self.alpha_init < float("inf"):
            raise ValueError(f"alpha_init must be positive and finite, got {self.alpha_init!r}")

    @property
    def access(self) -> Access:
        """Scores: no gradient is taken."""
        return "scores"

    @property
    def rowwise(self) -> bool:
        """Each row has its own steps and its own random stream."""
        return True

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
            queries, restarts, alpha_init, pixels, chunk.

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
        task = _Task(model, layout, x.shape[1:], targeted=target is not None)
        search = _Search(settings.queries, settings.restarts, settings.alpha_init, k, seed)
        size = max(1, (settings.chunk or default_chunk(x)) // settings.restarts)
        for rows in chunks(torch.arange(batch, device=x.device), size):
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
    restarts: int
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
        if self.targeted:
            loss = logits.logsumexp(dim=1) - logits.gather(1, goal[:, None]).squeeze(1)
            return loss.nan_to_num(nan=torch.inf), margin > 0
        if math.isfinite(float(logits.sum())):  # every answer is one
            return margin, margin < 0
        lost = unanswered(logits, goal, None)
        loss = margin.nan_to_num(nan=torch.inf, posinf=torch.inf)
        return loss.masked_fill(lost, -torch.inf), lost | (margin < 0)


@dataclass
class _State:
    """The best point of each search that goes on: those of a row stand one behind the other.

    `row`: (rows,), which rows of the chunk they are. Of each search: `clean` and `x` (searches,
    channels, features), `goal`, `loss`, and its features, `chosen` (searches, k) and the `others`.
    """

    row: Tensor
    goal: Tensor
    clean: Tensor
    x: Tensor
    loss: Tensor
    chosen: Tensor
    others: Tensor

    def only(self, going: Tensor, searches: Tensor) -> None:
        """Forget the rows that are done; `searches`: the same for each of their searches."""
        self.row = self.row[going]
        for name in ("goal", "clean", "x", "loss", "chosen", "others"):
            setattr(self, name, getattr(self, name)[searches])

    def best(self, reached: Tensor) -> tuple[Tensor, Tensor]:
        """Return which search of each row is at its goal, or has the least loss, and its loss."""
        rank = self.loss.masked_fill(reached, -torch.inf).view(len(self.row), -1)
        first = torch.arange(len(self.row), device=rank.device) * rank.shape[1]
        search = first + rank.argmin(dim=1)
        return self.x[search], self.loss[search]


def _attack(
    task: _Task, search: _Search, clean: Tensor, goal: Tensor, streams: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_adv (rows, channels, features), success and the queries spent, of one chunk."""
    (rows, channels, features), restarts = clean.shape, search.restarts
    spent = torch.full_like(goal, search.queries * restarts)
    success, x_adv = torch.zeros_like(goal, dtype=torch.bool), clean.clone()
    row = torch.arange(rows, device=clean.device)
    goal, clean = goal.repeat_interleave(restarts), clean.repeat_interleave(restarts, 0)
    numbers = APART * torch.arange(restarts, device=clean.device)
    streams = (streams[:, None] + numbers).flatten()
    start = uniform(search.seed, 0, streams, features + channels * search.features)
    chosen, others = start[:, :features].argsort(1).tensor_split([search.features], dim=1)
    x = _put(clean, chosen, _corners(start[:, features:], clean))
    loss, reached = task.judge(x, goal)
    state = _State(row, goal, clean, x, loss, chosen.clone(), others.clone())
    moves = _Moves(search, streams, clean)
    for query in range(1, search.queries + 1):
        if bool(reached.any()):
            done = reached.view(-1, restarts).any(dim=1)
            best, loss = state.best(reached)
            at = state.row[done]
            x_adv[at], spent[at] = best[done], query * restarts
            success[at] = loss[done] > -torch.inf
            searches = ~done.repeat_interleave(restarts)
            state.only(~done, searches)
            moves.only(searches)
            reached = reached[searches]
        if query == search.queries or not len(state.row):
            break
        reached = _exchange(task, state, moves.of(query))
    if len(state.row):
        x_adv[state.row] = state.best(reached)[0]
    return x_adv, success, spent


@dataclass(frozen=True)
class _Move:
    """What the next query of each search exchanges, or with `steps` that of several.

    `leave`: (searches, count) places among the chosen features, `enter`: among the others;
    `corners`: (searches, channels, count), what enters has them. `turn`: (searches, channels, 1),
    which of them turn where the feature has them already, or None where they may stay.
    """

    leave: Tensor
    enter: Tensor
    corners: Tensor
    turn: Tensor | None


def _exchange(task: _Task, state: _State, move: _Move) -> Tensor:
    """Try another set of features in each search; return which are done."""
    chosen, others = state.chosen, state.others
    if not others.shape[1]:  # all are chosen: the ones that leave come back at new corners
        others = chosen
    leave, enter = chosen.gather(1, move.leave), others.gather(1, move.enter)
    tried = _put(state.x, leave, state.clean.gather(2, _spread(leave, state.x)))
    corners = move.corners
    if move.turn is not None:
        same = (corners == state.x.gather(2, _spread(enter, state.x))).all(dim=1, keepdim=True)
        corners = torch.where(same & move.turn, 1 - corners, corners)
    tried = _put(tried, enter, corners)
    loss, reached = task.judge(tried, state.goal)
    better = (loss < state.loss) | reached
    kept = better[:, None]
    chosen.scatter_(1, move.leave, torch.where(kept, enter, leave))
    if others is not chosen:
        others.scatter_(1, move.enter, torch.where(kept, leave, enter))
    state.x = torch.where(kept[:, None], tried, state.x)
    state.loss = torch.where(better, loss, state.loss)
    return reached


class _Moves:
    """The exchanges of each search, drawn for many queries at once: no answer has a say in them."""

    def __init__(self, search: _Search, streams: Tensor, clean: Tensor) -> None:
        self.search, self.streams, self.dtype = search, streams, clean.dtype
        self.channels, self.free = clean.shape[1], clean.shape[2] - search.features
        self.block, self.first, self.end = 0, 0, 0
        self.drawn: tuple[Tensor, ...] = ()

    def only(self, searches: Tensor) -> None:
        """Forget the searches that are done."""
        self.streams = self.streams[searches]
        self.drawn = tuple(tensor[searches] for tensor in self.drawn)

    def of(self, query: int) -> _Move:
        """Return the exchanges of the `query`-th query."""
        if query >= self.end:
            self._draw(query)
        leave, enter, corners, *turn = (one[:, query - self.first] for one in self.drawn)
        return _Move(leave, enter, corners, turn[0] if turn else None)

    def _draw(self, query: int) -> None:
        """Draw for the next queries, as many as exchange the same number of features."""
        count = self.search.exchanged(query, self.free)
        width = (2 + self.channels) * count
        most = min(query + max(1, BLOCK // width), self.search.queries)
        self.first, self.end = query, query + 1
        while self.end < most and self.search.exchanged(self.end, self.free) == count:
            self.end += 1
        steps, self.block = self.end - query, self.block + 1  # draw 0 is the start
        numbers = uniform(self.search.seed, self.block, self.streams, steps * width)
        numbers = numbers.view(-1, steps, 2 + self.channels, count)
        leave = _subset(numbers[:, :, 0], self.search.features)
        enter = _subset(numbers[:, :, 1], self.free) if self.free else leave
        corners = (numbers[:, :, 2:] < 0.5).to(self.dtype)
        self.drawn = (leave, enter, corners)
        if count == 1:
            # What a number holds below its first bit is as random, and says which channels to turn.
            ways = 2**self.channels - 1
            turned = 1 + ((2 * numbers[:, :, 2] % 1) * ways).long()
            channels = torch.arange(self.channels, device=turned.device)
            self.drawn += (((turned >> channels) & 1).bool()[..., None],)


def _subset(numbers: Tensor, size: int) -> Tensor:
    """Return random subsets of the first `size` integers, as large as `numbers` has columns.

    Floyd's way: Bentley and Floyd 1987, *A sample of brilliance*.
    """
    picks: list[Tensor] = []
    for last in range(size - numbers.shape[-1], size):
        pick = (numbers[..., len(picks)] * (last + 1)).long()
        for earlier in picks:
            pick = torch.where(pick == earlier, last, pick)
        picks.append(pick)
    return torch.stack(picks, dim=-1)


def _corners(numbers: Tensor, like: Tensor) -> Tensor:
    """Return a corner of the box, 0 or 1, for each number: (rows, channels, any)."""
    return (numbers < 0.5).to(like).view(len(like), like.shape[1], -1)


def _put(x: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """Return x (rows, channels, features) with `values` at some features of each row."""
    return x.scatter(2, _spread(features, x), values)


def _spread(features: Tensor, x: Tensor) -> Tensor:
    return features[:, None, :].expand(-1, x.shape[1], -1)
