"""Virtual adversarial training, or local distributional smoothness (LDS).

Miyato, Maeda, Koyama, Nakae, Ishii 2016, arXiv 1507.00677; Miyato et al. 2018, arXiv 1704.03976.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.measure.at_rest import at_rest
from bench.plugins.contracts import Defense, FitContext
from bench.plugins.data import Split
from defenses.crafting import (
    check_positive,
    check_steps,
    divergence,
    full_precision,
    same_statistics,
)


@dataclass(frozen=True)
class VirtualAdversarialTraining(Defense):
    """Cross-entropy plus ``alpha`` times LDS: how far the answer moves in the worst direction.

    LDS is KL(p(x) || p(x + r)) with p(x) held constant and r the L2 vector of length ``eps``
    along which the divergence grows fastest, found without a label by power iteration (arXiv
    1704.03976). ``eps``: positive, in input units; as in the paper, x + r may leave the box.
    ``alpha``: positive. ``iterations``: power iterations, at least 1. ``xi``: the distance, in
    input units, at which the second derivative is measured: the papers' code takes 1e-6, where
    the answers differ by little more than the rounding of float32. Moved inputs do not enter the
    running statistics of batch normalisation, as in the 2018 paper's code.
    """

    eps: float = 1.0
    alpha: float = 1.0
    iterations: int = 1
    xi: float = 0.1

    def __post_init__(self) -> None:
        check_positive(eps=self.eps, alpha=self.alpha, xi=self.xi)
        check_steps(self.iterations, "iterations")

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels and the smoothness of every batch."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=context.generator, device=x.device)
            direction = self.direction(model, x, noise)
            clean = model(x)
            with same_statistics(model):
                moved = model(x + self.eps * direction)
            smoothness = divergence(clean.detach(), moved).mean()
            return F.cross_entropy(clean.float(), y) + self.alpha * smoothness

        context.train(model, train.x, train.y, objective=objective)

    def direction(self, model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
        """Return the unit vectors (batch, *shape) that power iteration finds from ``noise``.

        A row whose gradient is exactly zero keeps a zero vector: nothing is learnt from it.
        """
        direction = _unit(noise)
        with at_rest(model), full_precision(x):
            with torch.no_grad():
                clean = model(x)
            for _ in range(self.iterations):
                direction.requires_grad_()
                moved = divergence(clean, model(x + self.xi * direction))
                (gradient,) = torch.autograd.grad(moved.sum(), direction)
                direction = _unit(gradient)
        return direction


def _unit(vectors: Tensor) -> Tensor:
    flat = vectors.flatten(1)
    # Scaled first: the squares of a small gradient would underflow.
    largest = flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    return F.normalize(flat / largest, dim=1).view_as(vectors)
