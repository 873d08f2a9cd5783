"""How a defense crafts inputs while it trains: steps inside a box.

An attack of the run is better where one serves (``FitContext.make_attack``); these are for losses
that only the defense knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own spelling)


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """No autocast inside: bfloat16 does not hold the difference between two nearby answers."""
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def same_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch normalisation to other batches than those inside.

    They are used at test time, on clean inputs; each batch still normalises by its own.
    """
    batch_norm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 (of all dimensions)
    tracking = [
        module
        for module in model.modules()
        if isinstance(module, batch_norm) and module.track_running_stats
    ]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def ascend(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
) -> Tensor:
    """Climb ``loss`` by the sign of its gradient, inside the L∞ ball around ``x`` and the box.

    ``x``, ``start``: (batch, *shape) in [0, 1]; ``loss`` maps such a batch to a scalar, a sum over
    rows. No row stops early: training wants the largest loss, not the first success. Madry et al.
    2018, arXiv 1706.06083, section 2.1.
    """
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = torch.clamp(start, low, high)
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x_adv), x_adv)
        x_adv = torch.clamp(x_adv.detach() + step_size * gradient.sign(), low, high)
    return x_adv.detach()


def divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """Return KL(softmax(clean) || softmax(moved)) a row, (batch,); both (batch, classes) logits."""
    log_p = clean.float().log_softmax(dim=1)
    log_q = moved.float().log_softmax(dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def check_positive(**values: float) -> None:
    """Raise ValueError naming the first of ``values`` that is not positive and finite."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_eps(eps: float) -> None:
    """Raise ValueError unless ``eps`` is an L∞ radius in (0, 1]."""
    if not 0 < eps <= 1:
        raise ValueError(f"eps must be in (0, 1], got {eps!r}")


def check_steps(steps: int, name: str = "steps") -> None:
    """Raise ValueError unless ``steps`` is at least 1."""
    if steps < 1:
        raise ValueError(f"{name} must be at least 1, got {steps!r}")
