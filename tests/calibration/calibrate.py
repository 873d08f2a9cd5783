"""Write the tables of docs/verdict.md from a run of the matrix ``calibration``.

``make calibrate`` runs the matrix and then this. Usage: calibrate.py RUN PAGE JSON
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from bench.base.files import default_cache, write_json, write_text
from bench.base.types import Spec
from bench.claims.calibration import figures
from bench.evidence.finished_run import read_run
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import DataSettings
from leaderboard.pages.calibration import calibration_tables, insert


def main(run_folder: str, page: str, document: str) -> None:
    doors.load_plugins(("defenses.canaries",))
    run = read_run(Path(run_folder))
    dataset = registry.DATASETS.make(Spec(run.plan.dataset["name"], run.plan.dataset["params"]))
    data = dataset.load(DataSettings(cache_dir=default_cache()))
    found = figures(run, data.info)
    write_json(Path(document), [asdict(figure) for figure in found])
    text = Path(page).read_text(encoding="utf-8")
    write_text(Path(page), insert(text, calibration_tables(found, run.results)))


if __name__ == "__main__":
    main(*sys.argv[1:])
