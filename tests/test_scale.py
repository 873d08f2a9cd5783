"""The page on scale: what the simulation prints is what the page shows."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_shows_what_the_simulation_prints(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "docs" / "scale_simulation.py"), run_name="__main__")
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- simulation -->\n(.*?)<!-- end -->", page, flags=re.DOTALL)
    assert shown.strip() == capsys.readouterr().out.strip()


def test_more_gpus_never_take_longer_and_nothing_is_faster_than_its_parts() -> None:
    names = runpy.run_path(str(ROOT / "docs" / "scale_simulation.py"))
    tasks = list(names["imagenet"]())
    work = sum(task.seconds for task in tasks)
    times = [names["run"](tasks, gpus)[0] for gpus in (1, 2, 8, 64)]
    assert times == sorted(times, reverse=True)
    assert times[0] >= work
    assert times[-1] >= sum(task.leaves for task in tasks) / names["BYTES_A_SECOND"]
