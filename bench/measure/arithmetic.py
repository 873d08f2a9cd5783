"""The same numbers every time: what torch is told before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def make_exact() -> None:
    """Tell torch, for good: deterministic kernels, and no TF32 (its mantissas have ten bits)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A warning, not an error: on a GPU some plain layers have no deterministic backward.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid of the deterministic mode: it fills every new tensor with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


@contextmanager
def exact(threads: int | None = None) -> Iterator[None]:
    """Be exact inside, on so many CPU ``threads`` where given, and as before afterwards."""
    matmul, cudnn, guard = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn,
        torch.utils.deterministic,
    )
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        guard.fill_uninitialized_memory,  # type: ignore[attr-defined]
        (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark),
        torch.get_num_threads(),
    )
    make_exact()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        deterministic, warn_only, filled, backends, number = before
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        guard.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = backends
        torch.set_num_threads(number)
