"""Is a row's answer a function of the row? One question, asked in every way that must not matter.

A model that answers by its companions in the batch, by what it was asked before or by chance
answers the judge otherwise than the attack, and no single table of its answers is its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4
"""Difference of logits, relative to their spread, that other sums of float32 numbers may make.

Measured: at most 1.3e-6, 24 kinds of honest networks on digits and two on 32 × 32 × 3."""

HALF_TOLERANCE = 8.0
"""The same for coarser formats, in units of their rounding."""

Cause = Literal["stochastic", "batch-dependent", "stateful"]


@dataclass(frozen=True)
class Answers:
    """How far a row's answers lie apart, one row an input.

    ``difference``: by the way of asking, (n,) float64 on the CPU: the largest difference between
    a logit and that of the first answer, divided by the largest distance of the row's logits from
    their mean; infinite where only one of both is finite. ``changed``: (n,) bool, rows whose
    prediction is another. ``refused``: ways of asking that raised, and why. ``tolerance``: the
    difference that rounding explains.
    """

    difference: dict[str, Tensor]
    changed: dict[str, Tensor]
    refused: dict[str, str]
    tolerance: float

    def rows(self, cause: Cause) -> Tensor:
        """Return which rows differ beyond rounding for ``cause``, (n,) bool.

        In the order of ``WAYS`` an earlier cause explains the later ones: what answers the same
        batch otherwise answers other batches otherwise too. A counter that changes every answer is
        ``stochastic``, as chance is. Raises ValueError for another cause.
        """
        found = torch.zeros_like(next(iter(self.changed.values())))
        for name, ways in WAYS.items():
            known = [self.difference[way] for way in ways if way in self.difference]
            differs = torch.stack([found, *(way > self.tolerance for way in known)]).any(dim=0)
            if name == cause:
                return differs & ~found
            found = differs
        raise ValueError(f"cause must be one of {list(WAYS)}, got {cause!r}")


WAYS: dict[Cause, tuple[str, ...]] = {
    "stochastic": ("again",),
    "stateful": ("afterwards", "copy", "fresh"),
    "batch-dependent": (
        "gradients", "reversed", "halves", "alone", "doubled", "companions", "fresh reversed",
    ),
}  # fmt: skip
"""Ways of asking, by what a difference means: the same batch at once; the same batch after other
questions, or of another instance; the same rows in another order, batch or mode."""


def consistency(
    model: nn.Module, x: Tensor, fresh: Callable[[], nn.Module] | None = None, *, seed: int = 0
) -> Answers:
    """Ask ``model`` about ``x`` (n, *shape) in [0, 1] in every way that must not matter.

    ``fresh`` returns the model newly built from its weights, in eval mode, on the device of ``x``.
    Costs 15 forward passes a row at most. A way that raises is reported and not held against the
    rows. Raises ValueError without rows, and what the model raises at the first question.
    """
    if not len(x):
        raise ValueError("there are no rows to ask about")
    first = _ask(model, x)
    difference, changed, refused = {}, {}, {}
    for way, ask in _ways(model, x, fresh, seed):
        try:
            answer = ask().to(first.device)
        except torch.OutOfMemoryError:
            raise  # the device's, not the model's: it is asked again with fewer rows
        except Exception as error:  # noqa: BLE001 (other people's code: the reason is kept)
            refused[way] = f"{type(error).__name__}: {error}"
            continue
        difference[way] = _difference(first, answer).cpu()
        changed[way] = (first.argmax(dim=1) != answer.argmax(dim=1)).cpu()
    if not difference:
        reasons = "; ".join(sorted(set(refused.values())))
        raise ValueError(f"the model answers once and never again: {reasons}")
    return Answers(difference, changed, refused, _tolerance(model, x, first))


def _ways(
    model: nn.Module, x: Tensor, fresh: Callable[[], nn.Module] | None, seed: int
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield ways of asking in their order: what changes nothing first, other questions before."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    half = -(-len(x) // 2)
    yield "again", lambda: _ask(model, x)
    yield "gradients", lambda: model(x.detach().clone().requires_grad_()).detach()
    yield "reversed", lambda: _ask(model, x.flip(0)).flip(0)
    yield "halves", lambda: torch.cat([_ask(model, part) for part in torch.split(x, half)])
    yield "alone", lambda: torch.cat([_ask(model, row) for row in torch.split(x, 1)])
    yield "doubled", lambda: _ask(model, torch.cat([x, x]))[len(x) :]
    yield "companions", lambda: _ask(model, torch.cat([noise, x]))[len(x) :]
    yield "afterwards", lambda: _after(model, noise, x)
    yield "copy", lambda: _ask(copy.deepcopy(model), x)
    if fresh is not None:
        yield "fresh", lambda: _after(fresh(), noise, x)
        yield "fresh reversed", lambda: _ask(fresh(), x.flip(0)).flip(0)


def _ask(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits.clone()


def _after(model: nn.Module, other: Tensor, x: Tensor) -> Tensor:
    _ask(model, other)
    return _ask(model, x)


def _difference(first: Tensor, second: Tensor) -> Tensor:
    """Return the largest difference of logits, (n,) float64, relative to the spread of a row's."""
    first, second = first.double(), second.double()
    same = (first == second) | (first.isnan() & second.isnan())
    apart = torch.where(same, 0.0, (first - second).abs().nan_to_num(torch.inf)).amax(dim=1)
    spread = (first - first.mean(dim=1, keepdim=True)).abs().amax(dim=1).nan_to_num(1.0, 1.0)
    return apart / spread.clamp(min=1e-300)


def _tolerance(model: nn.Module, x: Tensor, logits: Tensor) -> float:
    held = [x, logits, *model.parameters(), *model.buffers()]
    unit = max(torch.finfo(kind).eps for kind in {v.dtype for v in held if v.is_floating_point()})
    return max(TOLERANCE, HALF_TOLERANCE * unit)
