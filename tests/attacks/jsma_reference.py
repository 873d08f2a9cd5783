"""JSMA as its papers write it: every pair, float64, one row at a time. Slow on purpose.

Written from arXiv 1511.07528 (algorithms 2 and 3), 2007.06032 and 1808.07945, and sharing no
code with `attacks`. The Jacobian comes from autograd, one row of it a class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]


@dataclass
class Reference:
    """Every input visited, first to last, and why the attack stopped."""

    path: list[Tensor]
    reason: str


def best_pair(
    alpha: Tensor, beta: Tensor, allowed: Tensor, sign: float
) -> tuple[float, tuple[int, int] | None]:
    """The score of the best admissible pair and the pair, out of all of them; (0, None) if none."""
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
    """The same for single features (arXiv 1511.07528, equation 8)."""
    admissible = (sign * alpha > 0) & (sign * beta < 0) & allowed
    scores = torch.where(admissible, -alpha * beta, -1.0)
    best = int(scores.argmax())
    return (float(scores[best]), (best,)) if bool(admissible[best]) else (0.0, None)


def outputs(logits: Tensor, output: str) -> Tensor:
    """What is differentiated, for every class: (rows, classes)."""
    if output == "probs":
        return logits.softmax(dim=1)
    if output == "logits":
        return logits
    classes = range(logits.shape[1])
    others = [[j for j in classes if j != t] for t in classes]
    odds = [logits[:, t] - logits[:, others[t]].logsumexp(dim=1) for t in classes]
    return torch.stack(odds, dim=1)


def jacobian(model: Model, x: Tensor, output: str) -> tuple[Tensor, Tensor]:
    """(logits, Jacobian): (classes,) and (classes, d), at one row x of any shape."""
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
    """The (alpha, beta) to choose from: one, or one a class for M-JSMA."""
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


def attack(
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
    """One row x inside [0, 1], float64."""
    shape, x = x.shape, x.flatten().clone()
    size = 1 if saliency == "single" else 2
    choose = best_feature if size == 1 else best_pair
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
