"""What passes through a model while an attack asks it: counted, limited, and looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as is_batched

from bench.base.types import ThreatModel
from bench.measure.query import answer, distances


class SpentError(Exception):
    """The attack has spent the passes that it was given."""


class Passes:
    """Counts rows through a model, forward and backward."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0

    @contextmanager
    def counted(self, model: nn.Module, most: int | None = None) -> Iterator[None]:
        """Count inside; raises SpentError once more than ``most`` rows went either way."""

        def forward(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            self.forwards += len(output)
            if most is not None and self.forwards + self.backwards > most:
                raise SpentError
            if output.requires_grad:
                output.register_hook(backward)

        def backward(gradient: Tensor) -> None:
            self.backwards += len(gradient)

        with model.register_forward_hook(forward):
            yield


class Watch(Passes):
    """Counts rows through a model, and keeps the first input seen that breaks each source.

    ``x``: (sources, *shape) and ``y``: (sources,); ``rows``: those of them that are attacked,
    ascending; ``threat`` says what counts as a version of a source: an input is one of every source
    within whose budget it lies, whichever of them the attack had in mind. Nothing is kept without
    a budget, for there every input would do. What is kept is only a hint: it is judged like all
    else.
    """

    def __init__(
        self, x: Tensor, y: Tensor, rows: Tensor, threat: ThreatModel, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self._x, self._y, self._rows = x[rows], y[rows], rows
        self._flat = self._x.flatten(1)
        self._squares = self._flat.square().sum(dim=1)
        self._threat, self._shape = threat, shape
        self._reach = _reach(threat, shape)
        self._kept: dict[int, Tensor] = {}
        self._looks = threat.budget is not None and len(rows) > 0

    @contextmanager
    def seeing(self, model: nn.Module) -> Iterator[None]:
        """Keep inside what breaks a source."""
        if not self._looks:
            yield
            return
        with model.register_forward_hook(self._look):
            yield

    def sources(self) -> Tensor:
        """Return which sources something was kept for, (kept,) rows of ``x``, ascending."""
        return self._rows[torch.tensor(sorted(self._kept), dtype=torch.int64)]

    def inputs(self) -> Tensor:
        """Return what was kept for them, (kept, *shape)."""
        return torch.stack([self._kept[row] for row in sorted(self._kept)])

    def _look(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (inputs and _plain(inputs[0]) and _plain(output)) or not len(output):
            return
        with torch.no_grad():
            x = inputs[0].detach().to(self._x.dtype)
            if x.shape[1:] != self._x.shape[1:] or output.dim() != 2:
                return
            # Asked at every query, where each operation is a hundredth of a small network's answer.
            wrong = _answer(output.detach())[:, None] != self._y
            flat = x.flatten(1)
            gaps = torch.addmm(self._squares, flat, self._flat.T, alpha=-2)
            wrong &= gaps <= self._reach - flat.square().sum(dim=1, keepdim=True)
            if not wrong.any():
                return
            place, source = wrong.nonzero(as_tuple=True)
            measured = distances(self._x[source], x[place])
            kept = measured.in_box & measured.within(self._threat, self._shape)
            for row, broken in zip(place[kept].tolist(), source[kept].tolist(), strict=True):
                self._kept.setdefault(broken, x[row].clone())
            self._squares[source[kept]] = torch.inf  # as far as nothing is: what is kept is kept


def _answer(logits: Tensor) -> Tensor:
    """Return ``answer(logits)``, for less where every row has a winner."""
    most, top = logits.max(dim=1)
    winners = (logits == most[:, None]).sum()  # fewer than rows where one has a NaN
    # A sum that is finite has finite terms; another one may only have grown too large.
    if int(winners) == len(top) and math.isfinite(float(logits.sum())):
        return top
    return answer(logits)


def _reach(threat: ThreatModel, shape: tuple[int, ...]) -> float:
    """Return what the squared L2 distance of a version of a source may be at most, and some more.

    Found at once for all pairs of inputs and sources; few are left to be measured by the budget.
    """
    features, budget = math.prod(shape), threat.budget or 0.0
    if threat.norm == "l0":
        # Each changed feature moves by at most 1, and a pixel is as many features as channels.
        most = features * budget
    else:
        most = budget**2 * (features if threat.norm == "linf" else 1)
    return 1.01 * most + 1e-3 * features


def _plain(value: Any) -> bool:
    # Inside torch.func transforms a tensor stands for many: there is no row to look at.
    return isinstance(value, Tensor) and not is_batched(value)
