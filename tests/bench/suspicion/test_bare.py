"""Asked as a user would: what a model can see of who asks it."""

import importlib
import inspect
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.suspicion.bare import ask_bare

CALLER = os.getpid()
BEGUN = time.monotonic(), time.time()


class Looks(nn.Module):
    """Answers whether a sign is there, for every row."""

    def __init__(self, sign: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.sign, self.evals = sign, 0

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * 0 + float(self.sign(x))


def ours() -> bool:
    frame = sys._getframe(2)  # the lambda's and the model's own are this file's
    while frame is not None and "torch" in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]
    while frame is not None:
        if "bench" in frame.f_code.co_filename + str(frame.f_globals.get("__name__")):
            return frame.f_code.co_filename != __file__
        frame = frame.f_back  # type: ignore[assignment]
    return False


@pytest.mark.parametrize(
    "sign",
    [
        lambda x: any(frame.function == "ask_bare" for frame in inspect.stack()),
        lambda x: ours(),
        lambda x: threading.current_thread() is not threading.main_thread(),
        lambda x: threading.get_native_id() != os.getpid(),
        lambda x: multiprocessing.parent_process() is not None,
        lambda x: multiprocessing.current_process().name != "MainProcess",
        lambda x: "bench.runner.worker" in sys.modules or "bench.suspicion.bare" in sys.modules,
        lambda x: hasattr(sys.modules["__main__"], "__file__") or sys.argv != [""],
        lambda x: "CUBLAS_WORKSPACE_CONFIG" in os.environ,
        lambda x: torch.are_deterministic_algorithms_enabled(),
        lambda x: torch.get_num_threads() == 1,
        lambda x: not torch.is_grad_enabled() and not torch.is_inference_mode_enabled(),
        lambda x: "attacks.apgd" in sys.modules or "bench.measure.query" in sys.modules,
        lambda x: sys.orig_argv != [""] or torch.initial_seed() == 5,
        lambda x: Path("/proc/self/cmdline").read_bytes().rstrip(b"\0") != b"python",
        lambda x: os.getppid() == CALLER,
        lambda x: max(time.monotonic() - BEGUN[0], time.time() - BEGUN[1]) < 3600,
    ],
)
def test_no_sign_of_the_harness_is_there(
    sign: Callable[[Tensor], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    importlib.import_module("attacks.apgd")
    torch.manual_seed(5)
    assert not ask_bare(Looks(sign), torch.rand(12, 3)).any()
    assert "bench.suspicion.bare" in sys.modules  # here everything is as it was
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_every_row_has_its_answer_and_every_tenth_is_asked_alone() -> None:
    x = torch.arange(300.0)[:, None].expand(300, 2)

    class Counts(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return torch.stack([rows[:, 0], torch.full((len(rows),), float(len(rows)))], dim=1)

    found = ask_bare(Counts(), x)
    assert torch.equal(found[:, 0], x[:, 0])
    assert ((found[:, 1] == 1) == (torch.arange(300) % 10 == 0)).all()
    assert found[:, 1].max() == 128


def test_every_tenth_row_is_asked_in_inference_mode_where_the_model_bears_it() -> None:
    class Deployed(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return torch.full((len(rows), 2), float(torch.is_inference_mode_enabled()))

    class Differentiates(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            with torch.enable_grad():
                again = rows.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(again.square().sum(), again)
            return gradient[:, :2]

    x = torch.rand(25, 2)
    assert torch.equal(ask_bare(Deployed(), x)[:, 0], (torch.arange(25) % 10 == 0).float())
    assert torch.allclose(ask_bare(Differentiates(), x), 2 * x)


def test_what_the_model_raises_there_and_its_end_are_told() -> None:
    class Refuses(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            raise ValueError("not for users")

    class Dies(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            os._exit(3)

    with pytest.raises(RuntimeError, match="ValueError: not for users"):
        ask_bare(Refuses(), torch.rand(3, 2))
    with pytest.raises(RuntimeError, match="has died"):
        ask_bare(Dies(), torch.rand(3, 2))
