"""Executors that work on parcels: the same bytes, large things once, refusals before anything."""

import concurrent.futures
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.base.files import write_tensors
from bench.cluster import machine, remote
from bench.cluster.engine import FuturesEngine, Needs
from bench.cluster.parcel import SMALL, Facts, Parcel, Setup, blob_of, facts
from bench.cluster.ray_engine import MISSING, connected
from bench.plugins.contracts import DataSettings
from bench.plugins.data import pack, unpack
from bench.runner.task import Report, Settings
from tests.bench.cluster.clusters import ROOT, evidence
from tests.bench.conftest import Command, options

FACTORY = '''
"""Executors."""
from concurrent.futures import Future, ThreadPoolExecutor


class Lost(ThreadPoolExecutor):
    """Loses what attacks: its machine died, and it gave up."""

    def submit(self, work, *args):
        parcel = args[0]
        if getattr(getattr(parcel, "work", None), "kind", "") == "cell":
            future = Future()
            future.set_exception(RuntimeError("the machine is gone"))
            return future
        return super().submit(work, *args)


def threads():
    return ThreadPoolExecutor(2)


def lost():
    return Lost(2)


def nothing():
    return "nothing"
'''


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    (tmp_path / "factory.py").write_text(FACTORY)
    return tmp_path / "factory.py"


@pytest.mark.process
@pytest.mark.xdist_group("executors")
def test_an_executor_of_ones_own_leaves_the_same_bytes(
    finished: Path, small: Path, tmp_path: Path, factory: Path, command: Command
) -> None:
    out, before = tmp_path / "there", set(machine._home().glob("*-"))
    cold = ("--cache-dir", tmp_path / "cache")
    done = command("run", *options(small), *cold, "--executor", f"{factory}:threads", "--out", out)
    assert done.exit_code == 0, done.output
    assert evidence(out) == evidence(finished)
    # Nothing is left on the machine: a busy one removes it after the run has ended.
    end = time.monotonic() + 60
    while set(machine._home().glob("*-")) - before and time.monotonic() < end:
        time.sleep(0.2)
    assert set(machine._home().glob("*-")) <= before


OWN = '''
"""A network."""
import torch

print("built by", __file__)


def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
'''
MATRIX = """
name = "own"
sources = 5
reference = "none"
[[defense]]
name = "checkpoint"
builder = "own.py:build"
weights = "parts/own.safetensors"
[[attack]]
name = "fgsm"
eps = 0.1
"""


