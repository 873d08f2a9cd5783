"""What one plugin does to others: a change is its own failure, a trace ends with its process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.base.files import read_json

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("isolation")]
ROOT = Path(__file__).parents[3]

Rows = dict[tuple[str, str], dict[str, Any]]


def retort(*args: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "RETORT_CACHE": str(cwd / "cache"), **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "bench", *args]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=400
    )


def rows_of(run: Path) -> Rows:
    rows = json.loads((run / "results.json").read_text())
    return {(row["defense"], row["attack_params"].get("how", row["attack"])): row for row in rows}


def run(folder: Path, name: str, *args: str, status: int = 0) -> Rows:
    done = retort("run", "--matrix", f"{name}.toml", "--offline", "--out", name, *args, cwd=folder)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return rows_of(folder / name)


HEAD = 'recipe = "smoke"\nsources = 30\n[[defense]]\nname = "undefended"\n'

LEAVES = '''
"""Attacks that leave something behind."""
import functools, gc, os, sys
from dataclasses import dataclass

import torch

import bench
from bench.plugins.data import Dataset


@functools.cache
def step(row):
    """Grow from call to call, as an honest cache of what was seen would."""
    return len(asked.append(row) or asked)


asked = []


@bench.attack("leaves")
@dataclass(frozen=True)
class Leaves(bench.Attack):
    """Changes the process, the data or the model as told."""

    how: str

    @property
    def access(self):
        return "scores"

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.3)

    def perturb(self, model, x, y, target, context):
        if self.how == "dtype":
            torch.set_default_dtype(torch.float64)
        if self.how == "grad":
            torch.set_grad_enabled(False)
        if self.how == "denormal":
            torch.set_flush_denormal(True)
        if self.how == "sign":
            torch.Tensor.sign = lambda self: torch.zeros_like(self)
        if self.how == "hook":
            torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 0)
        if self.how == "device":
            torch.set_default_device("meta")
        if self.how == "recursion":
            sys.setrecursionlimit(sys.getrecursionlimit() + 1)
        if self.how == "zero":
            for weight in model.parameters():
                weight.data.zero_()
        if self.how == "data":
            for item in gc.get_objects():
                if isinstance(item, Dataset):
                    item.test.x.mul_(0.5)
        if self.how == "labels":
            y.zero_()
            x.zero_()
            context.sample_ids.zero_()
            return bench.Perturbation(x)
        if self.how == "cache":
            size = 0.001 * max(step(str(row.tolist())) for row in x)
            return bench.Perturbation((x + size).clamp(0, 1))
        return bench.Perturbation(x.clone())


@bench.attack("cache-too")
@dataclass(frozen=True)
class CacheToo(Leaves):
    """The same cache, met by another attack of the file."""

    how: str = "cache"
'''
HOWS = [
    "dtype", "grad", "denormal", "sign", "hook", "device", "recursion", "zero", "data", "labels",
    "cache",
]  # fmt: skip
AFTER = '[[attack]]\nname = "pgd"\neps = 0.1\n'


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, Rows]:
    folder = tmp_path_factory.mktemp("leaves")
    (folder / "leaves.py").write_text(LEAVES)
    (folder / "alone.toml").write_text(f'name = "alone"\n{HEAD}{AFTER}')
    # Each is followed by an attack that its trace would change; one worker runs them all.
    between = "".join(
        f'[[attack]]\nname = "leaves"\nhow = "{how}"\n'
        f'[[attack]]\nname = "pgd"\neps = 0.{place:02}\n'
        for place, how in enumerate(HOWS, start=11)
    )
    (folder / "mixed.toml").write_text(
        f'name = "mixed"\n{HEAD}{between}[[attack]]\nname = "cache-too"\n{AFTER}'
    )
    pgd = "".join(
        f'[[attack]]\nname = "pgd"\neps = 0.{place:02}\n' for place in range(11, 11 + len(HOWS))
    )
    (folder / "alone.toml").write_text(f'name = "alone"\n{HEAD}{pgd}{AFTER}')
    alone = run(folder, "alone", "--workers", "2")
    mixed = run(folder, "mixed", "--workers", "1", "--plugin", "leaves.py", status=1)
    return folder, alone, mixed


def own(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of its cell alone: the worst case is over all cells of the run."""
    return {name: value for name, value in row.items() if not name.startswith("worst_case")}


def by_id(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in json.loads((folder / name / "results.json").read_text())}


def test_what_an_attack_leaves_behind_reaches_no_other_cell(leaves) -> None:
    folder, _, _ = leaves
    alone, mixed = by_id(folder, "alone"), by_id(folder, "mixed")
    assert len(alone) == len(HOWS) + 1
    for cell, row in alone.items():
        assert row["status"] == "done"
        assert own(mixed[cell]) == own(row), row["attack_params"]
        for suffix in (".parquet", ".safetensors"):
            path = Path("cells", cell).with_suffix(suffix)
            assert (folder / "mixed" / path).read_bytes() == (folder / "alone" / path).read_bytes()


