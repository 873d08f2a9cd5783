"""A real browser, where there is one, and pages opened in it as from a double click."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; tests that use it are marked ``process``."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # In a container there is no sandbox to be had; every page is our own file.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    """Open a page's text or file, without a network; no error, and nothing is asked for."""
    contexts, trouble = [], []

    def show(page: str | Path, anchor: str = "", **options: Any) -> Any:
        if isinstance(page, str):
            path = tmp_path / f"page{len(contexts)}.html"
            path.write_text(page, encoding="utf-8")
            page = path
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        address = f"{page.absolute().as_uri()}{anchor}"
        tab.on("console", lambda said: trouble.append(said.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda asked: trouble.append(asked.url)
               if asked.url.split("#")[0] != page.absolute().as_uri()
               and not asked.url.startswith("data:") else None)  # fmt: skip
        tab.goto(address)
        return tab

    yield show
    for context in contexts:
        context.close()
    assert trouble == []
