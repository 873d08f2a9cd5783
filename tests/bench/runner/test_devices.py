"""The edges of an accelerator, without one: no room, errors that stay, what is recorded."""

from __future__ import annotations

import json

import torch

import bench
from bench.evidence import environment
from bench.evidence.environment import accelerator, hardware
from bench.plugins.contracts import DataSettings
from bench.runner import processes, worker
from bench.runner.state import ProcessState
from bench.runner.task import Settings

MATRIX = """
name = "room"
recipe = "smoke"
sources = 40
[[defense]]
name = "small_device"
room = [1, 40, 10000]
[[attack]]
name = "pgd"
eps = 0.2
steps = 4
"""

PLUGIN = '''
"""A network that has room for so many rows."""
from dataclasses import dataclass

import torch

import bench


class Small(torch.nn.Module):
    def __init__(self, network, room):
        super().__init__()
        self.network, self.room = network, room

    def forward(self, x):
        if x.requires_grad and len(x) > self.room:  # what a gradient keeps takes the room
            raise torch.OutOfMemoryError(f"Tried to allocate {len(x)} rows")
        return self.network(x)


@bench.defense("small_device")
@dataclass(frozen=True)
class SmallDevice(bench.Defense):
    """Trained plainly, on a device with little room."""

    room: int

    def build(self, context):
        return Small(context.network(), self.room)

    def fit(self, model, train, context):
        context.train(model, train.x, train.y)
'''


def test_a_device_without_room_is_asked_about_fewer_rows_and_fails_where_that_is_no_help(
    command, tmp_path
) -> None:
    matrix, plugin = tmp_path / "room.toml", tmp_path / "small.py"
    matrix.write_text(MATRIX)
    plugin.write_text(PLUGIN)
    out = tmp_path / "run"
    done = command(
        "run", "--matrix", matrix, "--plugin", plugin, "--out", out, "--cache-dir",
        tmp_path / "cache", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code in (0, 1), done.output
    rows = json.loads((out / "results.json").read_text())
    none, little, enough = sorted(rows, key=lambda row: row["defense_params"]["room"])
    assert little["status"] == enough["status"] == "done", [row["reason"] for row in rows]
    for column in ("successes", "attempts", "robust_accuracy", "linf_mean"):
        assert little[column] == enough[column], column
    models = json.loads((out / "models.json").read_text())
    less, plain = (one for one in models if one["defense_params"]["room"] > 1)
    assert less["errors"] == plain["errors"] == {}  # no room is nothing that a model did
    for found in ("sensitivity", "suspicion", "flags"):
        assert less[found] == plain[found], found
    assert none["status"] == "failed"
    assert "Tried to allocate" in none["reason"]


def test_an_error_of_the_device_ends_its_process(monkeypatch) -> None:
    state = ProcessState()
    assert worker._stays(state, ())

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert not worker._stays(state, ())


def test_a_gpu_is_recorded_with_its_libraries_and_is_part_of_a_key(monkeypatch, tmp_path) -> None:
    assert accelerator("cpu") == {}
    assert hardware("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    assert hardware("cuda:1") == "cuda: A card"
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n")
    monkeypatch.setattr(environment, "DRIVER", told)
    found = accelerator("cuda")["accelerator"]
    assert found["driver"] == "550.54.15"
    assert set(found) == {"cuda", "cudnn", "driver"}
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "none")
    assert accelerator("cuda")["accelerator"]["driver"] is None


def test_the_surrogate_stands_where_its_model_does() -> None:
    class Far(bench.Defense):
        def surrogate(self, model):
            found = torch.nn.Sequential(model)
            found.register_buffer("own", torch.zeros(1))  # on the CPU, as a plugin makes it
            return found

    model = torch.nn.Linear(2, 2).to("meta")
    assert worker.attacked(Far(), model).own.device.type == "meta"


def test_a_run_on_cuda_takes_every_gpu_of_the_first_ones_model_and_each_process_keeps_its_own(
    monkeypatch, tmp_path
) -> None:
    names = {"cuda:0": "A", "cuda:1": "A", "cuda:2": "B", "cuda:3": "A"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    assert processes.devices("cuda") == ["cuda:0", "cuda:1", "cuda:3"]
    assert processes.default_workers("cuda") == 3
    assert processes.devices("cuda:2") == ["cuda:2"]
    assert processes.devices("cpu") == ["cpu"]
    monkeypatch.setattr(processes, "_Process", lambda settings, alone: Standing(settings))
    executor = processes.LocalExecutor(Settings(tmp_path, tmp_path, DataSettings(), "cuda"), 4)
    first = [executor._take(once=False) for _ in range(4)]
    assert [one.settings.device for one in first] == ["cuda:0", "cuda:1", "cuda:3", "cuda:0"]
    executor._living.discard(first[1])  # it died: what takes its place stands where it stood
    assert executor._take(once=True).settings.device == "cuda:1"


class Standing:
    """A process that nobody starts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
