"""The figures behind the thresholds, from records whose figures can be counted by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.base.files import write_json, write_records
from bench.base.rows import Results
from bench.base.types import DataInfo
from bench.claims.calibration import QUANTITIES, Figure, figures
from bench.evidence.finished_run import FinishedRun
from bench.evidence.folder import RunFolder
from bench.plan.graph import make_plan
from bench.plan.matrix import load_matrix, parse_matrix
from bench.plugins import discovery as doors
from leaderboard.pages.calibration import BEGIN, END, honest_table, insert, masked_table

INFO = DataInfo("digits", (1, 8, 8), 10, (0.3,), (0.3,))
SOURCES = 20


def records(broken: int) -> pd.DataFrame:
    """A cell within 2 features that breaks the first so many of twenty sources."""
    return pd.DataFrame(
        [
            {
                "sample_id": i, "target": -1, "status": "attacked", "success": i < broken,
                "misclassified": i < broken, "l0_features": 2, "l0_pixels": 2, "l2": 1.0,
                "linf": 1.0,
            }
            for i in range(SOURCES)
        ]
    )  # fmt: skip


def run_of(folder: Path, broken: dict[tuple[str, str], int]) -> FinishedRun:
    """A finished L0 run; ``broken``: sources that fall, by defense and role or attack's label."""
    table = {
        "name": "m", "sources": SOURCES, "panel": [{"norm": "l0", "budgets": [2]}],
        "defense": [{"name": "undefended"}, {"name": "twin"}, {"name": "distillation"}],
    }  # fmt: skip
    plan = make_plan(parse_matrix(table, "m"))
    fits = {node.id: node.document["defense"] for node in plan.of("fit")}
    attacked = {node.needs["model"] for node in plan.of("cell")}
    models = [
        {"id": name, "status": "done", "defense": fits[name]["name"], "seed": 0, "flags": [],
         "defense_params": fits[name]["params"], "not_evaluated": {},
         "gradients": {"zero_share": 0.02, "cosine_median": 0.5}}
        for name in fits if name in attacked
    ]  # fmt: skip
    rows = []
    for node in plan.of("cell"):
        spec = node.document["attack"]
        label = f"{spec['name']} {spec['params'].get('output', '')}".strip()
        found = broken.get((fits[node.needs["model"]]["name"], label), 1)
        path = RunFolder(folder).cell(node.id)
        checksum = write_records(path.with_suffix(".parquet"), records(found))
        write_json(path, {"files": {"records": checksum}})
        rows.append(
            {"id": node.id, "attack": spec["name"], "attack_params": spec["params"],
             "status": "done", "reason": None, "flags": [], "sources": SOURCES}
        )  # fmt: skip
    return FinishedRun(RunFolder(folder), plan, Results(rows, models), {})


def test_every_figure_is_what_the_records_say(tmp_path: Path) -> None:
    doors.load_plugins(())
    counts = {
        ("undefended", "sparse_rs"): 8,
        ("twin", "sparse_rs"): 11,
        ("distillation", "jsma probs"): 2,
        ("distillation", "jsma log_odds"): 18,
        ("distillation", "sparse_rs"): 19,
    }
    found = figures(run_of(tmp_path, counts), INFO)
    by = {(f.defense, f.flag): f for f in found}
    gain = by["distillation", "log-odds-beats-probs"]
    assert (gain.value, gain.crossed, gain.norm, gain.at) == (0.8, True, "l0", 2)
    assert gain.p == pytest.approx(2.0**-16)
    assert by["undefended", "log-odds-beats-probs"].value == 0
    box = by["undefended", "black-box-beats-gradient"]
    assert (box.value, box.crossed) == (pytest.approx(7 / 20), True)  # 8 against 1
    assert by["distillation", "black-box-beats-gradient"].value == pytest.approx(1 / 20)
    assert by["twin", "twins"].value == pytest.approx(3 / 20)
    assert by["twin", "twins"].crossed
    assert ("undefended", "twins") not in by
    assert (by["twin", "zero-gradient"].crossed, by["twin", "gradient-direction"].crossed) == (
        False,
        True,
    )


def figure(flag: str, defense: str, value: float, crossed: bool) -> Figure:
    return Figure(flag, defense, {}, 0, None, None, value, crossed)


def test_the_tables_show_the_worst_honest_figure_and_whether_the_threshold_holds() -> None:
    rows = [
        figure("gradient-direction", "twin", 0.99, False),
        figure("gradient-direction", "label_smoothing", 0.95, False),
        figure("naive-beaten", "twin", 0.07, False),
        figure("naive-beaten", "undefended", 0.2, True),
        figure("naive-beaten", "distillation", 0.9, True),
    ]
    table = honest_table(rows).set_index("flag")
    assert list(table.index) == list(QUANTITIES)
    line: Any = table.loc["gradient-direction"]
    assert (line["honest figures"], line["worst"], line["crossed"], line["holds"]) == (
        2, "0.9500", 0, "yes",
    )  # fmt: skip
    assert table.loc["naive-beaten", "holds"] == "no"
    assert table.loc["unbounded-budget", "holds"] == "–"  # never measured is not clear
    (masked,) = masked_table(rows).to_dict("records")
    assert masked["naive-beaten"] == "1/1 (0.9000 to 0.9000)"


def test_tables_replace_what_stands_between_the_marks() -> None:
    page = f"a\n{BEGIN}\nold\n{END}\nb"
    assert insert(page, "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"
    with pytest.raises(ValueError, match="calibration"):
        insert("a", "new")
    docs = Path(__file__).parents[3] / "docs" / "verdict.md"
    assert "\n\nnew\n\n" in insert(docs.read_text(encoding="utf-8"), "new")


def test_the_matrix_has_five_seeds_and_three_budgets() -> None:
    matrix = load_matrix("calibration")
    assert len(matrix.seeds) >= 5
    assert {panel.norm: len(panel.budgets) for panel in matrix.panel} == {"linf": 3, "l0": 3}
    names = {spec.name for spec in matrix.defenses()}
    assert {"undefended", "twin", "label_smoothing", "adversarial_training"} < names
