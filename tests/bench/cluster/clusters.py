"""Ray clusters of several nodes on this machine, which share no folder of a run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SETTINGS = {"RAY_worker_niceness": "0", "RAY_health_check_period_ms": "1000"}


@contextlib.contextmanager
def cluster_of(nodes: int) -> Iterator[tuple[Any, list[Any]]]:
    """Start a head without a CPU and so many ``nodes`` with one each."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.update(SETTINGS, PYTHONPATH=str(ROOT))
    cluster = Cluster()
    try:
        try:
            cluster.add_node(num_cpus=0)
            started = [cluster.add_node(num_cpus=1) for _ in range(nodes)]
        except Exception as error:  # noqa: BLE001 (Ray gives itself 30 s, on a busy machine too few)
            pytest.skip(f"Ray's own nodes did not start here: {error}")
        yield cluster, started
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def start(folder: Path, name: str, *args: str) -> subprocess.Popen[str]:
    """Start ``retort run`` into ``folder/name``, with a cache of its own."""
    command = [
        sys.executable, "-m", "bench", "run", "--out", name, "--cache-dir", f"{name}-cache",
        "--device", "cpu", "--offline", *args,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for it; return what it printed."""
    said, _ = process.communicate(timeout=900)
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


def evidence(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every result and of every file of evidence, by its place."""
    names = ("results.json", "models.json", "verdicts.json", "sources.json")
    paths = [run / name for name in names if (run / name).exists()]
    for folder in ("models", "probes", "cells", "rechecks"):
        paths += sorted((run / folder).iterdir())
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def kill_when_at_work(
    cluster: Any, node: Any, process: subprocess.Popen[str], run: Path, after: float
) -> bool:
    """SIGKILL ``node`` so many seconds after the first model of ``run`` lies there.

    Return whether the run's ``process`` was still at work.
    """
    while not list((run / "models").glob("*.json")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(after)
    at_work = process.poll() is None
    cluster.remove_node(node, allow_graceful=False)
    return at_work


def rays() -> list[str]:
    """Return the processes of Ray, and of work that Ray started, that live on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line.startswith("ray::") or "/raylet/raylet" in line or "/gcs/gcs_server" in line:
                found.append(line[:80])
    return found
