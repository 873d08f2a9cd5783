"""Nodes of a cluster killed while they work: the run completes, and nothing is lost or doubled."""

import os
import random
from pathlib import Path

import pytest

from tests.bench.cluster.clusters import cluster_of, evidence, finish, kill_when_at_work, start

pytestmark = pytest.mark.process

KILLS = int(os.environ.get("RETORT_SOAK_NODES", "10"))
SEED = int(os.environ.get("RETORT_SOAK_SEED", "0"))


def test_a_node_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    finish(start(tmp_path, "whole", "--matrix", "smoke"))
    whole = evidence(tmp_path / "whole")
    for kill in range(KILLS):
        after = draw.uniform(0.0, 8.0)
        with cluster_of(2) as (cluster, nodes):
            ray = ("--executor", "ray", "--address", cluster.address)
            run = start(tmp_path, f"kill-{kill}", "--matrix", "smoke", *ray)
            early = kill_when_at_work(
                cluster, nodes[kill % 2], run, tmp_path / f"kill-{kill}", after
            )
            finish(run)
        assert evidence(tmp_path / f"kill-{kill}") == whole
        said = f"killed {after:.1f} s after the first model, while it ran: {early}; same bytes"
        print(said, flush=True)  # noqa: T201 (a campaign says how far it is)
