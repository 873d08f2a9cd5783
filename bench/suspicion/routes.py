"""Do all inputs go the same way? Which weights each row's answer hangs on.

A model may hand some inputs to one network and others to another: what looks like data to an
accurate one, what does not to a robust one. Attacks start where they meet the robust one, and no
gradient leads from it to the other. But the gradient of an answer with respect to the weights tells
which of them took part.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bench.measure.query import differs

NEGLIGIBLE = 1e-12
"""The share of a weight's largest gradient norm over all rows below which a row does not use it.

What is switched off has a gradient of exactly zero. But layer normalisation of an even background
takes gradients apart by 1e8 between one row and another that all use the same weights.
"""

HAIR = 0.05
"""How far from the faces of the box, as a share of ``eps``, what lies a hair off them is."""

FEW = 0.05
"""The share of features that is changed where few are."""

COMPONENTS = 16
"""Principal components of the sources that are kept of a denoised one, at most."""


def routed(
    model: nn.Module, kinds: Sequence[Tensor], seed: int = 0, *, steady: bool = True
) -> float | None:
    """Return the share of rows that use other weights than most, of the kind with most of them.

    ``model``: in eval mode, logits (n, classes); ``kinds``: rows (n, *shape) of several kinds, as
    ``around`` makes them; most are counted over all. Weights are parameters and floating buffers.
    One row at a time, two forward passes and one backward pass each. ``steady``: the model answers
    alike each time, so that a row that is answered otherwise once weights want gradients counts
    too: a model may look whether they do. None where no answer has a gradient with respect to any
    weight, or there are no rows.
    """
    weights = [*model.parameters(), *_buffers(model)]
    weights = [weight for weight in weights if weight.is_floating_point()]
    rows = [(kind, x[row : row + 1]) for kind, x in enumerate(kinds) for row in range(len(x))]
    if not weights or not rows:
        return None
    with torch.no_grad():
        before = torch.cat([model(row) for _, row in rows])
    with wanted(weights):
        asked = [_asked(model, row, weights, seed) for _, row in rows]
    every = torch.stack([norms for _, norms in asked])
    if not every.any():
        return None
    ways = [tuple(way) for way in (every > NEGLIGIBLE * every.amax(dim=0)).tolist()]
    ((usual, _),) = Counter(ways).most_common(1)
    turned = differs(before, torch.cat([logits for logits, _ in asked])).tolist()
    others = Counter(
        kind
        for (kind, _), way, turns in zip(rows, ways, turned, strict=True)
        if way != usual or (steady and turns)
    )
    return max((count / len(kinds[kind]) for kind, count in others.items()), default=0.0)


@contextlib.contextmanager
def wanted(weights: Sequence[Tensor]) -> Iterator[None]:
    """Let ``weights`` want gradients inside, and be as before afterwards."""
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


def around(x: Tensor, eps: float, seed: int = 0) -> list[Tensor]:
    """Return rows of several kinds near the sources ``x`` (n, *shape), (n, *shape) each.

    The sources; nearer to what they have in common; uniform within ``eps`` in L∞, and at its
    corners; a hair off the faces of the box; a few features almost at 0 or 1. A model that has
    several faces shows them somewhere there.
    """
    if len(x) < 2:
        return [x]
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:
        return torch.rand(x.shape, generator=generator).to(x)

    hair = HAIR * eps
    uniform = x + eps * (2 * drawn() - 1)
    corners = x + eps * (drawn() - 0.5).sign()
    ends = torch.where(drawn() < 0.5, hair, 1 - hair)
    few = torch.where(drawn() < FEW, ends, x)
    inside = hair + (1 - 2 * hair) * x  # no clip: an even row has its own gradients of zero
    return [x, denoised(x, eps), uniform.clamp(0, 1), corners.clamp(0, 1), inside, few]


def _buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers of ``model`` but for running statistics, which have no gradient."""
    return [
        buffer
        for module in model.modules()
        if not isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    ]


def _asked(
    model: nn.Module, row: Tensor, weights: Sequence[Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    """Return the logits (1, classes) and the gradient norms of a random mixture of them, float64.

    One norm a weight, on the CPU.
    """
    with torch.enable_grad():
        logits = model(row)
        mix = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(seed))
        told = (logits * (mix - mix.mean()).to(logits)).sum()
    none = torch.zeros((), dtype=torch.float64)
    found: Sequence[Tensor | None] = [None] * len(weights)
    if told.requires_grad:
        found = torch.autograd.grad(told, list(weights), allow_unused=True)
    norms = [none if g is None else g.double().norm().nan_to_num(0).cpu() for g in found]
    return logits.detach(), torch.stack(norms)


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
