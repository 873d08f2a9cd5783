"""How long models take, measured in turns, so that what else a machine does falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.measure.query import predict

ROUNDS = 7
"""How often each model is asked: a median, and a spread that one bad moment does not make."""

SECONDS = 30.0
"""What all rounds together may take, about: where models are slow, fewer rows are asked."""

LEAST = 50
"""Rows that are asked however slow a model is."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a pass over ``rows`` rows: by model, one figure a round, in the order of turns."""

    rows: int
    seconds: Mapping[str, tuple[float, ...]]


def in_turns(models: Mapping[str, nn.Module], x: Tensor, classes: int) -> Pace:
    """Return what a pass over the first rows of ``x`` takes each model, asked in turns.

    A B C, then C B A, and so on. ``x``: (n, *shape) on the models' device, n at least 1. Seconds
    of the processor on a CPU, whether this process has it to itself or not; of the clock on an
    accelerator.
    """
    few = x[:LEAST]
    for model in models.values():
        predict(model, few, classes)  # the first pass of a model is not like the others
    guess = sum(_pass(model, few, classes) for model in models.values()) / len(few)
    bearable = SECONDS / ROUNDS / guess if guess else len(x)
    rows = min(len(x), max(LEAST, int(bearable)))
    asked, order = x[:rows], list(models)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name in order:
            seconds[name].append(_pass(models[name], asked, classes))
        order.reverse()
    return Pace(rows, {name: tuple(found) for name, found in seconds.items()})


def _pass(model: nn.Module, x: Tensor, classes: int) -> float:
    clock = time.perf_counter if x.is_cuda else time.process_time
    _wait(x)
    start = clock()
    predict(model, x, classes)
    _wait(x)
    return clock() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
