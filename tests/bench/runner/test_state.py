"""What a plugin may leave behind in a process is seen, and nothing where it leaves nothing."""

import builtins
import functools
import gc
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.plugins import discovery
from bench.runner.state import ProcessState, checksum


@pytest.fixture
def undo() -> Iterator[list[Callable[[], object]]]:
    steps: list[Callable[[], object]] = []
    yield steps
    for step in steps:
        step()


def patched(owner: object, name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    own = name in vars(owner)
    before = getattr(owner, name)
    back = functools.partial(setattr, owner, name, before) if own else None

    def other(*args: object, **more: object) -> object:
        return before(*args, **more)

    return (
        functools.partial(setattr, owner, name, other),
        back or functools.partial(delattr, owner, name),
    )


def hooked() -> tuple[Callable[[], object], Callable[[], object]]:
    handles: list[torch.utils.hooks.RemovableHandle] = []
    return (
        lambda: handles.append(
            nn.modules.module.register_module_forward_hook(lambda *args: None)  # type: ignore[arg-type]
        ),
        lambda: handles.pop().remove(),
    )


def threaded() -> tuple[Callable[[], object], Callable[[], object]]:
    end = threading.Event()
    return threading.Thread(target=end.wait, daemon=True).start, end.set


def switched(switch: Callable[[object], object], to: object, back: object):
    return functools.partial(switch, to), functools.partial(switch, back)


torch.use_deterministic_algorithms(True)  # the first time it imports, which changes functions
torch.use_deterministic_algorithms(False)
CHANGES = {
    "default dtype": switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": switched(torch.set_default_device, "meta", None),
    "grad mode": switched(torch._C._set_grad_enabled, False, True),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.set_autocast_enabled("cpu", False),
    ),
    "threads of torch": switched(torch.set_num_threads, 2, 1),
    "deterministic algorithms": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "denormal numbers": switched(torch.set_flush_denormal, True, False),
    "precision of matrix products": switched(
        torch.set_float32_matmul_precision, "medium", "highest"
    ),
    "backends of torch": switched(torch._C._set_mkldnn_enabled, False, True),
    "anomaly mode": switched(torch.autograd.set_detect_anomaly, True, False),
    "global hooks": hooked(),
    "floating-point errors of numpy": (
        lambda: np.seterr(all="ignore"), lambda: np.seterr(all="warn", under="ignore"),
    ),
    "recursion limit": switched(sys.setrecursionlimit, 5000, sys.getrecursionlimit()),
    "import path": (lambda: sys.path.append("nowhere"), lambda: sys.path.remove("nowhere")),
    "garbage collector": (gc.disable, gc.enable),
    "threads": threaded(),
    "environment": (
        lambda: os.environ.update(RETORT_LEFT="1"), lambda: os.environ.pop("RETORT_LEFT"),
    ),
    "current folder": switched(os.chdir, "/", str(Path.cwd())),
    "umask": switched(os.umask, 0o077, 0o022),
    "signal handlers": (
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL),
    ),
    "torch.Tensor": patched(torch.Tensor, "sign"),
    "functions of torch": patched(torch, "clamp"),
    "functions of torch.nn.functional": patched(nn.functional, "cross_entropy"),
    "torch.nn.modules.linear.Linear": patched(nn.Linear, "forward"),
    "functions of numpy": patched(np, "sum"),
    "functions of numpy.random": patched(np.random, "seed"),
    "functions of random": patched(random, "seed"),
    "functions of builtins": patched(builtins, "sum"),
    "functions of bench.measure.query": patched(sys.modules["bench.measure.query"], "predict"),
    "bench.plugins.data.Split": patched(sys.modules["bench.plugins.data"].Split, "__len__"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_left_behind_is_seen(what: str) -> None:
    os.umask(0o022)
    state = ProcessState()
    assert state.changes() == []
    leave, back = CHANGES[what]
    leave()
    try:
        found = state.changes()
    finally:
        back()
        if what == "threads":
            while threading.active_count() > 1 and "threads" in state.changes():
                pass
    # Of the environment and of hooks the names too.
    assert what in {item.partition(" (")[0] for item in found}
    assert state.changes() == []


def test_the_work_of_a_cell_leaves_nothing(tmp_path: Path) -> None:
    from attacks.pgd import PGD
    from bench.conformance import tiny_data
    from bench.measure.cell import Sources, attack_sources
    from bench.plugins.contracts import AttackContext

    discovery.load_plugins()
    data = tiny_data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(data.info.features, data.info.classes))
    ids = torch.arange(4)
    state = ProcessState()
    with warnings.catch_warnings():
        sources = Sources(ids, data.test.x[ids], data.test.y[ids])
        attack_sources(model, PGD(eps=0.1), sources, AttackContext(data.info))
    assert state.changes() == []


PLUGIN = """
import collections, functools, itertools, random
import numpy as np, torch
from torch import nn
seen = []
by_class = collections.defaultdict(list)
generator = torch.Generator()
numbers = np.zeros(3)
weights = torch.zeros(3)
dice = random.Random(0)
count = itertools.count()
network = nn.Linear(2, 2)
@functools.cache
def cached(x):
    return x
def default(x, kept=[]):
    kept.append(x)
def closed():
    kept = []
    def inner(x):
        kept.append(x)
    return inner
inner = closed()
class Holder:
    kept = {}
    total = 0
holder = Holder()
holder.kept_here = {}
"""
TRACES = [
    "seen.append(1)",
    "by_class[1]",
    "generator.manual_seed(7)",
    "numbers[0] = 1",
    "weights.data.add_(1)",
    "dice.random()",
    "next(count)",
    "network.weight.data.add_(1)",
    "cached(1)",
    "default(1)",
    "inner(1)",
    "Holder.kept[1] = 2",
    "Holder.total += 1",
    "holder.kept_here[1] = 2",
    "seen = []; seen.append(2)",
    "new = 1",
    "Holder.method = len",
]


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[object]:
    (tmp_path / "stateful.py").write_text(PLUGIN)
    module = discovery.import_plugin(str(tmp_path / "stateful.py"))
    yield module
    del sys.modules[module.__name__]


@pytest.mark.parametrize("trace", TRACES)
def test_what_a_plugin_keeps_for_itself_is_seen(trace: str, plugin) -> None:
    state = ProcessState()
    assert state.changes() == []
    exec(trace, vars(plugin))
    assert state.changes() == [f"the module {plugin.__name__}"]


def test_what_is_imported_for_a_task_is_admitted_as_it_is_before(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(PLUGIN)
    state = ProcessState()
    module = discovery.import_plugin(str(tmp_path / "late.py"))
    assert "import path" in state.changes()
    state.admit()
    assert state.changes() == []
    module.seen.append(1)
    assert state.changes() == [f"the module {module.__name__}"]


def test_a_checksum_sees_every_bit_and_the_order() -> None:
    x = torch.rand(5, 3)
    before = checksum([x, x[:2]])
    assert checksum([x.clone(), x[:2].clone()]) == before
    assert checksum([x[:2], x]) != before
    assert checksum([x.flip(0), x[:2]]) != before
    y = x.clone()
    y.view(torch.int32)[3, 2] ^= 1
    assert checksum([y, x[:2]]) != before