@pytest.mark.process
@pytest.mark.xdist_group("executors")
def test_what_plugins_read_travels_with_the_task(
    tmp_path: Path, factory: Path, command: Command
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own.toml").write_text(MATRIX)
    weights = {"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}
    write_tensors(tmp_path / "parts" / "own.safetensors", weights)
    args = ("--matrix", tmp_path / "own.toml", "--device", "cpu", "--offline", "--trust")
    done = [
        command(
            "run", *args[:-1], "--cache-dir", tmp_path / name, "--out", tmp_path / f"{name}-run",
            "--executor", executor,
        )
        for name, executor in (("here", "local"), ("there", f"{factory}:threads"))
    ]  # fmt: skip
    assert [item.exit_code for item in done] == [0, 0], done[1].output
    assert evidence(tmp_path / "here-run") == evidence(tmp_path / "there-run")
    log = (tmp_path / "there-run" / "workers.log").read_text()
    assert f"/files{tmp_path}/own.py" in log  # the copy that travelled, not the file that lies here
    # Nor does it cost a process: neither the network's file, which a cell imports first, nor
    # scikit-learn, which ART imports there and the data set here.
    for name in ("here", "there"):
        assert "left other" not in (tmp_path / f"{name}-run" / "workers.log").read_text()


@pytest.mark.process
@pytest.mark.xdist_group("executors")
def test_what_an_executor_loses_is_a_failure_with_a_reason(
    small: Path, tmp_path: Path, factory: Path, command: Command
) -> None:
    out = tmp_path / "out"
    done = command("run", *options(small), "--executor", f"{factory}:lost", "--out", out)
    assert done.exit_code == 1
    assert "the executor lost it: RuntimeError: the machine is gone" in " ".join(
        done.output.split()
    )


@pytest.mark.process
@pytest.mark.xdist_group("executors")
def test_large_things_travel_when_they_are_missed(
    small: Path, tmp_path: Path, factory: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, list[int]] = {}
    submit = FuturesEngine.submit
    on = FuturesEngine.on

    def watched(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asking(self: FuturesEngine, *args: Any, **more: Any) -> Any:
            for blob in args[-1].blobs if isinstance(args[-1], Parcel) else ():
                content = blob.read()
                if content is not None and len(content) > SMALL:
                    sent.setdefault(blob.sha256, []).append(len(content))
            return ask(self, *args, **more)

        return asking

    monkeypatch.setattr(FuturesEngine, "submit", watched(submit))
    monkeypatch.setattr(FuturesEngine, "on", watched(on))
    out = tmp_path / "out"
    done = command("run", *options(small), "--executor", f"{factory}:threads", "--out", out)
    assert done.exit_code == 0, done.output
    tasks = len(list((out / "cells").glob("*.json")))
    data = max(sent.values())  # the largest
    assert len(data) == 1  # of the data set every task has need
    # Of weights as many as met there before the first of them had come.
    assert all(len(sizes) < tasks for sizes in sent.values())


def refused(command: Command, small: Path, out: Path, *args: object) -> str:
    done = command("run", *options(small), "--out", out, *args)
    assert done.exit_code == 2, done.output
    assert not out.exists()  # nothing was run, or written
    return " ".join(done.output.split())


def test_an_unknown_executor_is_refused(small: Path, tmp_path: Path, command: Command) -> None:
    said = refused(command, small, tmp_path / "out", "--executor", "slurm")
    assert "unknown executor 'slurm': valid: local, ray, my_module:factory" in said


def test_a_factory_that_makes_none_is_refused(
    small: Path, tmp_path: Path, factory: Path, command: Command
) -> None:
    said = refused(command, small, tmp_path / "out", "--executor", f"{factory}:nothing")
    assert "must return a concurrent.futures.Executor, and it returned str" in said
    said = refused(command, small, tmp_path / "out", "--executor", f"{factory}:thread")
    assert "did you mean 'threads'" in said


def test_without_ray_it_is_said_how_to_install_it(
    small: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert MISSING in refused(command, small, tmp_path / "out", "--executor", "ray")


@pytest.mark.parametrize("address", ["nowhere", "localhost:port", "ray://", "host:1:2"])
def test_an_address_that_is_none_is_refused(
    small: Path, tmp_path: Path, command: Command, address: str
) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    said = refused(command, small, tmp_path / "out", "--executor", "ray", "--address", address)
    assert "auto, local, HOST:PORT or ray://HOST:PORT is expected" in said


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_does_not_answer_is_refused(scheme: str) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
        with (
            pytest.raises(Exception, match="no Ray cluster answers at"),
            connected(address, gpus=False),
        ):
            pass


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"torch": "1.0"}, "has torch 1.0 and not"),
        ({"python": "3.8"}, "has python 3.8 and not"),
        ({"retort": "0"}, "has other code of Retort"),
    ],
)
def test_a_machine_that_is_not_alike_is_refused(
    small: Path, tmp_path: Path, factory: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    there: dict[str, str], told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(machine, "facts", lambda: replace(facts(), **there))
    said = refused(command, small, tmp_path / "out", "--executor", f"{factory}:threads")
    assert told in said
    assert "install the same Python, torch, Retort and plugins there" in said


@pytest.mark.process
def test_a_machine_with_another_plugin_is_refused(
    small: Path, tmp_path: Path, factory: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "attack_source", lambda document: "of another attack")
    said = refused(command, small, tmp_path / "out", "--executor", f"{factory}:threads")
    assert "the code of the attack 'jsma' is another one there" in said


def test_facts_that_are_alike_differ_in_nothing() -> None:
    assert facts().differing(facts()) is None
    other = Facts("3.8", "1.0", facts().numpy, "0")
    assert facts().differing(other) == (
        f"python 3.8 and not {facts().python}, torch 1.0 and not {facts().torch}, "
        "other code of Retort"
    )


def test_a_data_set_travels_as_it_is(tmp_path: Path) -> None:
    from bench.base.types import Spec
    from bench.plugins import discovery, registry
    from bench.plugins.contracts import DataSettings

    discovery.load_plugins()
    data = registry.DATASETS.make(Spec("digits", {})).load(DataSettings(offline=True))
    (tmp_path / "packed").write_bytes(pack(data))
    there = unpack(tmp_path / "packed")
    assert (there.info, there.fingerprint) == (data.info, data.fingerprint)
    for name in ("train", "validation", "test"):
        ours, theirs = getattr(data, name), getattr(there, name)
        assert torch.equal(ours.stored, theirs.stored)
        assert ours.stored.dtype == theirs.stored.dtype
        assert torch.equal(ours.y, theirs.y)


@pytest.mark.process
def test_another_gpu_is_another_worker_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = blob_of(b"a data set", lambda content: None)
    settings = Settings(tmp_path, tmp_path, DataSettings(offline=True), base=tmp_path)
    parcel = Parcel(Setup("0" * 16, facts(), settings, packed, {}), (visible, ()), {})
    found = []
    for gpu in ("0", "0", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
        station = machine._station(parcel.setup, "")
        found.append((station, machine.carry_out(parcel).answer))
    machine.remove("0" * 16)
    assert [answer for _, answer in found] == [("0", None), ("0", None), ("1", None)]
    assert found[0][0] is found[1][0] is not found[2][0]


def visible(settings: Settings) -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_tasks_like_it_say_what_a_task_needs() -> None:
    from bench.base.types import Outcome
    from bench.runner.task import Task

    executor = object.__new__(remote.RemoteExecutor)
    executor._needs = {}
    task = Task("0", "cell", {"attack": {"name": "pgd"}}, {}, {})
    for memory in (1000, 3000, 2000):
        executor._learn(task, Report(Outcome("done"), memory=memory, gpu=0.2))
    assert executor._needs["cell", "pgd"] == Needs(memory=3300, gpu=pytest.approx(0.22))


def test_a_future_that_raises_ends_as_a_report() -> None:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_exception(OSError("gone"))
    executor = object.__new__(remote.RemoteExecutor)
    executor.engine = FuturesEngine(_Ready(future), 1)
    told: list[Any] = []
    executor._send(object(), Needs(), lambda delivery, reason: told.append((delivery, reason)))
    assert told == [(None, "the executor lost it: OSError: gone")]


class _Ready(concurrent.futures.Executor):
    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self.future = future

    def submit(self, *args: Any, **more: Any) -> concurrent.futures.Future[Any]:
        return self.future


SUBMITIT = '''
"""What the example needs of submitit."""
from concurrent.futures import ThreadPoolExecutor


class AutoExecutor:
    def __init__(self, folder):
        self.pool = ThreadPoolExecutor(2)

    def update_parameters(self, **parameters):
        assert parameters

    def submit(self, work, *args):
        return self.pool.submit(work, *args)
'''


@pytest.mark.process
@pytest.mark.xdist_group("executors")
def test_the_example_of_an_executor_on_slurm_works(
    finished: Path, small: Path, tmp_path: Path, command: Command
) -> None:
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example: slurm -->\s*```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(code.splitlines()) < 30
    (tmp_path / "my_slurm.py").write_text(code)
    (tmp_path / "submitit.py").write_text(SUBMITIT)
    out = tmp_path / "out"
    done = command(
        "run", *options(small), "--executor", f"{tmp_path}/my_slurm.py:factory", "--out", out
    )
    assert done.exit_code == 0, done.output
    assert evidence(out) == evidence(finished)
