"""What Carlini and Wagner's attacks cost and find beside ART's at equal steps. Asserts no times."""

from __future__ import annotations

import os
import statistics
from typing import Any

import pytest
from torch import Tensor

from attacks.carlini_wagner import carlini_wagner
from attacks.kit.losses import reached
from attacks.peers.art_call import Call, generate
from bench.base.types import Norm
from bench.measure.query import distances
from bench.plugins.contracts import AttackContext
from tests.benchmarks.conftest import INFO, Task, seconds

ROWS = int(os.environ.get("RETORT_BENCH_ROWS", "20"))
ROUNDS = int(os.environ.get("RETORT_BENCH_ROUNDS", "2"))
STEPS, SEARCHES, RATE, CONST = 30, 4, 0.1, 0.1

SEARCH = {
    "learning_rate": RATE,
    "binary_search_steps": SEARCHES,
    "max_iter": STEPS,
    "initial_const": CONST,
    "batch_size": 128,
}
# CONST, 2 CONST, 4 CONST, 8 CONST: as many values of c as ours may try after a success.
GROWING = {
    "learning_rate": RATE,
    "max_iter": STEPS,
    "initial_const": CONST,
    "largest_const": CONST * 2**SEARCHES - 1e-9,
    "const_factor": 2.0,
}
ART: dict[Norm, Call] = {
    "l2": Call("CarliniL2Method", SEARCH),
    "l0": Call("CarliniL0Method", SEARCH),
    "linf": Call("CarliniLInfMethod", GROWING),
}
MEASURE: dict[Norm, str] = {"l2": "l2", "l0": "l0_features", "linf": "linf"}


@pytest.mark.benchmark(group="carlini_wagner")
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["l2", "l0", "linf"])
def test_beside_art(benchmark: Any, task: Task, norm: Norm, targeted: bool) -> None:
    """Both do at most STEPS steps for one c, SEARCHES values of it, by the same rate."""
    if norm == "linf" and targeted:
        pytest.skip("ART's targeted one takes any class but the target for a success")
    network, images, targets = task
    x, target = images[:: 180 // ROWS][:ROWS], targets[:: 180 // ROWS][:ROWS]
    y = network(x).argmax(1)
    goal = target if targeted else None

    def ours() -> Any:
        return carlini_wagner(
            network, x, y, goal, norm=norm, steps=STEPS, searches=SEARCHES, learning_rate=RATE,
            initial_const=CONST,
        )  # fmt: skip

    def art() -> Tensor:
        return generate(ART[norm], network, x, y, goal, AttackContext(INFO))

    rounds = [(seconds(ours), seconds(art)) for _ in range(ROUNDS)]
    ratios = [theirs / own for own, theirs in rounds]
    benchmark.pedantic(ours, rounds=1)
    benchmark.extra_info.update(rows=ROWS, pairs=ROUNDS)
    for name, found in (("ours", ours().x_adv), ("art", art())):
        won = reached(network(found).detach(), y, goal)
        far = getattr(distances(x, found), MEASURE[norm]).double()[won]
        benchmark.extra_info[f"{name}_success_rate"] = round(float(won.double().mean()), 3)
        benchmark.extra_info[f"{name}_mean_{norm}"] = round(float(far.mean()), 4)
    benchmark.extra_info.update(
        passes_a_row=round(float(ours().iterations.double().mean())),
        seconds=round(statistics.median(own for own, _ in rounds), 2),
        art_seconds=round(statistics.median(theirs for _, theirs in rounds), 2),
        art_times_slower=round(statistics.median(ratios), 1),
        range=[round(min(ratios), 1), round(max(ratios), 1)],
    )
