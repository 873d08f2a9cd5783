"""A model at rest: as it is deployed, and as it was before once it has been asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def at_rest(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Eval mode and frozen weights inside; every module's and parameter's own flag after.

    Eval mode, because inputs are crafted against the network that will be deployed: no dropout,
    and batch statistics that crafted batches do not shift. Frozen weights save the backward
    passes the gradients that nobody asked for. A plain function is left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for module in training:
            module.training = False
        for weight in learning:
            weight.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for weight in learning:
            weight.requires_grad_(True)
