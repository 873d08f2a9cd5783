"""Bad input and damage, one kind a row: an exit status and a message, or the same evidence again.

What a killed run leaves, and two runs over one cache, is the campaign of ``tests/soak``.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.base.files import STALE, read_json, write_json
from tests.bench.conftest import options

ROOT = Path(__file__).parents[2]


def evidence(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves but clocks, locks and logs."""
    apart = {"timings.json", "workers.log", ".lock"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in apart]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


HEAD = 'name = "m"\nrecipe = "smoke"\nsources = 2\n'
PAIR = '[[defense]]\nname = "undefended"\n[[attack]]\nname = "fgsm"\n'

THOUSAND = ", ".join(f"0.{number:04}" for number in range(1, 1001))
SWEEPS = f"eps = [{THOUSAND}]\noutput = [{THOUSAND}]\nalpha = [{THOUSAND}]\n"
MANY = ", ".join(f"0.{number:05}" for number in range(1, 30_001))
BUDGETS = f"[[panel]]\nnorm = 'linf'\nbudgets = [{MANY}]\n"
WEIGHTS = (
    "[[defense]]\nname = 'checkpoint'\nweights = \"a\\u0000.safetensors\"\n"
    "[[attack]]\nname = 'fgsm'\n"
)


def hostile_arrays() -> None:
    """Write npz files that claim more than they hold, or hold labels that nobody means."""
    x = np.random.RandomState(0).rand(40, 4).astype(np.float32)
    y = np.arange(40) % 2
    for name, first in (("label", 10**9), ("wraps", 2**63 + 5)):
        labels = y.astype(np.uint64)
        labels[0] = first
        np.savez(f"{name}.npz", x_train=x, y_train=labels, x_test=x, y_test=y)
    np.savez("one.npz", x_train=x, y_train=0 * y, x_test=x, y_test=0 * y)
    with Path("npy.npz").open("wb") as file:
        np.save(file, x)
    for name, length in (("tera", 10**12), ("huge", 10**30)):
        with zipfile.ZipFile(f"{name}.npz", "w") as archive:
            for key in ("x_train", "y_train", "x_test", "y_test"):
                header = io.BytesIO()
                np.lib.format.write_array_header_2_0(
                    header, {"descr": "<f4", "fortran_order": False, "shape": (length,)}
                )
                archive.writestr(f"{key}.npy", header.getvalue())
    folder = Path("pipes/MNIST/raw")
    folder.mkdir(parents=True)
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        os.mkfifo(folder / f"{name}-idx{3 if 'images' in name else 1}-ubyte.gz")


