"""Do all inputs go the same way? Which weights each row's answer hangs on.

A model may hand some inputs to one network and others to another: what looks like data to an
accurate one, what does not to a robust one. Attacks start where they meet the robust one, and no
gradient leads from it to the other. But the gradient of an answer with respect to the weights tells
which of them took part.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

NEGLIGIBLE = 1e-5
"""The share of a weight's largest gradient norm over all rows below which a row does not use it."""

COMPONENTS = 16
"""Principal components of the sources that are kept of a denoised one, at most."""


def routed(model: nn.Module, x: Tensor, seed: int = 0) -> float | None:
    """Return the share of the rows that use other weights than most rows do.

    ``model``: in eval mode, logits (n, classes); ``x``: (n, *shape). Weights are parameters and
    floating buffers. One row at a time, one forward and one backward pass each. None where no
    answer has a gradient with respect to any weight, or there are no rows.
    """
    weights = [*model.parameters(), *_buffers(model)]
    weights = [weight for weight in weights if weight.is_floating_point()]
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        norms = [_norms(model, x[row : row + 1], weights, seed) for row in range(len(x))]
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    if not norms or not any(row.any() for row in norms):
        return None
    every = torch.stack(norms)
    used = every > NEGLIGIBLE * every.amax(dim=0)
    ways = Counter(tuple(row) for row in used.tolist())
    return 1 - ways.most_common(1)[0][1] / len(used)


def _buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers of ``model`` but for running statistics, which have no gradient."""
    return [
        buffer
        for module in model.modules()
        if not isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    ]


def _norms(model: nn.Module, row: Tensor, weights: list[Tensor], seed: int) -> Tensor:
    """Return the norm of the gradient of a random combination of logits, (weights,) float64."""
    with torch.enable_grad():
        logits = model(row)[0]
        mix = torch.randn(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits)
        told = (logits * (mix - mix.mean())).sum()
    if not told.requires_grad:
        return torch.zeros(len(weights), dtype=torch.float64)
    found = torch.autograd.grad(told, weights, allow_unused=True)
    none = torch.zeros((), dtype=torch.float64)
    return torch.stack(
        [none if grad is None else grad.double().norm().nan_to_num(0).cpu() for grad in found]
    )


def denoised(x: Tensor, eps: float) -> Tensor:
    """Return ``x`` (n, *shape) nearer to what its rows have in common, within ``eps`` in L∞.

    Projected on their first principal components: points that look more like data than the data.
    """
    flat = x.flatten(1)
    middle = flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(flat - middle, full_matrices=False)
    axes = axes[: min(COMPONENTS, len(x) // 2)]
    projected = (middle + (flat - middle) @ axes.T @ axes).view_as(x)
    return torch.minimum(torch.maximum(projected, x - eps), x + eps).clamp(0, 1)
