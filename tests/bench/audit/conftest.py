"""``verify`` of a small run, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.bench.conftest import Command


@pytest.fixture
def verify(small: Path, command: Command) -> Callable[..., Result]:
    """``verify RUN`` with the plugin, the cache and the data of the small run."""

    def call(run: Path, *args: object) -> Result:
        where = ("--plugin", small / "noisy.py", "--cache-dir", small / "cache", "--offline")
        return command("verify", run, *where, *args)

    return call