@pytest.mark.parametrize(
    ("how", "said"),
    [("zero", "changes the weights or buffers"), ("data", "changes the data set")],
)
def test_an_attack_that_changes_data_or_weights_fails_by_its_name(leaves, how, said) -> None:
    folder, _, mixed = leaves
    row = mixed["undefended", how]
    assert row["status"] == "failed"
    assert "attack 'leaves'" in row["reason"]
    assert said in row["reason"]
    assert not (folder / "mixed" / "cells" / f"{row['id']}.parquet").exists()


def test_an_attack_gets_labels_and_inputs_of_its_own(leaves) -> None:
    _, _, mixed = leaves
    row = mixed["undefended", "labels"]
    assert row["status"] == "done", row["reason"]
    assert row["accuracy"] == mixed["undefended", "pgd"]["accuracy"]


def test_a_cache_of_an_attacks_own_gives_the_same_bytes_for_any_workers(leaves) -> None:
    folder, _, _ = leaves
    (folder / "pairs.toml").write_text(
        (folder / "mixed.toml").read_text().replace("mixed", "pairs")
    )
    run(folder, "pairs", "--workers", "2", "--plugin", "leaves.py", status=1)
    one, two = by_id(folder, "mixed"), by_id(folder, "pairs")
    assert one == two


DEFENSES = '''
"""Defenses that change what is not theirs."""
from dataclasses import dataclass

import torch
from torch import nn

import bench


class Rounds(nn.Module):
    """Rounds its input where it lies."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.no_grad():
            x.mul_(8).round_().div_(8)
        return self.network(x)


class Counts(nn.Module):
    """Counts what it is asked in a buffer."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, x):
        self.asked += len(x)
        return self.network(x)


@dataclass(frozen=True)
class Wraps(bench.Defense):
    """Wraps a fitted network."""

    def requires(self):
        return {"plain": bench.Spec("undefended")}

    def build(self, context):
        return self.wrapper(context.network())

    def fit(self, model, train, context):
        model.network.load_state_dict(context.fitted["plain"].state_dict())


@bench.defense("rounds")
@dataclass(frozen=True)
class RoundsInPlace(Wraps):
    """Rounds in place."""

    wrapper = Rounds


@bench.defense("counts")
@dataclass(frozen=True)
class CountsInside(Wraps):
    """Counts in a buffer."""

    wrapper = Counts


@bench.defense("augments")
@dataclass(frozen=True)
class Augments(bench.Defense):
    """Adds noise to the training data where they lie."""

    def fit(self, model, train, context):
        train.x.add_(torch.randn(train.x.shape, generator=context.generator)).clamp_(0, 1)
        context.train(model, train.x, train.y)
'''


def test_a_defense_that_changes_what_is_not_its_own_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "changers.py").write_text(DEFENSES)
    tables = "".join(f'[[defense]]\nname = "{n}"\n' for n in ("augments", "rounds", "counts"))
    head = 'recipe = "smoke"\nsources = 30\n'
    plain = '[[defense]]\nname = "undefended"\n[[defense]]\nname = "label_smoothing"\n'
    (tmp_path / "plain.toml").write_text(f'name = "plain"\n{head}{plain}{AFTER}')
    # The one that adds noise comes first, and the others learn in its process.
    (tmp_path / "mixed.toml").write_text(f'name = "mixed"\n{head}{tables}{plain}{AFTER}')
    mixed = run(tmp_path, "mixed", "--workers", "1", "--plugin", "changers.py", status=1)
    assert mixed["augments", "pgd"]["status"] == "failed"
    assert "defense 'augments' changes the data set" in mixed["augments", "pgd"]["reason"]
    assert "changes its input in place" in mixed["rounds", "pgd"]["reason"]
    assert "changes the weights or buffers" in mixed["counts", "pgd"]["reason"]
    keys = [read_json(path)["key"]["document"] for path in (tmp_path / "cache/fits").glob("*.json")]
    assert "augments" not in {key["defense"]["name"] for key in keys}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "plain.toml").write_text((tmp_path / "plain.toml").read_text())
    plain_rows = by_id_after(tmp_path / "elsewhere")
    for cell, row in plain_rows.items():
        assert own(by_id(tmp_path, "mixed")[cell]) == own(row)


def by_id_after(folder: Path) -> dict[str, dict[str, Any]]:
    run(folder, "plain")
    return by_id(folder, "plain")


