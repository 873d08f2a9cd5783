"""What the page of `full` costs: making it, opening it, sorting it. Asserts no times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.evidence.finished_run import read_results
from leaderboard.site.index_page import index_page
from leaderboard.site.run_page import run_page
from tests.leaderboard.site.examples import judged

FULL = Path(__file__).parents[2] / "leaderboard" / "published" / "full-digits"

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    """An empty tab of a real browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_making_the_page(benchmark: Any) -> None:
    results = read_results(FULL)
    environment = json.loads((FULL / "environment.json").read_text())
    page = benchmark.pedantic(run_page, (results, environment), rounds=5, warmup_rounds=1)
    pictures = sum(len(part.partition('"')[0]) for part in page.split("data:image/png")[1:])
    benchmark.extra_info["bytes"] = len(page.encode())
    benchmark.extra_info["bytes without pictures"] = len(page.encode()) - pictures


@pytest.mark.process
def test_opening_the_page(benchmark: Any, tab: Any) -> None:
    def opened() -> None:
        tab.goto((FULL / "index.html").as_uri(), wait_until="commit")
        tab.wait_for_selector(".verdicts tr.b:visible")

    benchmark.pedantic(opened, rounds=5, warmup_rounds=1)
    tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
    benchmark.extra_info["first paint, ms"] = tab.evaluate(paint)
    benchmark.extra_info |= {f"{name}, ms": 1000 * v for name, v in _processor(tab).items()}


@pytest.mark.process
def test_sorting_a_thousand_rows(benchmark: Any, tab: Any, tmp_path: Path) -> None:
    results = judged([f"d{number}" for number in range(1000)])
    line = {"name": "r", "dataset": "d", "sources": 1, "seeds": 1, "shows": "", "headline": "",
            "pages": []}  # fmt: skip
    page = tmp_path / "index.html"
    page.write_text(index_page([(line, results)]), encoding="utf-8")
    tab.goto(page.as_uri())
    assert tab.locator("#t-verdicts tbody").count() == 1000
    click = """() => {
        document.querySelector("#t-verdicts th[data-key=worst] button").click();
        document.body.offsetHeight;
    }"""
    before = _processor(tab)
    benchmark.pedantic(lambda: tab.evaluate(click), rounds=9)
    spent = {name: value - before[name] for name, value in _processor(tab).items()}
    benchmark.extra_info |= {f"{name}, ms of CPU a sort": 1000 * v / 9 for name, v in spent.items()}


def _processor(tab: Any) -> dict[str, float]:
    """Return the seconds of the processor that a page has spent: they do not wait for others."""
    asked = tab.context.new_cdp_session(tab)
    asked.send("Performance.enable", {"timeDomain": "threadTicks"})
    found = {one["name"]: one["value"] for one in asked.send("Performance.getMetrics")["metrics"]}
    return {name: found[f"{name}Duration"] for name in ("Script", "RecalcStyle", "Layout")}
