"""What APGD costs beside torchattacks' and ART's. Asserts no times."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.apgd import apgd
from attacks.kit.losses import reached
from attacks.peers.art_call import Call, generate
from bench.plugins.contracts import AttackContext
from tests.benchmarks.conftest import INFO, Task, seconds

ROWS, STEPS, EPS, ROUNDS = 60, 20, 0.1, 3


def compare(
    benchmark: Any, task: Task, ours: Callable[[], Any], peers: dict[str, Callable[[], Tensor]]
) -> None:
    """Time attack and peers in turn, so that a busy machine disturbs all alike."""
    network, _, y = task
    rounds = [
        (seconds(ours), {name: seconds(peer) for name, peer in peers.items()})
        for _ in range(ROUNDS)
    ]
    benchmark.pedantic(ours, rounds=1)
    benchmark.extra_info["success_rate"] = round(float(ours().success.float().mean()), 4)
    for name, peer in peers.items():
        ratios = [theirs[name] / own for own, theirs in rounds]
        rate = reached(network(peer()).detach(), y, None).float().mean()
        benchmark.extra_info[f"{name}_success_rate"] = round(float(rate), 4)
        benchmark.extra_info[f"{name}_times_slower"] = round(statistics.median(ratios), 2)
        benchmark.extra_info[f"{name}_range"] = [round(min(ratios), 2), round(max(ratios), 2)]


@pytest.fixture(scope="module")
def sources(task: Task) -> Task:
    """(network, x, y): rows of real images, that differ by a little noise."""
    network, images, _ = task
    torch.manual_seed(0)
    x = images[::9].repeat(ROWS // 20, 1, 1, 1)
    x = (x + 0.02 * torch.rand_like(x)).clamp(0, 1)
    return network, x, network(x).argmax(1)


@pytest.mark.benchmark(group="apgd")
@pytest.mark.parametrize("targeted", [False, True])
def test_apgd_beside_its_peers(benchmark: Any, sources: Task, targeted: bool) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    network, x, y = sources
    name = "APGDT" if targeted else "APGD"
    peer = getattr(torchattacks, name)(network, eps=EPS, steps=STEPS)
    peers = {"torchattacks": lambda: peer(x, y)}
    if not targeted:
        params = {"norm": "inf", "eps": EPS, "eps_step": 2 * EPS, "max_iter": STEPS}
        rest = {"nb_random_init": 1, "batch_size": 256, "loss_type": "cross_entropy"}
        call = Call("AutoProjectedGradientDescent", {**params, **rest})
        peers["art"] = lambda: generate(call, network, x, y, None, AttackContext(INFO))
    output: Any = "dlr" if targeted else "deployed"
    runners_up = 9 if targeted else 0
    compare(
        benchmark,
        sources,
        lambda: apgd(network, x, y, eps=EPS, steps=STEPS, output=output, runners_up=runners_up),
        peers,
    )
