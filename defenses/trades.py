"""TRADES: Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019, arXiv 1901.08573."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.measure.at_rest import at_rest
from bench.plugins.contracts import Defense, FitContext
from bench.plugins.data import Split
from defenses.crafting import (
    ascend,
    check_eps,
    check_positive,
    check_steps,
    divergence,
    full_precision,
)

JITTER = 1e-3
"""Standard deviation of the start: at x itself the divergence has no gradient (algorithm 1)."""


@dataclass(frozen=True)
class Trades(Defense):
    """Cross-entropy on clean inputs plus ``beta`` times the divergence that a change can cause.

    The loss of a batch is CE(f(x), y) + beta · KL(f(x) || f(x')), where x' climbs that divergence
    within ``eps`` of x in L∞ (algorithm 1; 1/λ of the paper is ``beta``).
    ``beta``: positive, what is paid in accuracy for robustness. ``eps``: in (0, 1].
    ``steps``: at least 1. ``step_size``: of each, positive; 2.5 · eps / steps by default.
    """

    beta: float = 6.0
    eps: float = 0.2
    steps: int = 5
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        check_eps(self.eps)
        check_steps(self.steps)
        if self.step_size is None:
            object.__setattr__(self, "step_size", 2.5 * self.eps / self.steps)
        assert self.step_size is not None
        check_positive(step_size=self.step_size)

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels, with the divergence of a fresh x' for every batch."""

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            noise = JITTER * torch.randn(x.shape, generator=context.generator, device=x.device)
            x_adv = self.craft(model, x, noise)
            clean = model(x)
            loss = F.cross_entropy(clean.float(), y)
            return loss + self.beta * divergence(clean, model(x_adv)).mean()

        context.train(model, train.x, train.y, objective=objective)

    def craft(self, model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
        """Return inputs within ``eps`` of ``x`` (batch, *shape) whose answers diverge from its."""
        assert self.step_size is not None
        with at_rest(model), full_precision(x):
            with torch.no_grad():
                clean = model(x)

            def loss(x_adv: Tensor) -> Tensor:
                return divergence(clean, model(x_adv)).sum()

            return ascend(
                loss, x, x + noise, eps=self.eps, steps=self.steps, step_size=self.step_size
            )
