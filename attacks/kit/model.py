"""How attacks query the model: checked once, and in the memory layout in which it is fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]

Layout = Callable[[Tensor], Tensor]


def probe(model: Model, x: Tensor, target: Tensor) -> Layout:
    """Check the model on one row before anything runs; return the layout for its inputs.

    Raises ValueError or TypeError if the model's output or the range of `target` is wrong.
    """
    if not len(x):
        return contiguous
    with torch.no_grad():
        classes = check_logits(model(x[:1]), 1)
        check_range(target, classes)
        # float32 convolutions on a CPU are a fifth faster on channels-last images, but a model
        # may hold a `view` that only works on contiguous ones: then it gets those.
        if x.dim() != 4 or x.device.type != "cpu" or x.dtype != torch.float32:
            return contiguous
        try:
            model(channels_last(x[:1]))
        except RuntimeError:
            return contiguous
    return channels_last


def contiguous(x: Tensor) -> Tensor:
    """Return `x` as it is."""
    return x


def channels_last(x: Tensor) -> Tensor:
    """Copy (rows, C, H, W) with its channels innermost in memory.

    For C = 1 `Tensor.contiguous` sees nothing to do, and keeps strides by which
    convolutions take the tensor for the other layout.
    """
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def chunks(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return ``rows`` in parts of ``size``, and no part of no rows.

    `torch.split` makes an empty one, and many a model refuses an empty batch.
    """
    return torch.split(rows, size) if len(rows) else ()


def widened(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: half precision is too coarse for losses and margins."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def finite_gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of the sum of ``loss`` (rows,) at ``leaf``, (rows, features).

    An entry that is NaN or infinite says nothing and is 0, and so are all where there is none.
    """
    found = None
    if loss.requires_grad:
        (found,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf).flatten(1) if found is None else only_finite(found.flatten(1))


def only_finite(gradient: Tensor) -> Tensor:
    """Return ``gradient`` with 0 for the entries that are NaN or infinite."""
    return gradient.nan_to_num(nan=0, posinf=0, neginf=0)


CHUNK_CPU = 256
"""Rows at once on a CPU, where larger batches only leave the caches."""

CHUNK_ACCELERATOR = 2048
"""Rows at once elsewhere, where small batches cannot fill the device."""


def check_logits(logits: object, rows: int) -> int:
    """Return the number of classes if the logits are floating-point (rows, classes)."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return a tensor of logits, got {type(logits).__name__}")
    if logits.dim() != 2 or len(logits) != rows or logits.shape[1] < 2:
        raise ValueError(
            f"model must return logits of shape (batch, classes) with at least 2 classes, "
            f"got {tuple(logits.shape)} for {rows} row(s)"
        )
    if not logits.is_floating_point():
        raise TypeError(f"model must return floating-point logits, got {logits.dtype}")
    return logits.shape[1]


def check_range(target: Tensor, classes: int) -> None:
    """Raise ValueError unless every target is one of the model's classes."""
    least, most = (int(v) for v in torch.stack(torch.aminmax(target)).cpu())
    if least < 0 or most >= classes:
        raise ValueError(f"target must be in [0, {classes - 1}], got values in [{least}, {most}]")
