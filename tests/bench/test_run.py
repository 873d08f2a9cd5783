"""The main job, end to end: repeatable, resumable, and honest about what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench.base.files import read_json, read_tensors

pytestmark = pytest.mark.process
SHARED = pytest.mark.xdist_group("smoke")  # one smoke run, and what is done to its folder
ROOT = Path(__file__).parents[2]
SMOKE = ("--matrix", "smoke", "--offline")
REQUIRED = {
    "id", "dataset", "network", "recipe", "defense", "defense_params", "attack", "attack_params",
    "threat", "seed", "status", "reason", "sources", "attempts", "success_rate", "success_ci",
    "robust_accuracy", "robust_ci", "rho_adv", "rho_adv_paper", "features_all",
    "features_success", "confidence", "accuracy", "max_logit", "logit_gap", "flags",
}  # fmt: skip


def retort(*args: str, cwd: Path, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RETORT_CACHE": str(cache or cwd / "cache"),
    }
    command = [sys.executable, "-m", "bench", *args]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def evidence(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves but clocks, locks and logs."""
    apart = {"timings.json", "workers.log", ".lock"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in apart]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def smoke(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("smoke")
    done = retort("run", *SMOKE, "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


@SHARED
def test_smoke_leaves_what_the_contract_names(smoke) -> None:
    folder, done = smoke
    run = folder / "runs" / "smoke-digits"
    for name in ("plan.json", "environment.json", "results.json", "leaderboard.md", "timings.json"):
        assert (run / name).is_file(), name
    rows = json.loads((run / "results.json").read_text())
    assert len(rows) == 8
    for row in rows:
        assert set(row) >= REQUIRED
        assert row["status"] == "done"
        cell = run / "cells" / row["id"]
        records = pd.read_parquet(cell.with_suffix(".parquet"))
        assert records["success"].sum() == row["successes"]
        assert len(read_tensors(cell.with_suffix(".safetensors"))["x_adv"]) == len(records)
        assert (
            read_json(cell.with_suffix(".json"))["key"]["document"]["attack"]["name"]
            == row["attack"]
        )
    assert "runs/smoke-digits/leaderboard.md" in done.stdout
    assert "distillation" in done.stdout


@SHARED
def test_smoke_tells_the_story(smoke) -> None:
    folder, _ = smoke
    rows = json.loads((folder / "runs/smoke-digits/results.json").read_text())
    success = {(r["defense"], r["attack_params"].get("output")): r["success_rate"] for r in rows}
    assert success["undefended", "probs"] > 0.6
    # Distillation takes from JSMA-F much more than it takes from the same attack on log-odds.
    gained = success["distillation", "log_odds"] - success["distillation", "probs"]
    assert gained > 0.3


@SHARED
def test_another_number_of_workers_and_a_cold_cache_change_no_byte(smoke, tmp_path: Path) -> None:
    folder, _ = smoke
    done = retort("run", *SMOKE, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = evidence(folder / "runs"), evidence(tmp_path / "runs")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


@SHARED
def test_the_same_command_again_does_nothing_again(smoke) -> None:
    folder, _ = smoke
    run = folder / "runs" / "smoke-digits"
    before = {path: path.stat().st_mtime_ns for path in (run / "cells").iterdir()}
    content = evidence(run)
    assert retort("run", *SMOKE, cwd=folder).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "cells").iterdir()} == before
    assert evidence(run) == content


@SHARED
def test_a_run_killed_midway_ends_as_an_undisturbed_one(smoke, tmp_path: Path) -> None:
    folder, _ = smoke
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RETORT_CACHE": str(tmp_path / "cache")}
    # More seeds than an interrupt can miss on a busy machine.
    command = [sys.executable, "-m", "bench", "run", *SMOKE, "--seeds", "0,1,2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    models = tmp_path / "runs" / "smoke-digits" / "models"
    deadline = time.monotonic() + 120
    while not list(models.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in models.glob("*.json")}
    assert kept, "nothing was done before the kill"
    assert not (models.parent / "results.json").exists()
    assert retort("run", *SMOKE, "--workers", "1", cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    undisturbed, resumed = evidence(folder / "runs"), evidence(tmp_path / "runs")
    leftovers = {name for name in resumed if name.endswith(".tmp")}
    assert {n: c for n, c in resumed.items() if n not in leftovers} == undisturbed


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RETORT_CACHE": str(tmp_path / "cache")}
    # Where the tests run in the background of a script, the shell has made SIGINT be ignored.
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, "-m", "bench", "run", *SMOKE]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    models = tmp_path / "runs" / "smoke-digits" / "models"
    deadline = time.monotonic() + 120
    while not list(models.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what is done is kept" in stderr
    assert "Traceback" not in stderr
    assert list(models.glob("*.json"))


@SHARED
def test_damaged_evidence_is_made_again(smoke, tmp_path: Path) -> None:
    folder, _ = smoke
    run = folder / "runs" / "smoke-digits"
    whole = evidence(run)
    cell = next((run / "cells").glob("*.parquet"))
    model = next((run / "models").glob("*.safetensors"))
    inputs = max((run / "cells").glob("*.safetensors"))
    cell.write_bytes(cell.read_bytes()[:100])
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.unlink()  # a hard link to the cache: damage this copy alone
    model.write_bytes(content)
    inputs.unlink()
    done = retort("run", *SMOKE, "--workers", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert evidence(run) == whole


PLUGINS = '''
"""Plugins that fail, each in its own way."""
import os
import time
from dataclasses import dataclass

import torch

import bench


@bench.defense("raises")
@dataclass(frozen=True)
class Raises(bench.Defense):
    """Raises in fit."""

    def fit(self, model, train, context):
        raise RuntimeError("no luck")


@bench.defense("no_gradients")
@dataclass(frozen=True)
class NoGradients(bench.Defense):
    """Declares that it has no gradients."""

    differentiable = False


@bench.attack("misbehaves")
@dataclass(frozen=True)
class Misbehaves(bench.Attack):
    """Fails as told."""

    how: str = "raise"

    @property
    def access(self):
        return "scores"

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.1)

    def perturb(self, model, x, y, target, context):
        if self.how == "raise":
            raise ValueError("broken | badly")
        if self.how == "die":
            os._exit(7)
        if self.how == "exit":
            raise SystemExit(3)
        if self.how == "hang":
            time.sleep(600)
        if self.how == "shape":
            return bench.Perturbation(x[:, :, :2])
        if self.how == "print":
            print("x" * 1_000_000)
        return bench.Perturbation(x)
'''
MATRIX = """
name = "failures"
recipe = "smoke"
sources = 5
[[defense]]
name = "undefended"
[[defense]]
name = "raises"
[[defense]]
name = "no_gradients"
[[attack]]
name = "misbehaves"
how = ["raise", "die", "exit", "hang", "shape", "print"]
[[attack]]
name = "fgsm"
"""


def test_every_failure_is_a_value_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "plugins.py").write_text(PLUGINS)
    (tmp_path / "failures.toml").write_text(MATRIX)
    done = retort(
        "run", "--matrix", "failures.toml", "--plugin", "plugins.py", "--cell-timeout", "20",
        "--workers", "2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "xxxxxxxx" not in done.stdout + done.stderr
    rows = json.loads((tmp_path / "runs/failures-digits/results.json").read_text())
    found = {
        (row["defense"], row["attack_params"].get("how", "fgsm")): (row["status"], row["reason"])
        for row in rows
    }
    assert found["undefended", "raise"] == ("failed", "ValueError: broken | badly")
    assert found["undefended", "die"][0] == "failed"
    assert "died" in found["undefended", "die"][1]
    assert found["undefended", "exit"][0] == "failed"
    assert found["undefended", "hang"] == ("failed", "timed out after 20 s")
    assert "x_adv must be" in found["undefended", "shape"][1]
    assert found["undefended", "print"] == ("done", None)
    assert found["undefended", "fgsm"] == ("done", None)
    assert found["raises", "fgsm"] == ("failed", "its fit failed: RuntimeError: no luck")
    assert found["no_gradients", "fgsm"][0] == "skipped"
    assert "needs gradients" in found["no_gradients", "fgsm"][1]
    for row in rows:
        if row["status"] != "done":
            assert row["success_rate"] is None
            assert row["robust_accuracy"] is None
        # A crash is no robustness: the worst case of that threat model is unknown.
        assert row["worst_case"] is None
    page = (tmp_path / "runs/failures-digits/leaderboard.md").read_text()
    assert "FAILED" in page
    assert "broken \\| badly" in page


@SHARED
def test_two_runs_into_one_folder_do_not_mix(smoke) -> None:
    import filelock

    folder, _ = smoke
    with filelock.FileLock(folder / "runs" / "smoke-digits" / ".lock"):
        done = retort("run", *SMOKE, cwd=folder)
    assert done.returncode == 2
    assert "another run is writing" in done.stderr


@SHARED
def test_publish_regenerates_the_page_byte_for_byte(smoke) -> None:
    folder, _ = smoke
    done = retort("publish", "runs/smoke-digits", "--to", "published", cwd=folder)
    assert done.returncode == 0, done.stderr
    published = folder / "published" / "smoke-digits"
    page = (folder / "runs/smoke-digits/leaderboard.md").read_bytes()
    assert (published / "leaderboard.md").read_bytes() == page
    assert retort("publish", "runs/none", cwd=folder).returncode == 2
