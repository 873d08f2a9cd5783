"""Two Ray nodes, which share nothing of a run but the object store."""

import time
from pathlib import Path

import pytest

from tests.bench.cluster.clusters import (
    cluster_of,
    evidence,
    finish,
    kill_when_at_work,
    rays,
    start,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, in the process that starts its nodes
]


def test_two_nodes_leave_what_one_machine_leaves_and_one_of_them_may_die(
    small: Path, finished: Path, tmp_path: Path
) -> None:
    before = rays()
    with cluster_of(2) as (cluster, nodes):
        args = (
            "--matrix", str(small / "small.toml"), "--plugin", str(small / "noisy.py"),
            "--executor", "ray", "--address", cluster.address,
        )  # fmt: skip
        finish(start(tmp_path, "both", *args))
        run = start(tmp_path, "killed", *args)
        assert kill_when_at_work(cluster, nodes[0], run, tmp_path / "killed", 0.5)
        finish(run)
    assert evidence(tmp_path / "both") == evidence(finished)
    assert evidence(tmp_path / "killed") == evidence(finished)
    end = time.monotonic() + 30
    while rays() != before and time.monotonic() < end:
        time.sleep(0.2)
    assert rays() == before  # start and stop leave no process behind


def test_no_cluster_here_is_said_with_what_to_do(tmp_path: Path, small: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    args = ("--matrix", str(small / "small.toml"), "--plugin", str(small / "noisy.py"))
    said = " ".join(finish(start(tmp_path, "out", *args, "--executor", "ray"), status=2).split())
    assert "no Ray cluster runs here: start one with `ray start --head`" in said
    assert not (tmp_path / "out").exists()
