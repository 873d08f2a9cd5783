"""What Sparse-RS and sigma-zero cost beside the bare passes that they make.

Run by `make benchmark`; asserts no times. Ratios compare within one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.sigma_zero import sigma_zero
from attacks.sparse_rs import sparse_rs
from tests.benchmarks.conftest import Task, seconds

ROWS, ROUNDS = 100, 5


class Pass:
    """One batch that an attack gave to the network, in its layout, and whether it went back."""

    def __init__(self, batch: Tensor) -> None:
        self.batch = batch
        self.backward = False

    def mark(self, _: Tensor) -> None:
        self.backward = True

    def run(self, network: nn.Module) -> None:
        """Repeat it, and do nothing else."""
        if not self.backward:
            with torch.no_grad():
                network(self.batch)
            return
        leaf = self.batch.requires_grad_()
        logits = network(leaf)
        torch.autograd.grad(logits, leaf, torch.ones_like(logits))


def passes_of(network: nn.Module, attack: Callable[[], object]) -> list[Pass]:
    """Return every pass that an attack makes."""
    passes: list[Pass] = []

    def keep(_: nn.Module, given: tuple[Tensor], logits: Tensor) -> None:
        passes.append(Pass(given[0].detach()))
        if logits.requires_grad:
            logits.register_hook(passes[-1].mark)

    hook = network.register_forward_hook(keep)
    attack()
    hook.remove()
    return passes


def compare(benchmark: Any, network: nn.Module, attack: Callable[[], Any]) -> None:
    """Time attack and passes in pairs, so that a busy machine disturbs both alike."""
    passes = passes_of(network, attack)
    result = attack()
    ratios, bare = [], []
    for _ in range(ROUNDS):
        bare.append(seconds(lambda: [each.run(network) for each in passes]))
        ratios.append(seconds(attack) / bare[-1])
    benchmark.pedantic(attack, rounds=1)
    benchmark.extra_info.update(
        rows=ROWS,
        forward_rows=sum(len(each.batch) for each in passes),
        backward_rows=sum(len(each.batch) for each in passes if each.backward),
        success_rate=round(float(result.success.float().mean()), 4),
        bare_seconds=round(statistics.median(bare), 3),
        ratio_to_bare_passes=round(statistics.median(ratios), 3),
        ratio_range=[round(min(ratios), 3), round(max(ratios), 3)],
    )


@pytest.fixture(scope="session")
def untargeted(task: Task) -> Task:
    """(network, x, labels): the images of `task` with noise, each of them another row."""
    network, x, _ = task
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    x = (x + 0.1 * noise).clamp(0, 1)[:ROWS]
    return network, x, network(x).argmax(dim=1)


@pytest.mark.benchmark(group="sparse")
@pytest.mark.parametrize("max_features", [4, 40])
def test_sparse_rs_beside_its_bare_passes(
    benchmark: Any, untargeted: Task, max_features: int
) -> None:
    network, x, y = untargeted
    attack = lambda: sparse_rs(network, x, y, max_features=max_features, queries=100)  # noqa: E731
    compare(benchmark, network, attack)


@pytest.mark.benchmark(group="sparse")
def test_sigma_zero_beside_its_bare_passes(benchmark: Any, untargeted: Task) -> None:
    network, x, y = untargeted
    attack = lambda: sigma_zero(network, x, y, steps=60)  # noqa: E731
    compare(benchmark, network, attack)
