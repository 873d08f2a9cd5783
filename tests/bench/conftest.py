"""A small finished run, made once a session in this process, and commands called in it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from typer.testing import CliRunner, Result

from bench.evidence.environment import device_name
from bench.measure.arithmetic import exact
from bench.runner.task import Answer, Report, Settings, Task
from bench.runner.worker import Worker, reason_of

T = TypeVar("T")

MATRIX = """
name = "small"
recipe = "smoke"
sources = 12
[[defense]]
name = "undefended"
[[defense]]
name = "noisy"
[[attack]]
name = "jsma"
gamma = 0.1
targets = "random"
[[attack]]
name = "fgsm"
eps = [0.1, 0.2]
"""
NOISY = '''
"""A defense that answers the same query differently."""
from dataclasses import dataclass

import torch
from torch import nn

import bench


class Noise(nn.Module):
    """Adds noise to the input of a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x + 0.02 * torch.randn_like(x))


@bench.defense("noisy")
@dataclass(frozen=True)
class Noisy(bench.Defense):
    """Declared stochastic, and so it is."""

    stochastic = True

    def requires(self):
        return {"plain": bench.Spec("undefended")}

    def build(self, context):
        return Noise(context.network())

    def fit(self, model, train, context):
        model.network.load_state_dict(context.fitted["plain"].state_dict())
'''


class InProcess:
    """An executor that runs tasks where it stands: no process to start, none to lose."""

    workers = 1

    def __init__(self, settings: Settings, workers: int, timeout: float | None = None) -> None:
        self.settings = settings
        self.worker = Worker(settings)
        self.device = device_name(settings.device)

    def submit(self, task: Task) -> concurrent.futures.Future[Report]:
        future: concurrent.futures.Future[Report] = concurrent.futures.Future()
        future.set_result(self.worker.run(task))
        return future

    def fresh(
        self, work: Callable[..., T], *args: object, reads: object = ()
    ) -> concurrent.futures.Future[Answer[T]]:
        future: concurrent.futures.Future[Answer[T]] = concurrent.futures.Future()
        try:
            future.set_result((work(self.settings, *args), None))
        except Exception as error:  # noqa: BLE001 (as the pool does)
            future.set_result((None, reason_of(error)))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


Command = Callable[..., Result]


def _invoke(*args: object) -> Result:
    from bench.cli import app

    return CliRunner().invoke(app, [str(item) for item in args])


@contextlib.contextmanager
def in_process() -> Iterator[None]:
    """Run what ``run`` would give to workers here, and leave torch as it was."""
    with pytest.MonkeyPatch.context() as patch, exact(threads=1):
        patch.setattr("bench.runner.processes.LocalExecutor", InProcess)
        yield


@pytest.fixture
def command() -> Iterator[Command]:
    """``python -m bench`` in this process, its work done in this process too."""
    with in_process():
        yield _invoke


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``small.toml``, ``noisy.py``, ``cache`` and the finished run ``run``."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.toml").write_text(MATRIX)
    (folder / "noisy.py").write_text(NOISY)
    return folder


@pytest.fixture(scope="session")
def finished(small: Path) -> Path:
    """The finished run; a test that damages it takes a ``copy``."""
    with in_process():
        done = _invoke("run", *options(small), "--out", small / "run")
    assert done.exit_code == 0, done.output
    return small / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def options(small: Path) -> tuple[Any, ...]:
    """The options that made the finished run, but ``--out``."""
    return (
        "--matrix", small / "small.toml", "--plugin", small / "noisy.py",
        "--cache-dir", small / "cache", "--offline", "--device", "cpu",
    )  # fmt: skip
