"""The fault campaign: runs killed at random, and two runs over one cache. Run by ``make soak``.

``RETORT_SOAK_KILLS`` (200) SIGKILLs of the whole process group, ``RETORT_SOAK_RACES`` (20) races,
``RETORT_SOAK_MIXES`` (10) pairs over one cache, one of them with plugins that leave traces, both
killed; ``RETORT_SOAK_SEED`` (0) draws the moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.base.files import check, read_json, read_records, read_tensors
from tests.bench.runner.test_isolation import LEAVES

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("RETORT_SOAK_KILLS", "200"))
RACES = int(os.environ.get("RETORT_SOAK_RACES", "20"))
MIXES = int(os.environ.get("RETORT_SOAK_MIXES", "10"))
SEED = int(os.environ.get("RETORT_SOAK_SEED", "0"))
MOMENTS = (0.5, 12.0)
"""Seconds after its start between which a run is killed."""

SUFFIXES = {"records": ".parquet", "inputs": ".safetensors"}


def start(out: Path, cache: Path, matrix: str = "smoke", *args: str) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own, its output in a file beside ``out``."""
    command = [sys.executable, "-m", "bench", "run", "--matrix", matrix, "--offline", *args]
    command += ["--device", "cpu", "--workers", "2", "--out", str(out), "--cache-dir", str(cache)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=log, stderr=log
        )


