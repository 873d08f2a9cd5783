"""Does the gradient belong to the answers? Difference quotients of the answers against autograd.

An attack that follows a gradient learns nothing about a model whose gradient is another's: a
straight-through estimate, a detached part, a ripple finer than the attack's steps (Athalye,
Carlini, Wagner 2018, arXiv 1802.00420: shattered gradients). So the answers themselves are asked:
from ``clip(x - h v)`` to ``clip(x + h v)`` along random signs v, an honest model moves by what its
gradient promises.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.base.types import rows_at_once

FINEST = 1e-6
"""The step that is taken in float64: what agrees there alone is a gradient that reaches nowhere."""

SHARES = (0.05, 0.15, 0.5, 1.0)
"""The other steps, as shares of the budget that an attack may spend on each feature."""

LEAST = (0.7, 0.6, 0.35, 0.0)
"""The median of ``explained`` below which a model's rows disagree at each of ``SHARES``.

Networks that were trained adversarially are folded more finely than others: TRADES goes down to
0.77, 0.69, 0.38 and 0.09 at a scale of 0.2."""

ROW_LEAST = (0.8, 0.6)
"""The same for a single row, at the smaller steps: kinks spoil single rows at the larger ones."""

ROWS = 0.15
"""The share of rows that may disagree, or have a broken gradient (TRADES: 0.12 at a source)."""

DIRECTIONS = 16
"""Random directions a step, beside the sign of the gradient itself."""

CHUNK = 256
"""Rows a query: fixed, so that every measurement sums in the same order."""

ROUNDING = 10.0
"""How many roundings of a logit a change must exceed to say anything."""

ITERATIONS = 5
"""Steps of the short attack whose last points are base points too."""

TINY = 1e-300


@dataclass(frozen=True)
class Agreement:
    """How the answers move against what the gradient promises, one row a base point.

    ``steps``: the sizes h, (s,). Of each row and step, (n, s) float64 on the CPU: ``cosine``
    between the changes along all directions and the promised ones, and ``explained``, one minus
    the squared error of the promise over the squared change or promise, whichever is larger (1
    where both are equal, about 0 where one is negligible, down to -3). Both are the smaller of two
    outputs': the label's log-odds and one random combination of the logits. ``gain``: the change of
    the log-odds along the sign of their own gradient, divided by the promised one. NaN where a
    step says nothing: no finite answer, or neither change nor promise above rounding.
    ``broken``: (n,) bool, rows whose gradient is not finite or cannot be had; its missing entries
    count as zero, as they do for an attack. ``forwards``: rows asked a base point. ``reason``: why
    float64 was not measured, or None.
    """

    steps: tuple[float, ...]
    cosine: Tensor
    explained: Tensor
    gain: Tensor
    broken: Tensor
    forwards: int
    reason: str | None = None


@dataclass(frozen=True)
class Finding:
    """What an agreement comes to.

    ``kind``: ``agrees``; ``foreign``, the gradient is not that of the answers at any scale;
    ``shattered``, it is at ``FINEST`` but not at the scale of the budget; ``partial``, on some rows
    only; ``broken``, it is missing or not finite on some rows; ``unknown``, too few rows said
    anything at the scale of the budget. ``step``: where it shows, and ``value``: the median of
    ``explained`` there, or for ``partial`` and ``broken`` the share of rows; None and NaN if none.
    """

    kind: Literal["agrees", "foreign", "shattered", "partial", "broken", "unknown"]
    step: float | None = None
    value: float = math.nan


def finding(found: Agreement, *, single: bool = True) -> Finding:
    """Hold an agreement at ``SHARES`` of a budget against the thresholds of this module.

    A step counts where at least half of the rows say something: at the finest ones, half
    precision does not. ``single``: whether single rows are looked at too, which say nothing where
    an attack has led them: at the bottom of what it went down, kinks are all that there is.
    """
    working = found.explained[:, -len(SHARES) :]
    told = [
        (step, values[~values.isnan()], index)
        for index, (step, values) in enumerate(
            zip(found.steps[-len(SHARES) :], working.T, strict=True)
        )
        if 2 * int((~values.isnan()).sum()) >= len(values)
    ]
    if not told:
        return Finding("unknown")
    for step, values, index in told:
        middle = float(values.median())
        if middle < LEAST[index]:
            exact = math.nan if found.reason else float(found.explained[:, 0].nanmedian())
            return Finding("shattered" if exact >= LEAST[0] else "foreign", step, middle)
    broken = float(found.broken.double().mean())
    if broken > ROWS:
        return Finding("broken", None, broken)
    for step, values, index in told:
        if not single or index >= len(ROW_LEAST):
            break
        share = float((values < ROW_LEAST[index]).double().mean())
        if share > ROWS:
            return Finding("partial", step, share)
    return Finding("agrees")


def agreement(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: Sequence[float],
    *,
    directions: int = DIRECTIONS,
    seed: int = 0,
) -> Agreement:
    """Hold the gradient of ``model`` at the base points ``x`` (n, *shape) against its answers.

    ``model``: in eval mode, takes inputs in [0, 1], returns logits (n, classes); ``y``: (n,)
    labels; ``steps``: of each feature, positive (``SHARES`` of a budget). ``FINEST`` is put before
    them where a copy of the model can be computed in float64. Symmetric where the box allows it,
    one-sided at its border. All rows meet the same directions, and a query holds one point of each
    row, as an attack's would, in an order of its own: no row's result depends on another row.
    Costs 2 · (``directions`` + 1) forward passes a step, and one forward and two backward passes a
    precision. Raises ValueError without base points, and what the model raises when it is asked
    for answers as it is deployed.
    """
    if not len(x):
        raise ValueError("there are no base points")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (directions, *x.shape[1:]), generator=generator) * 2 - 1
    probe = _Probe(y, signs, seed)
    parts, reason = [], None
    try:
        parts.append(probe.measure(copy.deepcopy(model).double(), x.double(), [FINEST]))
    except torch.OutOfMemoryError:
        raise  # the device's, not the model's: it is asked again with fewer rows
    except Exception as error:  # noqa: BLE001 (a model may hold constants of one dtype)
        reason = f"{type(error).__name__}: {error}"
    parts.append(probe.measure(model, x, steps))
    return Agreement(
        steps=tuple(step for part in parts for step in part.steps),
        cosine=torch.cat([part.cosine for part in parts], dim=1),
        explained=torch.cat([part.explained for part in parts], dim=1),
        gain=torch.cat([part.gain for part in parts], dim=1),
        broken=parts[-1].broken,
        forwards=sum(part.forwards for part in parts),
        reason=reason,
    )


def base_points(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, seed: int = 0
) -> dict[str, Tensor]:
    """Return where an attack on ``x`` (n, *shape) asks for gradients, (n, *shape) each.

    ``sources``: x itself; ``noise``: uniform within ``eps`` of it in L∞; ``iterates``: from there,
    five steps of eps / 2 down the sign of the gradient of the label's log-odds. A model may be
    honest at the data alone.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    start = low + (high - low) * torch.rand(x.shape, generator=generator).to(x)
    moved = start
    for _ in range(ITERATIONS):
        _, gradients, _ = _gradients(model, moved, y, seed)
        moved = moved - eps / 2 * gradients[0].sign().to(x).view_as(x)
        moved = torch.minimum(torch.maximum(moved, low), high)
    return {"sources": x, "noise": start, "iterates": moved}


