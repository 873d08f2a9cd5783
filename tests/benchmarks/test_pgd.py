"""What PGD costs beside the passes that it makes, and beside ART's. Asserts no times."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.kit.losses import reached
from attacks.peers.art_call import Call, generate
from attacks.pgd import pgd
from bench.plugins.contracts import AttackContext
from tests.benchmarks.conftest import INFO, Task, seconds

ROWS, STEPS, EPS, ROUNDS = 500, 20, 0.1, 3


@pytest.fixture(scope="module")
def sources(task: Task) -> Task:
    """(network, x, y): 500 rows of real images, that differ by a little noise."""
    network, images, _ = task
    torch.manual_seed(0)
    x = images[::9].repeat(ROWS // 20, 1, 1, 1)
    x = (x + 0.02 * torch.rand_like(x)).clamp(0, 1)
    return network, x, network(x).argmax(1)


def passes(network: nn.Module, batches: list[tuple[Tensor, bool]]) -> None:
    """The forward and backward passes of an attack, and nothing else."""
    for batch, backward in batches:
        leaf = batch.requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            logits = network(leaf)
        if backward:
            torch.autograd.grad(logits.sum(), leaf)


@pytest.mark.benchmark(group="pgd")
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_beside_its_bare_passes(
    benchmark: Any, sources: Task, norm: Any, early_stop: bool
) -> None:
    network, x, y = sources
    batches: list[tuple[Tensor, bool]] = []

    def attack() -> Any:
        eps = EPS if norm == "linf" else 2.0
        return pgd(network, x, y, eps=eps, norm=norm, steps=STEPS, early_stop=early_stop)

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > 1:  # the probes of one row are part of the attack's cost
            batches.append((inputs[0].detach(), inputs[0].requires_grad))

    with network.register_forward_pre_hook(keep):
        result = attack()
    pairs = [  # so that a busy machine disturbs both alike
        (seconds(lambda: passes(network, batches)), seconds(attack)) for _ in range(ROUNDS)
    ]
    ratios = [ours / bare for bare, ours in pairs]
    benchmark.pedantic(attack, rounds=1)
    benchmark.extra_info.update(
        rows=ROWS,
        row_passes=sum(len(batch) for batch, _ in batches),
        success_rate=round(float(result.success.float().mean()), 4),
        bare_seconds=round(statistics.median(bare for bare, _ in pairs), 3),
        ratio_to_bare_passes=round(statistics.median(ratios), 3),
        ratio_range=[round(min(ratios), 3), round(max(ratios), 3)],
    )


@pytest.mark.benchmark(group="pgd")
def test_pgd_beside_art(benchmark: Any, sources: Task) -> None:
    network, x, y = sources
    params = {"norm": "inf", "eps": EPS, "eps_step": EPS / 8, "max_iter": STEPS, "batch_size": 128}
    call = Call("ProjectedGradientDescentPyTorch", {**params, "num_random_init": 1})

    def ours(early_stop: bool) -> Any:
        return pgd(
            network, x, y, eps=EPS, steps=STEPS, step_size=EPS / 8, output="deployed",
            early_stop=early_stop,
        )  # fmt: skip

    def art() -> Tensor:
        return generate(call, network, x, y, None, AttackContext(INFO))

    theirs = reached(network(art()), y, None)
    rounds = [
        (seconds(art), seconds(lambda: ours(True)), seconds(lambda: ours(False)))
        for _ in range(ROUNDS)
    ]
    benchmark.pedantic(lambda: ours(True), rounds=1)
    benchmark.extra_info.update(
        rows=ROWS,
        steps=STEPS,
        success_rate=round(float(ours(True).success.float().mean()), 4),
        success_rate_of_art=round(float(theirs.float().mean()), 4),
        art_seconds=round(statistics.median(art for art, _, _ in rounds), 3),
        art_times_slower=round(statistics.median(art / stop for art, stop, _ in rounds), 2),
        art_times_slower_without_early_stop=round(
            statistics.median(art / full for art, _, full in rounds), 2
        ),
    )