@contextlib.contextmanager
def reaped(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave no process behind where a test fails."""
    try:
        yield
    finally:
        for process in processes:
            kill(process)


def say(text: str) -> None:
    """Show a figure of the campaign: ``make soak`` does not capture what tests write."""
    sys.stdout.write(text + "\n")


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill the whole group of ``process``; return whether it still ran."""
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def evidence(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves but clocks, locks and logs."""
    apart = {"timings.json", "workers.log", ".lock"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in apart]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finished(run: Path) -> dict[Path, int]:
    """Return every file of finished evidence with its time of writing; raises for a torn one.

    A node is finished when its document stands, and then all that the document names stands
    beside it, whole.
    """
    found: dict[Path, int] = {}
    for path in sorted([*run.glob("models/*.json"), *run.glob("probes/*.json"),
                        *run.glob("cells/*.json")]):  # fmt: skip
        document = read_json(path)
        assert document["outcome"]["status"] == "done", document
        files = {SUFFIXES[name]: checksum for name, checksum in document.get("files", {}).items()}
        if "weights" in document:
            files[".safetensors"] = document["weights"]
        for suffix, checksum in files.items():
            check(path.with_suffix(suffix), checksum)
            read = read_records if suffix == ".parquet" else read_tensors
            read(path.with_suffix(suffix))
            found[path.with_suffix(suffix)] = path.with_suffix(suffix).stat().st_mtime_ns
        found[path] = path.stat().st_mtime_ns
    for name in ("plan.json", "results.json", "results-key.json", "environment.json"):
        if (run / name).exists():
            read_json(run / name)
    return found


def fits(cache: Path) -> dict[Path, int]:
    """Return the finished fits of the cache with their times of writing; raises for a torn one."""
    found = {}
    for path in sorted(cache.glob("fits/*.json")):
        check(path.with_suffix(".safetensors"), read_json(path)["weights"])
        found[path] = path.stat().st_mtime_ns
        found[path.with_suffix(".safetensors")] = (
            path.with_suffix(".safetensors").stat().st_mtime_ns
        )
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder / "run", folder / "cache")
    with reaped(process):
        assert process.wait(timeout=300) == 0, (folder / "run.log").read_text()
    return evidence(folder / "run")


@dataclass
class Campaign:
    """One run after the other, each killed until it ends by itself."""

    folder: Path
    draw: random.Random
    kills: int = 0
    runs: int = 0
    starts: int = 0
    evidence: int = 0
    moments: list[float] = field(default_factory=list)

    def carry_on(self, undisturbed: dict[str, bytes], kills: int) -> None:
        """Start a fresh run, kill and restart it, and compare what it ends with."""
        self.runs += 1
        out, cache = self.folder / f"run-{self.runs}", self.folder / f"cache-{self.runs}"
        done: dict[Path, int] = {}
        while True:
            ended = self._once(out, cache, last=self.kills >= kills)
            now = {**finished(out), **fits(cache)}
            again = [path for path, written in done.items() if now.get(path) != written]
            assert again == [], "finished evidence was made again"
            done = now
            if ended:
                break
        self.evidence += len(done)
        left = evidence(out)
        assert left.keys() == undisturbed.keys()
        assert [name for name in left if left[name] != undisturbed[name]] == []
        shutil.rmtree(out)
        shutil.rmtree(cache)

    def _once(self, out: Path, cache: Path, last: bool) -> bool:
        """Start the run and kill it, unless it is the last; return whether it ended itself."""
        self.starts += 1
        moment = 600.0 if last else self.draw.uniform(*MOMENTS)
        process = start(out, cache)
        with reaped(process):
            try:
                status = process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                assert not last, out.with_suffix(".log").read_text()
                self.kills += kill(process)
                self.moments.append(moment)
                return False
        assert status == 0, out.with_suffix(".log").read_text()
        return True


def test_killed_at_any_moment_a_run_ends_as_an_undisturbed_one(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    campaign = Campaign(tmp_path, random.Random(SEED))
    begun = time.monotonic()
    while campaign.kills < KILLS:
        campaign.carry_on(undisturbed, KILLS)
    cells = len(json.loads(undisturbed["results.json"]))
    say(
        f"\n{campaign.kills} SIGKILLs between {min(campaign.moments, default=0):.1f} and "
        f"{max(campaign.moments, default=0):.1f} s, {campaign.starts} starts, {campaign.runs} runs "
        f"of {cells} cells ended as the undisturbed one, {campaign.evidence} files of evidence "
        f"whole and written once, {time.monotonic() - begun:.0f} s"
    )


def test_two_runs_over_one_cache_neither_corrupt_nor_duplicate(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    learnt, killed, begun = 0, 0, time.monotonic()
    for number in range(RACES):
        folder = tmp_path / str(number)
        folder.mkdir()
        disturbed = number % 4 == 1  # a dead racer's locks must not stop the other
        killed += disturbed
        learnt += race(folder, draw, disturbed, undisturbed)
        shutil.rmtree(folder)
    say(
        f"\n{RACES} races of two runs over one cache, {killed} with one of them killed and "
        f"restarted: {learnt} fits, each learnt once, {time.monotonic() - begun:.0f} s"
    )


def race(folder: Path, draw: random.Random, disturbed: bool, undisturbed: dict[str, bytes]) -> int:
    """Run two at once over an empty cache; return the number of fits that the cache holds."""
    cache, outs = folder / "cache", [folder / "first", folder / "second"]
    first = start(outs[0], cache)
    time.sleep(draw.uniform(0, 1))
    second = start(outs[1], cache)
    racers = [first, second]
    with reaped(first, second):
        if disturbed:
            time.sleep(draw.uniform(3, 9))
            kill(first)
            racers[0] = start(outs[0], cache)
        with reaped(racers[0]):
            for racer, out in zip(racers, outs, strict=True):
                assert racer.wait(timeout=300) == 0, out.with_suffix(".log").read_text()
    for out in outs:
        left = evidence(out)
        assert left.keys() == undisturbed.keys()
        assert [name for name in left if left[name] != undisturbed[name]] == []
    return learnt_once(cache, outs)


def learnt_once(cache: Path, outs: list[Path]) -> int:
    """Check that both runs hold the very weights of the cache: none was learnt again."""
    stored = [path for path in fits(cache) if path.suffix == ".safetensors"]
    inodes = {path.stat().st_ino for path in stored}
    for out in outs:
        weights = list(out.glob("models/*.safetensors"))
        assert len(weights) == len(stored)
        for path in weights:
            if path.stat().st_nlink > 1:  # a file system without hard links copies
                assert path.stat().st_ino in inodes, f"{path.name} was learnt twice"
            assert path.stat().st_nlink in (1, 1 + len(outs))
    return len(stored)


MATRIX = """
[[defense]]
name = "poisons"
[[attack]]
name = "leaves"
how = ["dtype", "grad", "denormal", "sign", "hook", "device", "recursion", "zero", "data", "cache"]
"""
POISONS = '''


@bench.defense("poisons")
@dataclass(frozen=True)
class Poisons(bench.Defense):
    """Learns from data that it changes in place."""

    def fit(self, model, train, context):
        train.x.mul_(0.5)
        context.train(model, train.x, train.y)
'''


def test_what_plugins_leave_and_kills_and_a_shared_cache_together_change_nothing(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Every node of ``smoke`` has the bytes of an undisturbed run, beside whatever is run."""
    draw, kills, nodes, begun = random.Random(SEED), 0, 0, time.monotonic()
    smoke = (ROOT / "bench" / "matrices" / "smoke.toml").read_text()
    (tmp_path / "mixed.toml").write_text(f"{smoke}\n{MATRIX}".replace('"smoke"', '"mixed"', 1))
    (tmp_path / "leaves.py").write_text(LEAVES + POISONS)
    mixed = (str(tmp_path / "mixed.toml"), "--plugin", str(tmp_path / "leaves.py"))
    for number in range(MIXES):
        folder = tmp_path / str(number)
        folder.mkdir()
        for attempt in range(4):  # killed thrice, then left to its end
            plain = start(folder / "plain", folder / "cache")
            both = (plain, start(folder / "mixed", folder / "cache", *mixed))
            with reaped(*both):
                if attempt < 3:
                    time.sleep(draw.uniform(*MOMENTS))
                    kills += sum(kill(process) for process in both)
                else:
                    assert [process.wait(timeout=600) for process in both] == [0, 1]
        left = evidence(folder / "plain")
        assert [name for name in undisturbed if left.get(name) != undisturbed[name]] == []
        left = evidence(folder / "mixed")
        shared = [
            name for name in undisturbed if name.split("/")[0] in ("models", "probes", "cells")
        ]
        assert [name for name in shared if left.get(name) != undisturbed[name]] == []
        nodes += 2 * len([name for name in shared if name.endswith(".json")])
        shutil.rmtree(folder)
    say(
        f"\n{MIXES} pairs over one cache, one of each with ten attacks and a defense that leave "
        f"traces, {kills} SIGKILLs: {nodes} nodes as the undisturbed run's, "
        f"{time.monotonic() - begun:.0f} s"
    )
