"""A model as an attack asks it about rows with goals: flat points in, logits and gradients out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.kit.losses import behind
from attacks.kit.model import Layout, Model, finite_gradient, probe, widened


class View:
    """The model, the clean rows ``clean`` (batch, features), and their goals ``y`` and ``target``.

    Untargeted (``target`` None) a row's goal is that another class than y wins, otherwise that the
    target does. Raises ValueError or TypeError where the model's output has the wrong shape, or a
    goal is none of its classes.
    """

    def __init__(self, model: Model, x: Tensor, y: Tensor, target: Tensor | None) -> None:
        self.model = model
        self.shape = x.shape[1:]
        self.clean = x.detach().clone(memory_format=torch.contiguous_format).flatten(1)
        self.y = _labels(y, x)
        self.target = None if target is None else _labels(target, x)
        goals = self.y if self.target is None else torch.cat((self.y, self.target))
        self.layout: Layout = probe(model, self._shaped(self.clean), goals)

    def logits(self, points: Tensor) -> Tensor:
        """Return the logits (rows, classes) at ``points`` (rows, features), without gradient."""
        with torch.no_grad():
            return widened(self.model(self.layout(self._shaped(points))))

    def climb(
        self, points: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, loss (rows,) and its gradient (rows, features) at ``points``.

        Entries of the gradient that are no number are 0, and so are all where the model has none.
        """
        leaf = self.layout(self._shaped(points)).requires_grad_()
        with torch.enable_grad():
            logits = widened(self.model(leaf))
            losses = loss(logits)
        return logits.detach(), losses.detach(), finite_gradient(losses, leaf)

    def margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return by how much ``rows`` are at their goals, (rows,): positive where strictly."""
        if self.target is None:
            return behind(logits, self.y[rows])
        return -behind(logits, self.target[rows])

    def _shaped(self, points: Tensor) -> Tensor:
        return points.reshape(len(points), *self.shape)


def _labels(labels: Tensor, x: Tensor) -> Tensor:
    return labels.detach().to(device=x.device, dtype=torch.int64, copy=True)
