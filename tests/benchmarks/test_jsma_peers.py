"""JSMA beside the public implementations, in pairs: same weights, images, targets, budget.

Run by `make benchmark`; asserts no times. A busy machine disturbs both of a pair alike, so the
ratios are what to read. `RETORT_BENCH_ROUNDS` says how many pairs (default 3).
"""

from __future__ import annotations

import importlib.util
import os
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.jsma.attack import jsma
from attacks.peers.art import Art
from attacks.peers.torchattacks import TorchattacksJsma
from bench.plugins.contracts import Attack, AttackContext
from tests.benchmarks.conftest import INFO, seconds

ROUNDS = int(os.environ.get("RETORT_BENCH_ROUNDS", "3"))
GAMMA = 112 / 784


def reached(model: nn.Module, x_adv: Tensor, target: Tensor) -> float:
    with torch.no_grad():
        return float((model(x_adv).argmax(dim=1) == target).float().mean())


def compare(
    benchmark: Any,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    model: nn.Module,
    target: Tensor,
) -> None:
    ours()  # warm up
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(ROUNDS)]
    ratios = [their / our for their, our in pairs]
    benchmark.pedantic(ours, rounds=1)
    benchmark.extra_info.update(
        attacks=len(target),
        pairs=ROUNDS,
        times_as_fast=round(statistics.median(ratios), 1),
        range=[round(min(ratios), 1), round(max(ratios), 1)],
        our_seconds=round(statistics.median(our for _, our in pairs), 2),
        their_seconds=round(statistics.median(their for their, _ in pairs), 2),
        our_success=round(reached(model, ours(), target), 3),
        their_success=round(reached(model, theirs(), target), 3),
    )


def peer(attack: Attack, model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    labels = (target + 1) % 10  # targeted attacks do not look at them
    return lambda: attack.perturb(model, x, labels, target, AttackContext(INFO)).x_adv


@pytest.mark.benchmark(group="peers")
@pytest.mark.parametrize("batch_size", [128, 1])  # a good one, and ART's own default
def test_beside_art_on_probabilities(
    benchmark: Any, task: tuple[nn.Module, Tensor, Tensor], batch_size: int
) -> None:
    model, x, target = task
    table = {"attack": "SaliencyMapMethod", "output": "probs", "theta": 1.0, "gamma": GAMMA}
    art = Art.from_params(**table, targets="all", batch_size=batch_size)
    ours = lambda: jsma(model, x, target, max_features=112, output="probs").x_adv  # noqa: E731
    compare(benchmark, ours, peer(art, model, x, target), model, target)


@pytest.mark.benchmark(group="peers")
@pytest.mark.skipif(
    importlib.util.find_spec("torchattacks") is None, reason="the extra peers is not installed"
)
def test_beside_torchattacks_on_logits(
    benchmark: Any, task: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, x, target = task
    ours = lambda: jsma(model, x, target, max_features=112, output="logits").x_adv  # noqa: E731
    theirs = peer(TorchattacksJsma(gamma=GAMMA), model, x, target)
    compare(benchmark, ours, theirs, model, target)
