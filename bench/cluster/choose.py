"""Which executor runs a matrix, by what the user says: local, ray, or one of his own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from bench.base.offline import forbid_network
from bench.base.types import UserError
from bench.cluster.engine import Engine, made_by
from bench.cluster.ray_engine import connected
from bench.cluster.remote import RemoteExecutor
from bench.plan.graph import Plan
from bench.plan.options import RunOptions
from bench.plugins.data import Dataset
from bench.runner import processes
from bench.runner.task import Executor, Settings


@contextlib.contextmanager
def executor_of(
    options: RunOptions, plan: Plan, data: Dataset, settings: Settings
) -> Iterator[Executor]:
    """Yield what carries out ``plan``: worker processes here, or machines that are asked first.

    Raises UserError where the executor is unknown, does not answer, or has a machine that cannot do
    the work.
    """
    name, timeout = options.executor, options.cell_timeout
    if name == "local":
        workers = options.workers or processes.default_workers(settings.device)
        if settings.memory is None:
            settings = replace(settings, memory=processes.default_memory(workers))
        with processes.LocalExecutor(settings, workers, timeout) as here:
            yield here
        return
    engine: contextlib.AbstractContextManager[Engine]
    if name == "ray":
        engine = connected(options.address, gpus=settings.device_class != "cpu")
    elif ":" in name:
        engine = made_by(name, options.workers)
    else:
        raise UserError(f"unknown executor {name!r}: valid: local, ray, my_module:factory")
    forbid_network(offline=False)  # of this process, which must reach the machines; theirs may not
    try:
        with (
            engine as machines,
            RemoteExecutor(plan, data, settings, machines, options.workers, timeout) as there,
        ):
            yield there
    finally:
        forbid_network(settings.data.offline)
