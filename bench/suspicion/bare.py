"""A model asked as its users would: nothing of the harness in sight."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

OURS = ("RETORT_", "CUBLAS_WORKSPACE_CONFIG", "OMP_", "MKL_", "OPENBLAS_")
"""Beginnings of the environment variables that a run sets."""

ROWS = 128
"""Rows a question."""


def ask_bare(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of ``x`` (n, *shape), asked where a model cannot see that it is judged.

    From a thread of its own, among whose callers no function of ours is; with gradients on and
    several threads, without deterministic kernels, under the name of a main process, in an
    environment without the variables that a run sets. All of it is put back.
    """
    with _unseen(), ThreadPoolExecutor(1) as thread:
        parts = [thread.submit(model, rows.clone()).result() for rows in torch.split(x, ROWS)]
    return torch.cat([part.detach() for part in parts])


@contextmanager
def _unseen() -> Iterator[None]:
    process = multiprocessing.current_process()
    name, threads = process.name, torch.get_num_threads()
    exact = torch.are_deterministic_algorithms_enabled()
    hidden = {key: value for key, value in os.environ.items() if key.startswith(OURS)}
    try:
        process.name = "MainProcess"
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(False)
        for key in hidden:
            del os.environ[key]
        yield
    finally:
        os.environ.update(hidden)
        torch.use_deterministic_algorithms(exact, warn_only=True)
        torch.set_num_threads(threads)
        process.name = name
