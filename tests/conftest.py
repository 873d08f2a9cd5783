"""Tests by cost: those that start processes are marked ``process`` and first in line, the rest not.

``make unit`` runs the rest. An unmarked test that starts a process fails here, so that the
developer's loop stays short.
"""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch

from bench.base.places import start_at


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: no core is left waiting for one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("process") is None)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """A core a worker of pytest-xdist: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def paths_start_here() -> Iterator[None]:
    """Where a run of one test let relative paths start is nothing to the next one."""
    start_at(None)
    yield
    start_at(None)


@pytest.fixture(autouse=True)
def processes_are_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse a process to a test without the marker."""

    start = subprocess.Popen.__init__

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        pytest.fail("a test that starts a process is marked pytest.mark.process")

    def refuse_python(process: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
        # A library may ask for the version of git while it is imported.
        if args[0] == sys.executable:
            refuse()
        start(process, args, *rest, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("process") is None:
            patch.setattr(subprocess.Popen, "__init__", refuse_python)
            patch.setattr("multiprocessing.process.BaseProcess.start", refuse)
        yield
