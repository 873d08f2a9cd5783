"""Figures: what they show is what the rows say, and the same rows give the same bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bench.base.files import write_json, write_records, write_tensors
from bench.base.rows import Results
from bench.base.types import DataInfo
from bench.evidence.folder import RunFolder
from bench.plugins.data import Dataset, Split
from leaderboard.figures.mosaic import DOWN, UP, marked, panels
from leaderboard.figures.style import save
from leaderboard.figures.temperature import draw, scale, sensitivity
from leaderboard.pages.publish import publish
from leaderboard.tables.headline import measured_on
from leaderboard.tables.sweeps import jsma_cells, sweep
from tests.leaderboard.rows import ENVIRONMENT, cell, model, sweep_results, who

RESULTS = sweep_results()


@pytest.fixture(scope="module")
def figures() -> Any:
    return draw(RESULTS)


def drawn(figure: Any, label: str) -> list[float]:
    """The heights of a series, models without a temperature last."""
    axes = figure.axes[0]
    lines = [
        container.lines[0] for container in axes.containers if container.get_label() == label
    ] or [line for line in axes.lines if line.get_label() == label]
    assert lines, label
    return [float(y) for line in lines for y in line.get_ydata()]


def test_success_shows_the_rows_and_the_published_points(figures: Any) -> None:
    rows = jsma_cells(RESULTS.cells, "probs")
    wanted = [100 * p.value for p in sweep(rows, "distillation", "success_rate")] + [96.1]
    assert drawn(figures["success"], "on probabilities") == pytest.approx(wanted)
    stated = drawn(figures["success"], "published")
    assert stated[:2] == pytest.approx([95.89, 98.89])
    recalled = drawn(figures["success"], "published, recalled")
    assert recalled[0] == pytest.approx(91)
    assert len(stated) + len(recalled) == 11


def test_every_other_figure_shows_its_rows(figures: Any) -> None:
    wanted = [100 * p.value for p in sweep(RESULTS.models, "distillation", "accuracy")] + [99]
    assert drawn(figures["accuracy"], "distillation") == pytest.approx(wanted)
    assert drawn(figures["logits"], "mean |logit|")[-2:] == pytest.approx([600, 6])
    assert drawn(figures["robustness"], "published") == pytest.approx([1.55, 13.79, 14.08])
    below = drawn(figures["sensitivity"], "T = 100")
    assert below == sorted(below)
    assert below[-1] == pytest.approx(100)
    points = drawn(figures["scale"], "on probabilities")
    points += drawn(figures["scale"], "on probabilities, no teacher")
    assert len(points) == len(RESULTS.models)
    assert set(figures) == {
        "success", "accuracy", "robustness", "confidence", "sensitivity", "logits", "scale",
    }  # fmt: skip


def test_one_temperature_is_no_sweep() -> None:
    swept = sweep_results()
    only = [row for row in swept.models if row["defense_params"].get("temperature") in (None, 5.0)]
    cells = [row for row in swept.cells if row["defense_params"].get("temperature") in (None, 5.0)]
    assert not {"success", "robustness", "accuracy"} & set(draw(Results(cells, only, [])))


def test_an_image_says_what_it_was_measured_on(tmp_path: Path) -> None:
    figure = sensitivity(sweep_results())
    assert figure is not None
    save({"sensitivity": figure}, tmp_path, measured_on(RESULTS))
    assert figure.get_supxlabel().startswith("mnist; n; r; 100 sources; seed 0; L0 ≤ 14.29")
    assert measured_on(Results([], [])) == ""


def test_intervals_are_the_rows_own(figures: Any) -> None:
    (container, *_) = figures["success"].axes[0].containers
    ends = container.lines[2][0].get_segments()
    assert ends[0][:, 1].tolist() == pytest.approx([93, 97])


def test_the_same_rows_give_the_same_bytes(figures: Any, tmp_path: Path) -> None:
    first = save({"sensitivity": figures["sensitivity"]}, tmp_path / "a")
    again = sensitivity(sweep_results())
    assert again is not None
    second = save({"sensitivity": again}, tmp_path / "b")
    assert [path.name for path in first] == ["sensitivity.pdf", "sensitivity.png"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert b"CreationDate" not in first[0].read_bytes()


def test_runs_stand_side_by_side_and_too_many_are_refused() -> None:
    found = scale({"fast": RESULTS, "paper": RESULTS})
    assert len(drawn(found, "paper: log-odds")) == len(RESULTS.models)
    with pytest.raises(ValueError, match="at most 7 runs, got 8"):
        scale({str(number): RESULTS for number in range(8)})


def test_nothing_to_show_is_no_figure() -> None:
    assert draw(Results([], [], [])) == {}


def test_a_changed_pixel_takes_the_colour_of_its_direction() -> None:
    clean = np.full((1, 2, 2), 0.5, np.float32)
    moved = clean.copy()
    moved[0, 0, 0], moved[0, 1, 1] = 1, 0
    shown = marked(clean, moved)
    assert shown[0, 0].tolist() == pytest.approx(UP)
    assert shown[1, 1].tolist() == pytest.approx(DOWN)
    assert shown[0, 1].tolist() == [0.5] * 3


def test_the_panel_is_made_of_the_stored_inputs(tmp_path: Path) -> None:
    of = who("undefended")
    row = cell(of, 0.5, "log_odds", id="c")
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x_adv = x[[1, 0, 0]].clone()
    x_adv[1, 0, 2, 3] = 1.5
    records = pd.DataFrame(
        {
            "sample_id": [1, 0, 0], "label": [1, 0, 0], "target": [0, 1, 2],
            "status": ["misclassified", "attacked", "attacked"], "success": [False, True, False],
        }
    )  # fmt: skip
    folder = RunFolder(tmp_path)
    path = folder.cell("c")
    files = {
        "records": write_records(path.with_suffix(".parquet"), records),
        "inputs": write_tensors(path.with_suffix(".safetensors"), {"x_adv": x_adv}),
    }
    write_json(path, {"files": files})
    split = Split(x, torch.tensor([0, 1]))
    info = DataInfo("d", (1, 4, 4), 3, (0.0,), (1.0,))
    data = Dataset(info, split, split, split, "")
    (made,) = panels(Results([row], [model(of)], []), folder, data).values()
    (image,) = made.axes[0].images
    mosaic = np.asarray(image.get_array())
    assert mosaic.shape == (16, 16, 3)
    assert mosaic[2, 6 + 3].tolist() == pytest.approx(UP)
    assert mosaic[:4, :4, 0] == pytest.approx(x[0, 0].numpy())
    assert (mosaic[6:] == 1).all()  # class 1 was never attacked
    crosses = [line for line in made.axes[0].lines if line.get_color() == "white"]
    assert len(crosses) == 1


def test_publish_makes_the_pages_and_copies_the_figures(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    environment = {**ENVIRONMENT, "matrix": {**ENVIRONMENT["matrix"], "report": "distillation"}}  # type: ignore[dict-item]
    for name, document in RESULTS.documents().items():
        write_json(run / name, document)
    write_json(run / "environment.json", environment)
    write_json(run / "timings.json", {})
    write_json(run / "costs.json", {"inference": {"reason": None}, "training": {}})
    (run / "figures").mkdir()
    for name in ("success.png", "success.pdf", "notes.txt"):
        (run / "figures" / name).write_bytes(b"x")
    target = publish(run, tmp_path / "published")
    assert {path.name for path in (target / "figures").iterdir()} == {"success.png", "success.pdf"}
    assert "## The autopsy" in (target / "distillation.md").read_text()
    assert (target / "cost.md").exists()
    (run / "costs.json").unlink()  # of a run from before models were timed in turns
    assert not (publish(run, tmp_path / "published") / "cost.md").exists()
