"""What JSMA costs as inputs and batches grow. Run by `make benchmark`; asserts no times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from attacks.jsma.attack import jsma

STEPS = 10
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
DIMENSIONS = (64, 192, 784, 1568, 3072, 6144, 12_288)


def network(d: int) -> nn.Module:
    """One hidden layer, so that the network's own cost is linear in d."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 10)).requires_grad_(False)


def run(benchmark: Any, d: int, batch: int, output: str) -> None:
    model = network(d)
    x = torch.rand(batch, d) * 0.5
    # A target that no small change reaches, so that every row takes every step.
    target = model(x).argmin(dim=1)
    with torch.no_grad():
        model[2].bias.copy_(torch.zeros(10))
    arguments = {"theta": 1e-3, "max_features": 2 * STEPS, "output": output}
    iterations = jsma(model, x, target, **arguments).iterations
    benchmark.pedantic(lambda: jsma(model, x, target, **arguments), rounds=5, warmup_rounds=1)
    row_steps = max(int(iterations.sum()), 1)
    micro = benchmark.stats.stats.median * 1e6 / row_steps if benchmark.stats else 0.0
    benchmark.extra_info.update(d=d, batch=batch, output=output, row_steps=row_steps)
    benchmark.extra_info["microseconds_a_row_and_step"] = round(micro, 2)


@pytest.mark.benchmark(group="cost against d, 64 rows")
@pytest.mark.parametrize("output", ["log_odds", "logits"])
@pytest.mark.parametrize("d", DIMENSIONS)
def test_cost_against_d(benchmark: Any, d: int, output: str) -> None:
    run(benchmark, d, 64, output)


@pytest.mark.benchmark(group="cost against batch, d = 784")
@pytest.mark.parametrize("output", ["log_odds", "logits"])
@pytest.mark.parametrize("batch", BATCHES)
def test_cost_against_batch(benchmark: Any, batch: int, output: str) -> None:
    run(benchmark, 784, batch, output)
