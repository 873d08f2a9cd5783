"""Adversarial training: the network learns from inputs crafted against itself as it learns.

``fgsm``: Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572, section 6. ``pgd``: Madry, Makelov,
Schmidt, Tsipras, Vladu 2018, arXiv 1706.06083.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)

from bench.base.types import Spec
from bench.measure.at_rest import at_rest
from bench.plugins import registry
from bench.plugins.contracts import AttackContext, Defense, FitContext
from bench.plugins.data import Split
from defenses.crafting import ascend, check_eps, check_positive, check_steps

ATTACK = "pgd"
"""The registered attack that crafts for ``method = "pgd"``."""

CLEAN_SHARE = 0.5
"""α of Goodfellow et al.: the clean half of the loss."""


@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """Training on inputs that the ``pgd`` attack, or one gradient step, moves within ``eps`` in L∞.

    ``method``: ``fgsm`` averages the loss of clean inputs and of x + eps · sign ∇J(x) (equal
    weights, as in the paper); ``pgd`` trains on the attack's inputs alone. ``eps``: in (0, 1].
    ``steps``: of ``pgd``, at least 1, 5 by default; ``fgsm`` takes one. ``step_size``: of each,
    positive, 2.5 · eps / steps by default; of ``fgsm`` eps. ``warmup``: the share of the training,
    in [0, 1), over which eps and the step grow linearly from 0: a network that starts at a large
    eps may learn to answer one class.

    The inputs are crafted afresh for every batch, against the network in eval mode: as it will be
    deployed. ``pgd`` starts at random, climbs the log-odds, whose direction is the
    cross-entropy's without its underflow, and does not stop at the first success.
    """

    method: Literal["fgsm", "pgd"] = "pgd"
    eps: float = 0.2
    steps: int | None = None
    step_size: float | None = None
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in ("fgsm", "pgd"):
            raise ValueError(f"method must be 'fgsm' or 'pgd', got {self.method!r}")
        check_eps(self.eps)
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup!r}")
        one_step = self.method == "fgsm"
        if self.steps is None:
            object.__setattr__(self, "steps", 1 if one_step else 5)
        assert self.steps is not None
        check_steps(self.steps)
        if self.step_size is None:
            length = self.eps if one_step else 2.5 * self.eps / self.steps
            object.__setattr__(self, "step_size", length)
        assert self.step_size is not None
        check_positive(step_size=self.step_size)
        if one_step and (self.steps, self.step_size) != (1, self.eps):
            raise ValueError(
                'method = "fgsm" takes one step of length eps, '
                f"got steps {self.steps!r} and step_size {self.step_size!r}"
            )

    def code(self) -> Sequence[Callable[..., Any]]:
        """Name the attack that crafts."""
        return (registry.ATTACKS.get(ATTACK),) if self.method == "pgd" else ()

    def fit(self, model: nn.Module, train: Split, context: FitContext) -> None:
        """Train on the labels of inputs crafted batch by batch."""
        recipe = context.recipe
        batches = recipe.epochs * -(-len(train.x) // recipe.batch_size)
        count = itertools.count(1)

        def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            share = self.grown(next(count) / batches)
            if self.method == "fgsm":
                loss = _cross_entropy(model, self.step(model, x, y, share), y)
                return CLEAN_SHARE * _cross_entropy(model, x, y) + (1 - CLEAN_SHARE) * loss
            return _cross_entropy(model, self.climb(model, x, y, share, context), y)

        context.train(model, train.x, train.y, objective=objective)

    def grown(self, progress: float) -> float:
        """Return the share of ``eps`` in force at ``progress`` in (0, 1] through the training."""
        return 1.0 if progress >= self.warmup else progress / self.warmup

    def step(self, model: nn.Module, x: Tensor, y: Tensor, share: float) -> Tensor:
        """Return x + share · eps · sign ∇J(x), clipped to the box: (batch, *shape)."""

        def loss(x_adv: Tensor) -> Tensor:
            # In float64 the gradient outlives probabilities that float32 rounds to 1.
            return F.cross_entropy(model(x_adv).double(), y, reduction="sum")

        eps = share * self.eps
        with at_rest(model):
            return ascend(loss, x, x, eps=eps, steps=1, step_size=eps)

    def climb(
        self, model: nn.Module, x: Tensor, y: Tensor, share: float, context: FitContext
    ) -> Tensor:
        """Return what the attack makes of ``x`` (batch, *shape) within share · eps."""
        assert self.step_size is not None
        params = {
            "eps": share * self.eps,
            "steps": self.steps,
            "step_size": share * self.step_size,
            "output": "log_odds",
            "early_stop": False,
        }
        attack = context.make_attack(Spec(ATTACK, params))
        draw = torch.randint(2**31, (), generator=context.generator, device=x.device)
        situation = AttackContext(context.info, int(draw), context.fitted)
        return attack.perturb(model, x, y, None, situation).x_adv.detach()


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).float(), y)