CODE = '''
"""An attack that is rewritten while the first model learns."""
from dataclasses import dataclass
from pathlib import Path

import bench

SIZE = 0.0


@bench.defense("rewrites")
@dataclass(frozen=True)
class Rewrites(bench.Defense):
    """Writes this very file anew, as its author might at that moment."""

    def fit(self, model, train, context):
        path = Path(__file__)
        path.write_text(path.read_text().replace("SIZE = 0.0", "SIZE = 0.3"))
        context.train(model, train.x, train.y)


@bench.attack("moves")
@dataclass(frozen=True)
class Moves(bench.Attack):
    """Moves every input by SIZE."""

    @property
    def access(self):
        return "scores"

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.3)

    def perturb(self, model, x, y, target, context):
        return bench.Perturbation((x + SIZE).clamp(0, 1))
'''


def test_code_that_is_rewritten_meanwhile_is_not_the_key_of_what_ran(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    matrix = 'name = "m"\nrecipe = "smoke"\nsources = 30\n[[defense]]\nname = "rewrites"\n'
    (tmp_path / "m.toml").write_text(matrix + '[[attack]]\nname = "moves"\n')
    args = ("--plugin", "code.py", "--workers", "1")
    first = run(tmp_path, "m", *args)["rewrites", "moves"]
    old = read_json(tmp_path / "m" / "cells" / f"{first['id']}.json")["key"]["attack_source"]
    second = run(tmp_path, "m", *args)["rewrites", "moves"]
    new = read_json(tmp_path / "m" / "cells" / f"{second['id']}.json")["key"]["attack_source"]
    assert old != new
    assert first["success_rate"] == 0.0
    assert second["success_rate"] > 0.0


def test_a_data_file_that_is_rewritten_meanwhile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "swap.py").write_text(
        '''
"""A defense whose fit comes first, and writes the data file anew."""
import shutil
from dataclasses import dataclass

import bench


@bench.defense("swaps")
@dataclass(frozen=True)
class Swaps(bench.Defense):
    """Puts another file where the data lay."""

    def code(self):
        shutil.copyfile("second.npz", "mine.npz")
        return ()
'''
    )
    import numpy as np

    random = np.random.RandomState(0)
    for name in ("first", "second"):
        x = random.rand(80, 5).astype("float32")
        y = (x[:, 0] > x[:, 1]).astype("int64") if name == "first" else (x[:, 2] > 0.5).astype(int)
        np.savez(
            tmp_path / f"{name}.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:]
        )
    (tmp_path / "mine.npz").write_bytes((tmp_path / "first.npz").read_bytes())
    matrix = 'name = "m"\nrecipe = "smoke"\nsources = 5\n[[defense]]\nname = "swaps"\n'
    (tmp_path / "m.toml").write_text(matrix + '[[attack]]\nname = "fgsm"\n')
    rows = run(tmp_path, "m", "--plugin", "swap.py", "--dataset", "mine.npz", status=1)
    assert "was rewritten while the run lasts" in rows["swaps", "fgsm"]["reason"]
    assert not list((tmp_path / "cache" / "fits").glob("*.safetensors"))


def test_cache_entries_that_are_exchanged_are_made_again(tmp_path: Path) -> None:
    own = 'name = "m"\nrecipe = "smoke"\nsources = 5\n[[defense]]\nname = "undefended"\n'
    (tmp_path / "m.toml").write_text(
        own + '[[defense]]\nname = "label_smoothing"\n[[attack]]\nname = "fgsm"\n'
    )
    before = run(tmp_path, "m")
    stems = [path.with_suffix("") for path in (tmp_path / "cache/fits").glob("*.json")]
    assert len(stems) == 2
    for suffix in (".json", ".safetensors"):
        first, second = (stem.with_suffix(suffix).read_bytes() for stem in stems)
        for stem, content in zip(stems, (second, first), strict=True):
            stem.with_suffix(suffix).unlink()  # a hard link of the run's
            stem.with_suffix(suffix).write_bytes(content)
    for name in ("models", "cells", "probes"):
        for path in (tmp_path / "m" / name).iterdir():
            path.unlink()
    assert run(tmp_path, "m") == before


def test_a_read_only_cache_that_holds_the_fit_serves_it(tmp_path: Path) -> None:
    own = 'name = "m"\nrecipe = "smoke"\nsources = 5\n[[defense]]\nname = "undefended"\n'
    (tmp_path / "m.toml").write_text(own + '[[attack]]\nname = "fgsm"\n')
    before = run(tmp_path, "m")
    fits = tmp_path / "cache" / "fits"
    for path in fits.glob("*.lock"):
        path.unlink()
        path.mkdir()  # a lock that cannot be had, for root may write anywhere
    for path in (tmp_path / "m" / "models").iterdir():
        path.unlink()
    assert run(tmp_path, "m") == before
