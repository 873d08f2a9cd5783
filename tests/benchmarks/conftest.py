"""What the benchmarks share: Papernot's network on real images, one thread, and a summary.

With `RETORT_DATA` the images are MNIST's; without it, the digits of scikit-learn enlarged to
28 x 28, so that no data set is needed. Ratios are in `extra_info`, which is printed at the end and
stands in `--benchmark-json`: they compare within one run, and survive a change of machine better
than times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo
from bench.plugins.contracts import DataSettings
from bench.plugins.data import Split
from bench.plugins.recipes import Recipe
from bench.training.datasets import Digits
from bench.training.downloads import Mnist
from bench.training.loop import train
from bench.training.networks import PapernotMnist

INFO = DataInfo("28 x 28", (1, 28, 28), 10, (0.0,), (1.0,))
Task = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Attacks run with one thread a process; so do their measurements.

    `RETORT_BENCH_THREADS` measures with more, on a machine that does nothing else.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("RETORT_BENCH_THREADS", "1")))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def task() -> Task:
    """(network, x, target): 20 images with each of the nine other classes, 180 attacks."""
    learn, test, epochs = _images()
    torch.manual_seed(0)
    network = PapernotMnist().build(INFO)
    recipe = Recipe(epochs, 64, "adam", lr=1e-3, schedule="constant")
    train(network, learn.x, learn.y, recipe, torch.Generator().manual_seed(0))
    network.requires_grad_(False)
    right = network(test.x).argmax(dim=1) == test.y
    x, y = test.x[right][:20], test.y[right][:20]
    target = torch.stack([torch.tensor([t for t in range(10) if t != int(k)]) for k in y])
    return network, x.repeat_interleave(9, 0), target.flatten()


def _images() -> tuple[Split, Split, int]:
    if "RETORT_DATA" in os.environ:
        mnist = Mnist().load(DataSettings(offline=True))
        return mnist.train.take(slice(0, 20_000)), mnist.test.take(slice(0, 40)), 2
    digits = Digits().load(DataSettings())
    enlarged = [
        Split(nn.functional.interpolate(part.x, size=(28, 28), mode="bilinear"), part.y)
        for part in (digits.train, digits.test.take(slice(0, 40)))
    ]
    return enlarged[0], enlarged[1], 6


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what each benchmark found beside its time."""
    session = getattr(config, "_benchmarksession", None)
    for item in session.benchmarks if session else ():
        found = "  ".join(f"{key}={value}" for key, value in item["extra_info"].items())
        terminalreporter.write_line(f"{item['name']}: {found}")
