"""Modules handed over in memory: one path with the command, and no pickle is read untrusted."""

import functools
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

import bench
from bench.base.types import UserError
from bench.handed.identity import identity
from bench.plugins import unpickle
from bench.plugins.unpickle import pickled, unpickled
from tests.bench.conftest import Command, in_process


class Blobs(nn.Module):
    """Two classes of 6 features: which half is larger; answers in a tuple."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        weight = torch.tensor([[1.0] * 3 + [-1.0] * 3, [-1.0] * 3 + [1.0] * 3])
        self.linear = nn.Linear(6, 2, bias=False)
        self.linear.weight.data = scale * weight

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.linear(x), None


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    y = np.arange(70) % 2
    x = random.uniform(0.3, 0.5, (70, 6)).astype(np.float32)
    x[y == 0, :3] += 0.3
    x[y == 1, 3:] += 0.3
    return x, y


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> bench.Verdict:
    """Three models with a reference, on tiny data."""
    folder = tmp_path_factory.mktemp("live")
    with in_process(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return bench.judge(
            [Blobs(1.0), Blobs(1.1), Blobs(1.2)], *data(), norm="linf", budget="0.25",
            reference=Blobs(0.9), name="blobs", workers=1, device="cpu", cache_dir=folder / "cache",
        )  # fmt: skip


def test_a_verdict_says_what_it_is_and_where_it_lies(judged: bench.Verdict) -> None:
    assert judged.label == "broken"
    assert judged.worst_case == [0.0, 0.0, 0.0]
    assert judged.delta == [0.0, 0.0, 0.0]
    assert judged.broken_by
    assert judged.folder.name.startswith("blobs-linf-0.25-")
    assert (judged.folder / "judge.toml").exists()
    text = str(judged)
    assert repr(judged) == text
    assert text.startswith("BROKEN: L∞ 0.25 on blobs, 70 sources")
    assert judged.reason in text
    assert "retort verify" in text
    shown = judged._repr_html_()
    assert "<table" in shown
    assert "data:image/png;base64" in shown


def test_the_same_modules_again_attack_nothing_anew(
    judged: bench.Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (judged.folder / "cells").glob("*.parquet")}
    with in_process():
        again = bench.judge(
            [Blobs(1.0), Blobs(1.1), Blobs(1.2)], *data(), norm="linf", budget=0.25,
            reference=Blobs(0.9), name="blobs", out=judged.folder, workers=1, device="cpu",
        )  # fmt: skip
    assert json.loads(json.dumps(again.row)) == json.loads(json.dumps(judged.row))
    after = {p: p.stat().st_mtime_ns for p in (judged.folder / "cells").glob("*.parquet")}
    assert before == after


def test_another_model_or_other_data_leave_a_folder_as_it_was(judged: bench.Verdict) -> None:
    def contents() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in judged.folder.rglob("*") if p.is_file()}

    before = contents()
    x, y = data()
    other = Blobs(1.0)
    other.temperature = 2.0  # type: ignore[assignment] # an attribute, the same weights
    models, plain = [Blobs(1.0), Blobs(1.1), Blobs(1.2)], Blobs(0.9)
    for given, reference, inputs, budget, message in [
        ([other, Blobs(1.1), Blobs(1.2)], plain, x, 0.25, "run of another model"),
        (models, Blobs(0.8), x, 0.25, "run of another reference"),
        (models, None, x, 0.25, "run of another reference"),
        (models, plain, x * 0.999, 0.25, "a run on other data"),
        (models, plain, x, 0.2, "holds a run of another 'blobs'"),
    ]:
        with in_process(), pytest.raises(UserError, match=message):
            bench.judge(
                given, inputs, y, norm="linf", budget=budget, reference=reference, name="blobs",
                out=judged.folder, workers=1, device="cpu",
            )  # fmt: skip
    after = contents()
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert not {name for name in changed if not name.endswith((".pkl", ".npz"))}
    assert after.keys() == before.keys()
    with in_process():
        again = bench.judge(
            models, x, y, norm="linf", budget=0.25, reference=plain, name="blobs",
            out=judged.folder, workers=1, device="cpu",
        )  # fmt: skip
    assert again.worst_case == judged.worst_case


@pytest.mark.process
def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, numpy as np, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "print('from the top', flush=True)\n"
        "import bench\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(6, 2, bias=False)\n"
        "        self.linear.weight.data = torch.tensor([[1.0, 1, 1, -1, -1, -1]] * 2)\n"
        "        self.linear.weight.data[1] *= -1\n"
        "    def forward(self, x):\n"
        "        return self.linear(x)\n"
        "x = np.random.RandomState(0).rand(8, 6).astype('f4')\n"
        "y = (x[:, :3].sum(1) < x[:, 3:].sum(1)).astype(int)\n"
        "print(bench.judge(Net(), x, y, norm='linf', budget=np.float32(0.25), workers=1,\n"
        "                  device='cpu', cache_dir='cache').label)\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, check=False, cwd=tmp_path,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["from the top", "inconclusive"], done.stderr


def test_nobody_else_s_pickle_is_read_without_a_word(
    judged: bench.Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    copy = Path(shutil.copytree(judged.folder, tmp_path / "copy"))
    monkeypatch.setattr(unpickle, "_trusted", set())
    refused = command("verify", copy)
    assert refused.exit_code == 2
    assert "--unpickle" in refused.output
    refused = command("run", "--matrix", copy / "judge.toml", "--out", copy)
    assert refused.exit_code == 2
    assert "reading it runs its code" in refused.output
    checked = command("verify", copy, "--unpickle")
    assert checked.exit_code == 0, checked.output


def test_what_is_no_module_or_cannot_be_pickled_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = data()
    for models, message in [
        ([], "no model"),
        (["w.pt"], "must be a torch.nn.Module, got str"),
        (None, "must be a torch.nn.Module, got NoneType"),
        (lambda x: x, "must be a torch.nn.Module, got function"),
        ([Blobs(1.0), Blobs(1.0)], "the same module was given twice"),
    ]:
        with pytest.raises(UserError, match=message):
            bench.judge(models, x, y, norm="linf", budget=0.1, out="out")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="compared with itself"):
        bench.judge(Blobs(1.0), x, y, norm="linf", budget=0.1, reference=Blobs(1.0), out="out")
    for option in ("worker", "dataset", "seeds", "budgets"):
        with pytest.raises(UserError, match=f"unknown option '{option}'"):
            bench.judge(Blobs(1.0), x, y, norm="linf", budget=0.1, **{option: 1})
    with pytest.raises(UserError, match="a budget is a number or a text"):
        bench.judge(Blobs(1.0), x, y, norm="linf", budget=None)  # type: ignore[arg-type]
    held = Blobs(1.0)
    held.handle = (item for item in ())  # type: ignore[assignment]
    with pytest.raises(UserError, match="cannot be handed to other processes"):
        pickled(held)


@pytest.mark.process
def test_a_class_of_a_notebook_travels_with_its_module(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    source = (
        "from torch import nn\n"
        "class Local(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x)\n"
    )
    exec(source, names)
    model = names["Local"]()
    path = tmp_path / "m.pkl"
    path.write_bytes(pickled(model))
    x = torch.full((3, 2), 0.25)
    assert torch.equal(unpickled(path)(x), model(x))
    code = (
        "import sys, hashlib, pathlib, torch; from bench.plugins.unpickle import trust, unpickled;"
        "path = pathlib.Path(sys.argv[1]); trust([hashlib.sha256(path.read_bytes()).hexdigest()]);"
        "print(unpickled(path)(torch.full((3, 2), 0.25)).tolist())"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert json.loads(done.stdout) == model(x).tolist(), done.stderr
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="reading it runs its code"):
        unpickled(path)


def test_the_identity_is_of_code_structure_and_weights() -> None:
    assert identity(Blobs(1.0)) == identity(Blobs(1.0))
    assert identity(Blobs(1.0)) != identity(Blobs(2.0))
    assert identity(nn.Sequential(nn.ReLU())) != identity(nn.Sequential(nn.Tanh()))


FACTOR = 1.0


def scaled(x: torch.Tensor) -> torch.Tensor:
    return FACTOR * x


class Odd(nn.Module):
    """Answers that hang on what is neither structure nor weight."""

    def __init__(self, temperature: float = 1.0, path: Any = None, mean: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.temperature = temperature
        self.path = path
        self.register_buffer("mean", torch.tensor(mean), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [scaled(row) for row in x]
        return self.layer(torch.stack(rows) - self.mean) / self.temperature


class Based(Odd):
    """Nothing of its own."""


def named(power: int) -> Any:
    return lambda x: x**power


def test_the_identity_is_of_everything_that_answers_may_hang_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = identity(Odd())
    assert plain == identity(Odd())
    assert plain == identity(Odd().train())
    others = [
        Odd(temperature=2.0), Odd(mean=0.5), Odd(path="a"), Odd(path=[1]), Odd(path={"a": 2}),
        Odd(path=(1, np.ones(2))), Odd(path=(1, np.zeros(2))), Odd(path=named(1)),
        Odd(path=named(2)), Odd(path=functools.partial(named, 3)), Odd(path={1, 2}), Based(),
    ]  # fmt: skip
    hooked = Odd()
    hooked.register_forward_hook(lambda *given: -given[2])
    own = Odd()
    own.forward = types.MethodType(lambda self, x: self.layer(x), own)  # type: ignore[method-assign]
    found = [identity(model) for model in (*others, hooked, own)]
    assert len({plain, *found}) == len(found) + 1
    based = identity(Based())
    monkeypatch.setattr(Odd, "forward", lambda self, x: self.layer(x))
    assert identity(Based()) != based  # its base class changed
    monkeypatch.undo()
    assert identity(Odd()) == plain
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2.0)  # what a function of it reads
    assert identity(Odd()) != plain
    one, two = Odd(), Odd()
    for model in (one, two):  # numbered as they come, over all modules
        model.register_forward_hook(scaled)
    assert identity(one) == identity(two)


def test_objects_of_libraries_and_modules_beside_count_by_what_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = load_digits(return_X_y=True)
    forests = [RandomForestClassifier(3, random_state=0).fit(x[:n], y[:n]) for n in (300, 50)]
    assert repr(forests[0]) == repr(forests[1])
    assert len({identity(Odd(path=forest)) for forest in forests}) == 2
    again = pickle.loads(pickle.dumps(forests[0]))
    assert identity(Odd(path=forests[0])) == identity(Odd(path=again))

    monkeypatch.syspath_prepend(tmp_path)
    beside, late = tmp_path / "beside_odd.py", tmp_path / "late_odd.py"
    beside.write_text("SCALE = 1.0\ndef prep(x):\n    return SCALE * x\ndef other(): pass\n")
    late.write_text("def post(x):\n    return x\n")
    (tmp_path / "net_odd.py").write_text(
        "import beside_odd\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        from late_odd import post\n"
        "        return post(beside_odd.prep(x))\n"
    )
    net, other = importlib.import_module("net_odd"), importlib.import_module("beside_odd")
    plain = identity(net.Net())
    monkeypatch.setattr(other, "other", 3)  # which the network does not read
    assert identity(net.Net()) == plain
    monkeypatch.setattr(other, "SCALE", 0.0)
    changed = identity(net.Net())
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    late_module = importlib.import_module("late_odd")
    monkeypatch.setattr(late_module, "post", lambda x: -x)
    assert len({plain, changed, identity(net.Net())}) == 3


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated as a whole
def test_traced_and_compiled_modules_have_an_identity() -> None:
    networks = [nn.Sequential(nn.Linear(2, 2), last) for last in (nn.ReLU(), nn.Tanh())]
    for network in networks:
        nn.init.eye_(network[0].weight)
        nn.init.zeros_(network[0].bias)
    compiled = functools.partial(torch.compile, backend="eager")
    for how in (torch.fx.symbolic_trace, torch.jit.script, compiled):
        found = [identity(how(network)) for network in networks]
        assert found[0] != found[1]
        assert found[0] == identity(how(networks[0]))


def test_libraries_are_libraries_wherever_they_were_installed() -> None:
    for folder in (
        "/home/me/.local/lib/python3.11/site-packages",
        "/usr/lib/python3/dist-packages",
    ):
        assert not unpickle.is_own_file(f"{folder}/torch/nn/modules/linear.py")
    assert unpickle.is_own_file("/home/me/project/net.py")


@pytest.mark.process
def test_without_a_reference_the_same_call_goes_on(tmp_path: Path) -> None:
    def once() -> bench.Verdict:
        with in_process():
            return bench.judge(
                Blobs(1.0), *data(), norm="linf", budget=0.25, sources=10, workers=1, device="cpu",
                out=tmp_path / "run", cache_dir=tmp_path / "cache",
            )  # fmt: skip

    first = once()
    cells = {p: p.stat().st_mtime_ns for p in (first.folder / "cells").glob("*.parquet")}
    assert once().worst_case == first.worst_case
    assert {p: p.stat().st_mtime_ns for p in (first.folder / "cells").glob("*.parquet")} == cells


@pytest.mark.process
def test_the_identity_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch, functools, numpy as np\n"
        "from dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Settings:\n    k: int = 2\n    names: tuple = ('a', 'b')\n"
        "def help(x):\n    return [F(v) for v in x]\n"
        "def F(x):\n    return x\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.conv = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))\n"
        "        self.settings, self.kinds = Settings(), {'x', 'y', 'z'}\n"
        "        self.things = np.array([Settings(), 'a'], dtype=object)\n"
        "        self.itself = [self]\n"
        "    @property\n    def k(self):\n        return self.settings.k\n"
        "    @functools.cached_property\n    def c(self):\n        return object()\n"
        "    @torch.no_grad()\n    def forward(self, x):\n        return help(self.conv(x))\n"
    )
    code = "import mine; from bench.handed.identity import identity; print(identity(mine.Net()))"
    root = Path(__file__).parents[3]
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}", "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_a_module_of_two_names_and_one_registered_before_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twice.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    (tmp_path / "hidden.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    twice, hidden = importlib.import_module("twice"), importlib.import_module("hidden")
    monkeypatch.setitem(sys.modules, "alias", twice)
    monkeypatch.delitem(sys.modules, "hidden")
    monkeypatch.setitem(sys.modules, "other", hidden)  # its own name leads nowhere
    cloudpickle.register_pickle_by_value(twice)
    try:
        content = pickled(twice.Net(2, 2))
        assert "twice" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(twice)
        monkeypatch.delitem(sys.modules, "twice")
    assert cloudpickle.loads(content).weight.shape == (2, 2)  # it travelled by value
    assert pickled(nn.Linear(2, 2))
    assert not cloudpickle.list_registry_pickle_by_value()
