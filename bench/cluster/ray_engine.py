"""Ray: tasks to nodes, files to its object store, what a node that dies had to others."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.base.text import reason_of
from bench.base.types import UserError
from bench.cluster.engine import Needs

RETRIES = 5
"""How often a task is given to another node where its own died: what kills six is a failure."""

ANSWER = 10.0
"""Seconds in which an address must take a connection."""

FRESH = 5.0
"""Seconds for which the number of slots is taken as known."""

STEP = 1 << 28
"""Bytes to whose multiple a need of memory is rounded up: Ray keeps workers by what they need."""

LEAST = 0.25
"""The smallest share of a GPU that a task gets: memory is not all that it takes of it."""

GLANCE = 0.01
"""The share of a GPU that it takes to see one at all."""

MISSING = "Ray is not installed: pip install 'retort-bench[ray]', here and on every node"


@dataclass(frozen=True)
class Kept:
    """Something in Ray's object store; inside a list, where Ray fetches nothing by itself."""

    reference: list[Any]

    def read(self) -> bytes:
        """Return it, from this node's store or another's."""
        import ray

        found: bytes = ray.get(self.reference[0])
        return found


class RayEngine:
    """A Ray cluster that this process is connected to; ``gpus``: whether tasks want one."""

    def __init__(self, gpus: bool) -> None:
        import ray

        self.ray = ray
        self.gpus = gpus
        self._slots = (0, -FRESH)

    @property
    def slots(self) -> int:
        """How many tasks the cluster can run, as it is now."""
        found, when = self._slots
        if time.monotonic() - when > FRESH:
            there = self.ray.cluster_resources()
            found = int(there.get("GPU", 0) / LEAST if self.gpus else there.get("CPU", 0))
            self._slots = (found, time.monotonic())
        return found

    def machines(self) -> Sequence[str]:
        """Return the ids of the nodes that can take a task."""
        wanted = "GPU" if self.gpus else "CPU"
        return [
            node["NodeID"]
            for node in self.ray.nodes()
            if node["Alive"] and node["Resources"].get(wanted, 0) >= 1
        ]

    def submit(self, work: Callable[..., Any], *args: object, needs: Needs) -> Future[Any]:
        """Run it on a node that has what it needs, on another where that one dies."""
        memory = -(-needs.memory // STEP) * STEP if needs.memory else 0
        share = 0.0
        if self.gpus:
            share = 1.0 if needs.gpu is None else max(LEAST, min(1.0, round(needs.gpu + 0.05, 1)))
        return self._start(
            (work, *args), num_cpus=0 if self.gpus else 1, num_gpus=share, memory=memory or None,
            max_retries=RETRIES,
        )  # fmt: skip

    def on(self, machine: str, work: Callable[..., Any], *args: object) -> Future[Any]:
        """Run it on the node of this id, whatever else runs there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return self._start(
            (work, *args), num_cpus=0, num_gpus=GLANCE if self.gpus else 0, max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False),
        )  # fmt: skip

    def store(self, content: bytes) -> Kept:
        """Put it into the object store, once."""
        return Kept([self.ray.put(content)])

    def _start(self, call: tuple[Any, ...], **options: Any) -> Future[Any]:
        future: Future[Any] = self.ray.remote(_on_node).options(**options).remote(*call).future()
        return future


def _on_node(work: Callable[..., Any], *args: object) -> Any:
    import ray

    return work(*args, ray.get_runtime_context().get_node_id())


@contextlib.contextmanager
def connected(address: str, gpus: bool) -> Iterator[RayEngine]:
    """Connect to a cluster: ``auto``, ``local``, HOST:PORT or ray://HOST:PORT; leave it at the end.

    Raises UserError where Ray is not installed, or nothing that fits answers.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(MISSING) from error
    _probe(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Ray will do
            here = {"include_dashboard": False} if address == "local" else {"address": address}
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    except ImportError as error:
        raise UserError(f"{error}: pip install 'retort-bench[ray]'") from error
    except (Exception, SystemExit) as error:
        raise UserError(_unreachable(address, reason_of(error))) from error
    try:
        engine = RayEngine(gpus)
        if not engine.machines():
            raise UserError(
                f"the Ray cluster at {address!r} has no node with a {'GPU' if gpus else 'CPU'}"
            )
        yield engine
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raise UserError where nothing listens: Ray itself would wait for minutes."""
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None:
        raise UserError(
            f"--address {address!r}: auto, local, HOST:PORT or ray://HOST:PORT is expected"
        )
    try:
        socket.create_connection((parts.hostname, port), ANSWER).close()
    except OSError as error:
        raise UserError(_unreachable(address, str(error))) from error


def _unreachable(address: str, why: str) -> str:
    if address == "auto":
        return (
            "no Ray cluster runs here: start one with `ray start --head`, name one with --address "
            f"HOST:PORT or ray://HOST:PORT, or say --address local ({why})"
        )
    return (
        f"no Ray cluster answers at {address!r} ({why}): `ray status --address {address}` shows "
        "whether it runs; its Ray and its Python must be those of this machine"
    )