@dataclass(frozen=True)
class _Probe:
    """The labels (n,) of the base points, and the directions (directions, *shape) to leave in."""

    y: Tensor
    signs: Tensor
    seed: int

    def measure(self, model: nn.Module, x: Tensor, steps: Sequence[float]) -> Agreement:
        x = x.detach()
        logits, gradients, broken = _gradients(model, x, self.y, self.seed)
        size = logits.abs().nan_to_num(0, 0, 0).amax(dim=1).double()
        noise = ROUNDING * _rounding(model, x, logits) * size
        directions = [*self.signs.to(x), gradients[0].sign().to(x).view_as(x)]
        columns = []
        for step in steps:
            moves = [self._move(model, x, gradients, step * sign) for sign in directions]
            changed, promised = (torch.stack(part) for part in zip(*moves, strict=True))
            columns.append(_compare(changed, promised, noise))
        cosine, explained, gain = (
            torch.stack(column, dim=1).cpu() for column in zip(*columns, strict=True)
        )
        forwards = 1 + 2 * len(directions) * len(steps)
        return Agreement(tuple(steps), cosine, explained, gain, broken.cpu(), forwards)

    def _move(
        self, model: nn.Module, x: Tensor, gradients: Tensor, move: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return how the outputs change along ``move``, and what is promised, (2, n) each."""
        low, high = (x - move).clamp(0, 1), (x + move).clamp(0, 1)
        before, after = (
            _outputs(_ask(model, at, turn), self.y, self.seed)
            for turn, at in enumerate((low, high))
        )
        promised = (gradients * (high.double() - low.double()).flatten(1)).sum(dim=2)
        return after - before, promised.to(after.device)


def _compare(changed: Tensor, promised: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cosine, explained and gain, (n,) each, of changes (directions + 1, 2, n)."""
    finite = torch.isfinite(changed).all(dim=0)
    changed = changed.nan_to_num(0, 0, 0)
    gain = torch.where(finite[0], changed[-1, 0] / promised[-1, 0], torch.nan)
    changed, promised = changed[:-1], promised[:-1]
    largest = torch.maximum(changed.abs().amax(dim=0), promised.abs().amax(dim=0))
    telling = finite & (largest > noise.to(largest.device))
    scale = largest.clamp(min=TINY)  # a change of 1e-200 squares to zero
    error = ((changed - promised) / scale).square().sum(dim=0)
    moved, hoped = ((part / scale).square().sum(dim=0) for part in (changed, promised))
    explained = 1 - error / torch.maximum(moved, hoped).clamp(min=TINY)
    units = [part / part.abs().amax(dim=0).clamp(min=TINY) for part in (changed, promised)]
    cosine = torch.cosine_similarity(units[0], units[1], dim=0, eps=TINY)
    return _least(cosine, telling), _least(explained, telling), gain


def _least(values: Tensor, telling: Tensor) -> Tensor:
    least = torch.where(telling, values, torch.inf).amin(dim=0)
    return torch.where(telling.any(dim=0), least, torch.nan)


def _rounding(model: nn.Module, *answers: Tensor) -> float:
    """Return the unit of the coarsest floating format that ``model`` holds, takes or answers in."""
    held = [*answers, *model.parameters(), *model.buffers()]
    return max(torch.finfo(kind).eps for kind in {v.dtype for v in held if v.is_floating_point()})


def _ask(model: nn.Module, x: Tensor, turn: int = 0) -> Tensor:
    """Return the logits of ``x``, asked in an order that is turned by ``turn`` rows."""
    size = rows_at_once(x.shape[1:], CHUNK, x.element_size())
    with torch.no_grad():
        logits = torch.cat([model(rows) for rows in torch.split(x.roll(turn, 0), size)])
    return logits.roll(-turn, 0)


def _outputs(logits: Tensor, y: Tensor, seed: int) -> Tensor:
    """Return the label's log-odds and a random combination of the logits, (2, n) float64."""
    exact = logits.double()
    label = y.to(exact.device)[:, None]
    others = exact.scatter(1, label, -torch.inf).logsumexp(dim=1)
    weights = torch.randn(exact.shape[1], generator=torch.Generator().manual_seed(seed))
    mixture = exact @ (weights - weights.mean()).to(exact)
    return torch.stack([exact.gather(1, label).squeeze(1) - others, mixture])


def _gradients(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (n, classes), gradients (2, n, d) of ``_outputs``, and rows without, (n,).

    A batch whose backward pass raises is asked again row by row: one row may spoil the others'.
    """
    logits, gradients = [], []
    size = rows_at_once(x.shape[1:], CHUNK, x.element_size())
    for rows, labels in zip(torch.split(x, size), torch.split(y, size), strict=True):
        try:
            found = [_pull(model, rows, labels, seed)]
        except torch.OutOfMemoryError:
            raise  # the device's, not the model's: it is asked again with fewer rows
        except Exception:  # noqa: BLE001 (other people's code: what cannot be had counts as broken)
            pairs = zip(torch.split(rows, 1), torch.split(labels, 1), strict=True)
            found = [_pull_or_nan(model, row, label, seed) for row, label in pairs]
        logits += [answers for answers, _ in found]
        gradients += [gradient for _, gradient in found]
    pulled = torch.cat(gradients, dim=1)
    finite = torch.isfinite(pulled)
    return torch.cat(logits), torch.where(finite, pulled, 0.0), ~finite.all(dim=2).all(dim=0)


def _pull_or_nan(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    try:
        return _pull(model, x, y, seed)
    except torch.OutOfMemoryError:
        raise  # the device's, not the model's: it is asked again with fewer rows
    except Exception:  # noqa: BLE001 (as above)
        lost = x.new_full((2, 1, math.prod(x.shape[1:])), torch.nan, dtype=torch.float64)
        return _ask(model, x), lost


def _pull(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits and the gradients (2, n, d) float64 of ``_outputs``, zero without a path."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        outputs = _outputs(logits, y, seed)
    found = []
    for output in outputs:
        pulled = None
        if output.requires_grad:
            (pulled,) = torch.autograd.grad(
                output.sum(), leaf, retain_graph=True, allow_unused=True
            )
        found.append(torch.zeros_like(x) if pulled is None else pulled)
    return logits.detach(), torch.stack(found).flatten(2).double()
