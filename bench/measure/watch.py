"""What passes through a model while an attack asks it: counted, limited, and looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as is_batched

from bench.base.types import ThreatModel
from bench.measure.query import distances, won


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
    ascending; ``threat`` says what counts as a version of a
    source. An input belongs to the source that it lies nearest to (L2). Nothing is kept without a
    budget, for there every input would do. What is kept is only a hint: it is judged like all else.
    """

    def __init__(
        self, x: Tensor, y: Tensor, rows: Tensor, threat: ThreatModel, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self._x, self._y, self._rows = x[rows], y[rows], rows
        self._flat = self._x.flatten(1)
        self._squares = self._flat.square().sum(dim=1)
        self._threat, self._shape = threat, shape
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
            nearest = torch.addmm(self._squares, x.flatten(1), self._flat.T, alpha=-2).argmin(dim=1)
            wrong = ~won(output.detach(), self._y[nearest])
            if not wrong.any():
                return
            x, nearest = x[wrong], nearest[wrong]
            measured = distances(self._x[nearest], x)
            kept = measured.in_box & measured.within(self._threat, self._shape)
            for place in kept.nonzero().flatten().tolist():
                self._kept.setdefault(int(nearest[place]), x[place].clone())


def _plain(value: Any) -> bool:
    # Inside torch.func transforms a tensor stands for many: there is no row to look at.
    return isinstance(value, Tensor) and not is_batched(value)