# What the matrix file holds, further options, what is said.
INPUT: list[tuple[str, tuple[object, ...], str]] = [
    ("name = ", (), "not valid TOML"),
    ("\x00", (), "not valid TOML"),
    (HEAD + PAIR.replace("fgsm", "fsgm"), (), "did you mean 'fgsm'?"),
    (HEAD + PAIR.replace("undefended", "undefeated"), (), "did you mean 'undefended'?"),
    (HEAD + "sauces = 3\n" + PAIR, (), "unknown key 'sauces': did you mean 'sources'?"),
    (HEAD + PAIR + "epsilon = 0.1\n", (), "has no parameter 'epsilon'"),
    (HEAD + PAIR + 'eps = "0.1"\n', (), "eps: "),
    (HEAD + PAIR + "eps = -1.0\n", (), "eps"),
    (HEAD + PAIR + "eps = []\n", (), "eps = [] is a sweep over nothing"),
    (
        HEAD + "[[defense]]\nname = 'distillation'\ntemperature = []\n" + PAIR,
        (),
        "sweep over nothing",
    ),
    (HEAD.replace("= 2", "= true") + PAIR, (), "sources"),
    (HEAD + PAIR.replace("fgsm", "jsma") + "gamma = 7.0\n", (), "gamma"),
    (HEAD.replace("2", "0") + PAIR, (), "sources"),
    (HEAD.replace('"m"', '"../x"') + PAIR, (), "name: "),
    (HEAD + "seeds = [1, 1]\n" + PAIR, (), "seeds"),
    (HEAD + "seeds = []\n" + PAIR, (), "seeds"),
    (HEAD, (), "defense: "),
    (HEAD + PAIR, ("--dataset", "digit"), "did you mean 'digits'?"),
    (HEAD + PAIR, ("--dataset", "none.npz"), "none.npz"),
    (HEAD + PAIR, ("--dataset", "torn.npz"), "torn.npz"),
    (HEAD + PAIR, ("--network", "digits-cmm"), "did you mean 'digits-cnn'?"),
    (HEAD + PAIR, ("--network", "papernot-cifar10"), "papernot-cifar10"),
    (HEAD + PAIR, ("--recipe", "smoked"), "smoke"),
    (HEAD + PAIR, ("--sources", "many"), "--sources takes a whole number or all"),
    (HEAD + PAIR, ("--sources", "301"), "the test split of 'digits' has 300"),
    (HEAD + PAIR, ("--seeds", "1;2"), "--seeds takes whole numbers"),
    (HEAD + PAIR, ("--device", "tpu"), "unknown device 'tpu'"),
    (HEAD + PAIR, ("--device", "cuda:99"), "torch sees"),
    (HEAD + PAIR, ("--workers", "0"), "workers"),
    (HEAD + PAIR, ("--plugin", "none.py"), "does not exist"),
    (HEAD + PAIR, ("--plugin", "no_such_module"), "cannot be imported"),
    (HEAD + PAIR, ("--plugin", "broken.py"), "ZeroDivisionError"),
    (HEAD + PAIR, ("--plugin", "again.py"), "two attacks are called 'fgsm'"),
    (HEAD + PAIR, ("--out", "file/run"), "results folder"),
    (HEAD + PAIR, ("--out", "file"), "results folder"),
    (HEAD + PAIR, ("--out", "newer"), "schema version 2"),
    (HEAD + PAIR, ("--out", "blocked"), "results folder"),
    (HEAD + PAIR, ("--fgsm",), "No such option"),
    # FAULTS E: bounded before they are expanded.
    (HEAD + PAIR + f"eps = {'9' * 5000}\n", (), "not valid TOML"),
    (HEAD + f"network = {'[' * 50_000}{']' * 50_000}\n" + PAIR, (), "nested too deeply"),
    (HEAD + "seeds = [" + ",".join(map(str, range(10**5))) + "]\n" + PAIR, (), "more than 20000"),
    (HEAD + PAIR + SWEEPS, (), "more than 20000 cells"),
    (HEAD + PAIR + BUDGETS, (), "more than 20000 cells"),
    (HEAD + WEIGHTS, (), "null byte"),
    (HEAD + PAIR, ("--matrix", "a\0b.toml"), "null byte"),
    (HEAD + PAIR, ("--out", "a\0b"), "null byte"),
    (HEAD + PAIR, ("--out", "caf\udce9"), "its name must be UTF-8"),
    (HEAD + PAIR, ("--dataset", "tera.npz"), "claims 4000000000000 bytes and holds 128"),
    (HEAD + PAIR, ("--dataset", "huge.npz"), "and holds 128"),
    (HEAD + PAIR, ("--dataset", "npy.npz"), "cannot be read as .npz"),
    (HEAD + PAIR, ("--dataset", "label.npz"), "the label 1000000000: at most 100000"),
    (HEAD + PAIR, ("--dataset", "wraps.npz"), f"the label {2**63 + 5}"),
    (HEAD + PAIR, ("--dataset", "one.npz"), "names class 0 alone"),  # C9
    (HEAD + PAIR, ("--dataset", "mnist", "--data-dir", "pipes"), "is no file"),
]
AGAIN = """
import bench
@bench.attack("fgsm")
class Again(bench.Attack):
    def threat(self, shape): ...
    def perturb(self, model, x, y, target, context): ...
"""


