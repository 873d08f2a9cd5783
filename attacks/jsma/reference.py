"""JSMA as its papers write it: every pair, float64, one row at a time. Slow on purpose.

Written from arXiv 1511.07528 (algorithms 2 and 3), 2007.06032 and 1808.07945, and sharing no code
with ``attacks.jsma.attack``, which the tests and the matrix ``agreement`` hold against it. The
Jacobian comes from autograd, one row of it a class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.kit.l0_budget import L0Budget
from bench.base.types import Targets, ThreatModel
from bench.plugins.contracts import Attack, AttackContext, Perturbation

Model = Callable[[Tensor], Tensor]


@dataclass
class Reference:
    """Every input visited, first to last, and why the attack stopped."""

    path: list[Tensor]
    reason: str


def best_pair(
    alpha: Tensor, beta: Tensor, allowed: Tensor, sign: float
) -> tuple[float, tuple[int, int] | None]:
    """Return the best admissible pair and its score, out of all pairs; (0, None) if none."""
    sum_alpha, sum_beta = alpha[:, None] + alpha[None, :], beta[:, None] + beta[None, :]
    admissible = (sign * sum_alpha > 0) & (sign * sum_beta < 0)
    admissible &= allowed[:, None] & allowed[None, :]
    admissible &= torch.ones_like(admissible).triu(1)
    scores = torch.where(admissible, -sum_alpha * sum_beta, -1.0)
    best = int(scores.argmax())
    pair = divmod(best, len(alpha))
    return (float(scores[pair]), pair) if bool(admissible[pair]) else (0.0, None)


def best_feature(
    alpha: Tensor, beta: Tensor, allowed: Tensor, sign: float
) -> tuple[float, tuple[int] | None]:
    """Do the same for single features (arXiv 1511.07528, equation 8)."""
    admissible = (sign * alpha > 0) & (sign * beta < 0) & allowed
    scores = torch.where(admissible, -alpha * beta, -1.0)
    best = int(scores.argmax())
    return (float(scores[best]), (best,)) if bool(admissible[best]) else (0.0, None)


def outputs(logits: Tensor, output: str) -> Tensor:
    """Return what is differentiated, for every class: (rows, classes)."""
    if output == "probs":
        return logits.softmax(dim=1)
    if output == "logits":
        return logits
    classes = range(logits.shape[1])
    others = [[j for j in classes if j != t] for t in classes]
    odds = [logits[:, t] - logits[:, others[t]].logsumexp(dim=1) for t in classes]
    return torch.stack(odds, dim=1)


def jacobian(model: Model, x: Tensor, output: str) -> tuple[Tensor, Tensor]:
    """Return the logits (classes,) and their Jacobian (classes, d) at one row of any shape."""
    with torch.no_grad():
        classes = model(x[None]).shape[1]
    copies = x[None].repeat(classes, *[1] * x.dim()).requires_grad_()
    logits = model(copies)
    # Copy t carries the gradient of class t.
    (rows,) = torch.autograd.grad(outputs(logits, output).diagonal().sum(), copies)
    return logits[0].detach(), rows.reshape(classes, -1)


def terms(
    jac: Tensor, logits: Tensor, target: int, output: str, saliency: str, x: Tensor, sign: float
) -> list[tuple[Tensor, Tensor]]:
    """Return the (alpha, beta) to choose from: one, or one a class for M-JSMA."""
    found = []
    for t in range(len(jac)) if saliency == "maximal" else [target]:
        others = [j for j in range(len(jac)) if j != t]
        weights = logits.softmax(0)[others] if saliency in ("weighted", "taylor") else 1.0
        alpha = jac[t]
        beta = (jac[others].T * weights).sum(dim=1)
        if output == "log_odds" or saliency == "target_gradient":
            beta = -alpha  # by definition; on probs the rows are summed, as the paper writes
        if saliency == "taylor":
            room = 1 - x if sign > 0 else x
            alpha, beta = alpha * room, beta * room
        if saliency == "maximal" and t == target:
            alpha, beta = -alpha, -beta
        found.append((alpha, beta))
    return found


def attack(  # noqa: PLR0913 (the parameters of the papers)
    model: Model,
    x: Tensor,
    target: int,
    *,
    theta: float,
    steps: int,
    output: str,
    saliency: str = "papernot",
    both: bool = False,
) -> Reference:
    """Attack one row x inside [0, 1], float64."""
    shape, x = x.shape, x.flatten().clone()
    size = 1 if saliency == "single" else 2
    choose: Any = best_feature if size == 1 else best_pair
    signs = [1.0, -1.0] if both else [1.0]
    first = 1.0 if theta > 0 else -1.0
    domain = {s * first: (x < 1 if s * first > 0 else x > 0) for s in signs}
    path = [x.clone()]
    while True:
        logits, jac = jacobian(model, x.view(shape), output)
        rest = torch.cat((logits[:target], logits[target + 1 :])).max()
        if (logits[target] < rest) if saliency == "maximal" else (logits[target] > rest):
            return Reference(path, "reached")
        if len(path) > steps:
            return Reference(path, "budget")
        if max(int(mask.sum()) for mask in domain.values()) < size:
            return Reference(path, "domain_empty")
        best: tuple[float, tuple[int, ...] | None, float] = (0.0, None, 0.0)
        for sign, allowed in domain.items():
            for alpha, beta in terms(jac, logits, target, output, saliency, x, sign):
                score, features = choose(alpha, beta, allowed, sign)
                if features is not None and score > best[0]:
                    best = (score, features, sign)
        _, features, sign = best
        if features is None:
            return Reference(path, "no_admissible_pair")
        for i in features:
            x[i] = min(1.0, max(0.0, float(x[i]) + sign * abs(theta)))
            if x[i] in (0.0, 1.0):
                domain[sign][i] = False
            if both:
                domain[-sign][i] = False
        path.append(x.clone())


@dataclass(frozen=True)
class JsmaReference(Attack):
    """The brute-force JSMA in float64, one row at a time, as a peer of the fast one.

    ``theta``, ``gamma``, ``output`` and ``targets`` as in ``jsma``; d² pairs a step, so for small
    inputs and few sources.
    """

    gamma: float
    theta: float = 1.0
    output: Literal["probs", "logits", "log_odds"] = "log_odds"
    targets: Targets = "all"

    def __post_init__(self) -> None:
        L0Budget(self.gamma)
        if not 0 < abs(self.theta) <= 1:
            raise ValueError(f"theta must be non-zero and in [-1, 1], got {self.theta!r}")
        if self.targets == "untargeted":
            raise ValueError("the reference is targeted: all, random or runner-up")

    def threat(self, shape: tuple[int, ...]) -> ThreatModel:
        """L0 in features; ``shape`` does not matter."""
        return L0Budget(self.gamma).threat(shape)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, context: AttackContext
    ) -> Perturbation:
        """Attack each row on a float64 copy of the model."""
        assert target is not None
        double = copy.deepcopy(model).double()
        steps = L0Budget(self.gamma).steps(context.info.shape, per_step=2)
        found = [
            attack(double, row, goal, theta=self.theta, steps=steps, output=self.output)
            for row, goal in zip(x.double(), target.tolist(), strict=True)
        ]
        return Perturbation(
            torch.stack([item.path[-1] for item in found]).view_as(x).to(x),
            torch.tensor([len(item.path) - 1 for item in found]),
            [item.reason for item in found],
        )
