"""What JSMA costs beside the network that it attacks. Run by `make benchmark`; asserts no times."""

from __future__ import annotations

import statistics
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attacks.jsma.attack import jsma
from attacks.jsma.pairs import best_pair
from bench.base.types import DataInfo
from bench.training.networks import PapernotCifar10, PapernotMnist
from tests.benchmarks.conftest import seconds

ROWS, FEATURES, ROUNDS = 180, 112, 3


def passes(network: nn.Module, batches: list[Tensor], backward: int) -> None:
    """Forward and backward passes, and nothing else, on the inputs of an attack."""
    for batch in batches:
        leaf = batch.requires_grad_()
        logits = network(leaf)
        weights = torch.ones_like(logits)
        for left in reversed(range(backward)):
            torch.autograd.grad(logits, leaf, weights, retain_graph=left > 0)


@pytest.mark.benchmark(group="jsma")
@pytest.mark.parametrize("output", ["probs", "log_odds", "logits"])
def test_jsma_beside_its_bare_passes(
    benchmark: Any, task: tuple[nn.Module, Tensor, Tensor], output: str
) -> None:
    network, x, target = task
    batches: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0].requires_grad:  # the probes of one row are part of the attack's cost
            batches.append(inputs[0].detach())

    hook = network.register_forward_pre_hook(keep)
    result = jsma(network, x, target, max_features=FEATURES, output=output)
    hook.remove()
    backward = 2 if output == "logits" else 1
    ratios, bare = [], []

    def attack() -> None:
        jsma(network, x, target, max_features=FEATURES, output=output)

    for _ in range(ROUNDS):  # pairs, so that a busy machine disturbs both alike
        bare.append(seconds(lambda: passes(network, batches, backward)))
        ratios.append(seconds(attack) / bare[-1])
    benchmark.pedantic(attack, rounds=1)
    benchmark.extra_info.update(
        rows=ROWS,
        row_passes=sum(map(len, batches)),
        success_rate=round(float(result.success.float().mean()), 4),
        bare_seconds=round(statistics.median(bare), 3),
        ratio_to_bare_passes=round(statistics.median(ratios), 3),
        ratio_range=[round(min(ratios), 3), round(max(ratios), 3)],
    )


def dense_search(a: Tensor, b: Tensor) -> None:
    """The search over all d^2 pairs, a row at a time: the whole batch would not fit."""
    for row_a, row_b in zip(a, b, strict=True):
        sum_a, sum_b = row_a[:, None] + row_a, row_b[:, None] + row_b
        scores = (sum_a * sum_b).masked_fill_((sum_a <= 0) | (sum_b <= 0), -1)
        scores.fill_diagonal_(-1)
        scores.argmax()


class LiveMemory(TorchDispatchMode):
    """The most memory that storages made inside hold at one time, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._track(tensor)
        return out

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # the only identity that views share
        if key in self.live:
            return
        self.live[key] = storage.nbytes()
        self.peak = max(self.peak, sum(self.live.values()))
        weakref.finalize(storage, self.live.pop, key, None)


@pytest.mark.benchmark(group="pair choice")
@pytest.mark.parametrize(("d", "channels", "side"), [(784, 1, 28), (3072, 3, 32)])
def test_pair_choice_beside_one_pass(benchmark: Any, d: int, channels: int, side: int) -> None:
    torch.manual_seed(0)
    rows, dense_rows = 900, 9
    info = DataInfo("random", (channels, side, side), 10, (0.5,) * channels, (0.3,) * channels)
    architecture = PapernotMnist() if channels == 1 else PapernotCifar10()
    network = architecture.build(info).eval().requires_grad_(False)
    x = torch.rand(rows, channels, side, side)
    x = torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
    leaf = x.requires_grad_()
    logits = network(leaf)
    own = torch.zeros_like(logits).index_fill_(1, torch.tensor(3), 1)
    (alpha,) = torch.autograd.grad(logits, leaf, own, retain_graph=True)
    (beta,) = torch.autograd.grad(logits, leaf, 1 - own)
    a, b = alpha.reshape(rows, d), -beta.reshape(rows, d)
    allowed = torch.ones(rows, d, dtype=torch.bool)
    one_pass = seconds(lambda: passes(network, list(x.detach().split(180)), 1))
    dense_time = seconds(lambda: dense_search(a[:dense_rows], b[:dense_rows])) * rows / dense_rows
    benchmark.pedantic(lambda: best_pair(a, b, allowed), rounds=5, warmup_rounds=1)
    ours = statistics.median(seconds(lambda: best_pair(a, b, allowed)) for _ in range(5))
    with LiveMemory() as memory:
        best_pair(a, b, allowed)
    benchmark.extra_info.update(
        rows=rows,
        d=d,
        share_of_one_pass=round(ours / one_pass, 4),
        dense_search_times_slower=round(dense_time / ours, 1),
        dense_search_measured_on_rows=dense_rows,
        peak_bytes=memory.peak,
        peak_bytes_in_rows_times_d_floats=round(memory.peak / (4 * rows * d), 1),
        dense_bytes_of_one_d_by_d_tensor_a_row=4 * rows * d * d,
    )