@pytest.mark.parametrize(("matrix", "args", "message"), INPUT, ids=[said for *_, said in INPUT])
def test_bad_input_is_one_message_and_status_2(
    matrix, args, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(matrix)
    Path("file").write_text("not a folder")
    Path("torn.npz").write_bytes(b"PK\x03\x04 torn")
    Path("broken.py").write_text("1 / 0")
    Path("again.py").write_text(AGAIN)
    write_json(Path("newer/plan.json"), {"schema": 2})
    Path("blocked").mkdir()
    Path("blocked/cells").write_text("not a folder")
    hostile_arrays()
    done = command("run", "--matrix", "m.toml", "--offline", "--cache-dir", "cache", *args)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert not list(Path().rglob("*.parquet"))


OTHER: list[tuple[tuple[str, ...], str]] = [
    (("run", "--matrix", "smoky"), "did you mean 'smoke'?"),
    (("run", "--matrix", "none.toml"), "cannot be read"),
    (("list", "jmsa"), "did you mean 'jsma'?"),
    (("publish", "none"), "is no finished run"),
    (("verify", "none"), "is no finished run"),
    (("explain", "none", "a"), "is no finished run"),
    (("diff", "none", "none"), "is no finished run"),
    (("explain", "none"), "Missing argument"),
]


@pytest.mark.parametrize(("args", "message"), OTHER)
def test_a_command_that_cannot_start_says_so(
    args, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*args)
    assert done.exit_code == 2, done.output
    assert message in done.output


@pytest.mark.parametrize("args", [("publish",), ("verify",), ("explain", "a"), ("diff", "")])
def test_a_newer_schema_is_refused_by_all_that_read(args, copy, command) -> None:
    edit("plan.json", lambda plan: plan.update(schema=2))(copy)
    rest = (copy,) if args[0] == "diff" else args[1:]
    done = command(args[0], copy, *rest)
    assert done.exit_code == 2, done.output
    assert "plan.json is of schema version 2" in " ".join(done.output.split())


# Each damages a finished run; the same command must leave the same evidence.


def first(run: Path, pattern: str) -> Path:
    return min(run.glob(pattern))


def truncate(pattern: str) -> Callable[[Path], object]:
    def damage(run: Path) -> None:
        path = first(run, pattern)
        content = path.read_bytes()
        path.unlink()  # weights are hard links to the cache: damage this copy alone
        path.write_bytes(content[: len(content) // 2])

    return damage


def flip(pattern: str) -> Callable[[Path], object]:
    def damage(run: Path) -> None:
        path = first(run, pattern)
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.unlink()
        path.write_bytes(content)

    return damage


def remove(pattern: str) -> Callable[[Path], object]:
    return lambda run: first(run, pattern).unlink()


def write(pattern: str, text: str) -> Callable[[Path], object]:
    return lambda run: first(run, pattern).write_text(text)


def edit(pattern: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(run: Path) -> None:
        document = read_json(first(run, pattern))
        change(document)
        write_json(first(run, pattern), document)

    return damage


def unlinked_cache(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """Damage the cache's fits, and take the run's models away so that it is asked."""

    def both(run: Path) -> None:
        shutil.rmtree(run / "models")
        damage(run.parent / "cache")

    return both


DAMAGE = [
    truncate("cells/*.parquet"),
    truncate("cells/*.safetensors"),
    truncate("cells/*.json"),
    truncate("models/*.safetensors"),
    truncate("models/*.json"),
    truncate("probes/*.parquet"),
    truncate("probes/*.json"),
    truncate("plan.json"),
    truncate("results.json"),
    truncate("results-key.json"),
    truncate("environment.json"),
    truncate("leaderboard.md"),
    truncate("timings.json"),
    flip("cells/*.safetensors"),
    flip("cells/*.parquet"),
    flip("models/*.safetensors"),
    remove("cells/*.parquet"),
    remove("probes/*.json"),
    remove("models/*.json"),
    remove("plan.json"),
    write("timings.json", "[1]"),
    write("results-key.json", "[]"),
    write("results-key.json", "7"),
    write("results.json", ""),
    write("plan.json", '{"schema": "one"}'),
    write("cells/*.json", "[]"),
    write("cells/*.json", '{"id": 1}'),
    edit("cells/*.json", lambda document: document.update(files=None)),
    edit("cells/*.json", lambda document: document["files"].update(inputs=None)),
    edit("cells/*.json", lambda document: document["files"].pop("records")),
    edit("cells/*.json", lambda document: document["key"].update(dtype="float16")),
    edit("cells/*.json", lambda document: document.update(evidence="0" * 64)),
    edit("cells/*.json", lambda document: document["outcome"].update(status="failed")),
    edit("models/*.json", lambda document: document.update(weights=None)),
    edit("models/*.json", lambda document: document["key"].update(source="0" * 64)),
    write("models/*.json", "[]"),
    unlinked_cache(truncate("fits/*.safetensors")),
    unlinked_cache(truncate("fits/*.json")),
    unlinked_cache(write("fits/*.json", '{"weights": null}')),
    unlinked_cache(remove("fits/*.safetensors")),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_made_good_by_the_same_command(damage, copy, finished, small, command) -> None:
    cache = shutil.copytree(small / "cache", copy.parent / "cache")
    damage(copy)
    done = command("run", *options(small), "--cache-dir", cache, "--out", copy)
    assert done.exit_code == 0, done.output
    assert "Traceback" not in done.output
    left, right = evidence(finished), evidence(copy)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


# A disk that is full where a file of a certain name is written.


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    sync = os.fsync

    def full(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


FULL = [
    # What cannot be written, exit status, whether cells fail for it.
    ("/fits/", 1, True),
    ("/models/", 1, True),
    ("/probes/", 1, False),
    (".parquet", 1, True),
    ("/cells/", 2, False),
    ("plan.json", 2, False),
    ("results.json", 2, False),
    ("results-key.json", 2, False),
    ("timings.json", 2, False),
    ("environment.json", 2, False),
    ("leaderboard.md", 2, False),
]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the fault is placed by /proc")
@pytest.mark.parametrize(("name", "status", "fails"), FULL)
def test_a_full_disk_is_a_failed_cell_or_a_clean_end(
    name, status, fails, tmp_path: Path, command, small, finished
) -> None:
    run = tmp_path / "run"  # not below a folder that a row names
    cache = tmp_path / "cache" if name == "/fits/" else small / "cache"
    args = ("run", *options(small), "--cache-dir", cache, "--out", run)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, name)
        done = command(*args)
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    if name != "/probes/":
        assert "cannot be written: No space left on device" in " ".join(done.output.split())
    if fails:
        rows = json.loads((run / "results.json").read_text())
        assert {row["status"] for row in rows} == {"failed"}
        assert all("cannot be written" in row["reason"] for row in rows)
    assert not list(tmp_path.rglob("*.tmp"))
    # With room again, the same command ends as if nothing had been.
    again = command(*args)
    assert again.exit_code == 0, again.output
    assert evidence(run) == evidence(finished)


def test_a_cache_that_cannot_be_written_fails_the_fits(tmp_path, small, command) -> None:
    (tmp_path / "file").write_text("not a folder")
    args = (*options(small), "--cache-dir", tmp_path / "file", "--out", tmp_path / "run")
    done = command("run", *args)
    assert done.exit_code == 1, done.output
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(f"{tmp_path}/file/fits" in row["reason"] for row in rows)


def test_what_killed_runs_left_is_swept(copy, small, command) -> None:
    cache = shutil.copytree(small / "cache", copy.parent / "cache")
    mine = [copy / ".plan.json.abc.tmp", copy / "cells" / ".a.parquet.abc.tmp"]
    old, young = cache / "fits" / ".old.abc.tmp", cache / "fits" / ".young.abc.tmp"
    kept = [copy / "notes.tmp", copy / "notes" / ".a.tmp", young]
    (copy / "notes").mkdir()
    for path in (*mine, *kept, old):
        path.write_bytes(b"torn")
    os.utime(old, (time.time() - STALE - 60,) * 2)
    done = command("run", *options(small), "--cache-dir", cache, "--out", copy)
    assert done.exit_code == 0, done.output
    assert not any(path.exists() for path in (*mine, old))
    assert all(path.exists() for path in kept)


def test_an_earlier_probe_does_not_speak_for_one_that_failed(
    copy, small, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("no luck")

    for path in (copy / "probes").glob("*.parquet"):
        path.write_bytes(b"torn")
    monkeypatch.setattr("bench.runner.rebuild.probe", fails)
    done = command("run", *options(small), "--out", copy)
    assert isinstance(done.exception, SystemExit), done.exception
    assert not list((copy / "probes").glob("*.json"))
    assert all(row["accuracy"] is None for row in read_json(copy / "results.json"))


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_a_model_that_could_not_be_asked_again_is_asked_anew(
    fresh, copy, finished, small, command
) -> None:
    path = first(copy, "rechecks/*.json")
    reason = "timed out after 1 s" if not fresh else None
    edit("rechecks/*.json", lambda document: document.update(differing={"none": 7}, reason=reason))(
        copy
    )
    assert command("run", *options(small), "--out", copy, *fresh).exit_code == 0
    assert path.read_bytes() == (finished / "rechecks" / path.name).read_bytes()


@pytest.mark.process
def test_a_worker_that_cannot_start_is_a_failure_and_no_hang(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(HEAD + PAIR)
    (tmp_path / "plugin.py").write_text(
        "import multiprocessing\n"
        "if multiprocessing.parent_process():\n"
        "    raise RuntimeError('not here')\n"
    )
    command = [sys.executable, "-m", "bench", "run", "--matrix", "m.toml", "--plugin", "plugin.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RETORT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    shown = " ".join(done.stdout.split())
    assert "its worker process cannot start" in shown
    assert "not here" in shown


def test_kinds_of_bad_input_and_damage_are_many() -> None:
    assert len(INPUT) + len(OTHER) + len(DAMAGE) + len(FULL) >= 30


# Methods of plugins that the parent calls before anything runs.

METHODS = [
    ("threat", "raise RuntimeError('no budget')", "Odd.threat: RuntimeError: no budget"),
    ("threat", "return 5", "Odd.threat: TypeError: a bench.ThreatModel is expected, got int"),
    ("threat", "return bench.ThreatModel('linf', float('inf'))", "a finite budget or None"),
    ("requires", "raise RuntimeError('nothing')", "Odd.requires: RuntimeError: nothing"),
    ("requires", "return 5", "Odd.requires: AttributeError"),
    ("files", "raise SystemExit(3)", "Odd.files: SystemExit: 3"),
    ("files", "return 5", "Odd.files: TypeError"),
    ("access", "return 'magic'", "Odd.access: ValueError: one of gradients"),
    ("targets", "raise RuntimeError('none')", "Odd.targets: RuntimeError: none"),
]

WHOLE = {
    # Of a data set and a network: FAULTS C7.
    "load raises": ("load", "raise SystemExit(3)", "Data.load: SystemExit: 3"),
    "load returns": ("load", "return 5", "Data.load: TypeError: a bench.Dataset is expected"),
    "build raises": ("build", "raise RuntimeError('no net')", "RuntimeError: no net"),
    "plain": ("plain", "raise RuntimeError('not plain')", "not plain"),
}
OWN = """
import bench
from dataclasses import dataclass


@bench.dataset("odd-data-{number}")
@dataclass(frozen=True)
class Data(bench.DataSource):
    network = "mlp"
    recipe = "smoke"

    def load(self, settings):
        {load}


@bench.network("odd-net-{number}")
@dataclass(frozen=True)
class Net(bench.Network):
    def build(self, info):
        {build}


@bench.defense("odd-defense-{number}")
@dataclass(frozen=True)
class Odd(bench.Defense):
    def plain(self):
        {plain}
"""


@pytest.mark.parametrize("name", WHOLE)
def test_a_data_set_or_a_network_that_fails_is_one_message(
    name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command
) -> None:
    """FAULTS C7."""
    monkeypatch.chdir(tmp_path)
    method, does, said = WHOLE[name]
    number = list(WHOLE).index(name)
    ways = {"load": "return None", "build": "return None", "plain": "return self", method: does}
    Path("odd.py").write_text(OWN.format(number=number, **ways))
    panel = '[[defense]]\nname = "undefended"\n[[panel]]\nnorm = "linf"\nbudgets = [0.1]\n'
    Path("m.toml").write_text(f'{HEAD}[[defense]]\nname = "odd-defense-{number}"\n{panel}')
    chosen = {
        "load": ("--dataset", f"odd-data-{number}"),
        "build": ("--network", f"odd-net-{number}"),
    }
    args = chosen.get(method, ())
    done = command("run", "--matrix", "m.toml", "--plugin", "odd.py", "--cache-dir", "cache", *args)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())


@pytest.mark.parametrize(("method", "does", "said"), METHODS)
def test_a_method_that_fails_before_the_run_is_one_message(
    method, does, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"odd-{abs(hash((method, does)))}"
    prefix = "@property\n    " if method in ("access", "targets") else ""
    argument = ", shape" if method == "threat" else ""
    threat = (
        ""
        if method == "threat"
        else "def threat(self, shape): return bench.ThreatModel('linf', 0.1)"
    )
    Path("odd.py").write_text(
        f"import bench\nfrom dataclasses import dataclass\n@bench.attack({name!r})\n"
        f"@dataclass(frozen=True)\nclass Odd(bench.Attack):\n"
        f"    {prefix}def {method}(self{argument}):\n        {does}\n    {threat}\n"
        f"    def perturb(self, model, x, y, target, context): ...\n"
    )
    Path("m.toml").write_text(HEAD + PAIR.replace("fgsm", name))
    done = command("run", "--matrix", "m.toml", "--plugin", "odd.py", "--cache-dir", "cache")
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_an_out_folder_of_ones_own_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command, copy, small
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(HEAD + PAIR)
    Path("mine").mkdir()
    Path("mine/results.json").write_text("mine")
    Path("mine/.draft.tmp").write_text("mine")
    for out in ("mine", ""):
        done = command("run", "--matrix", "m.toml", "--cache-dir", "cache", "--out", out)
        assert done.exit_code == 2, done.output
        assert "choose another --out" in " ".join(done.output.split())
    assert {path.name: path.read_text() for path in Path("mine").iterdir()} == {
        "results.json": "mine", ".draft.tmp": "mine",
    }  # fmt: skip
    before = evidence(copy)
    done = command("run", "--matrix", "m.toml", "--cache-dir", "cache", "--out", copy)
    assert done.exit_code == 2, done.output
    assert "holds a run of the matrix 'small'" in " ".join(done.output.split())
    assert evidence(copy) == before


def test_publish_replaces_a_folder_as_a_whole_or_not_at_all(copy, tmp_path, command) -> None:
    to = tmp_path / "published"
    publish = ("publish", copy, "--to", to, "--again", "0", "--again-fits", "0")
    assert command(*publish).exit_code == 0
    old = evidence(to)
    (to / "copy" / "left.json").write_text("of another report")
    for name in ("results.json", "verdicts.json", "environment.json", "leaderboard.md"):
        with pytest.MonkeyPatch.context() as patch:
            fill_disk(patch, name)
            assert command(*publish).exit_code == 2
        assert evidence(to) == {**old, "copy/left.json": b"of another report"}
    (to / ".copy.killed.tmp").mkdir()
    assert command(*publish).exit_code == 0
    assert evidence(to) == old
    assert not list(to.glob(".*"))


KILLED = """
import os, sys
from pathlib import Path

import bench.base.files as files
from leaderboard.pages.publish import publish

run, to, where = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
renames, rename, exchange = 0, Path.replace, files._exchange


def replace(self, target):
    global renames
    renames += 1
    if str(renames) == where:
        os._exit(9)
    return rename(self, target)


def both(first, second):
    if where == "before":
        os._exit(9)
    done = exchange(first, second)
    if where == "after":
        os._exit(9)
    return done


Path.replace, files._exchange = replace, both
publish(run, to)
"""


@pytest.mark.process
@pytest.mark.parametrize("where", ["1", "4", "before", "after"])
def test_a_publish_that_is_killed_leaves_the_old_or_the_new(where, copy, tmp_path, command) -> None:
    """FAULTS D3: ended at a rename, over an older one."""
    to = tmp_path / "published"
    publish = ("publish", copy, "--to", to, "--again", "0", "--again-fits", "0")
    assert command(*publish).exit_code == 0
    new = evidence(to / "copy")
    (to / "copy" / "results.json").write_text("[]\n")
    old = evidence(to / "copy")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(copy), str(to), where], check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 9
    assert evidence(to / "copy") == (new if where == "after" else old)
    assert command(*publish).exit_code == 0
    assert evidence(to / "copy") == new
    assert not list(to.glob(".*"))
