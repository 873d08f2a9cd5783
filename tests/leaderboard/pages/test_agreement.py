"""The agreement matrix: ours against its brute force and its peers."""

import importlib.util
import json
from pathlib import Path

import pytest

from bench.results.cell_metrics import disagreement
from leaderboard.pages.agreement import note
from tests.bench.results.test_cell_metrics import records
from tests.bench.test_run import retort


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    command = (
        "run",
        "--matrix",
        "agreement",
        "--sources",
        "4",
        "--recipe",
        "smoke",
        "--offline",
        "--workers",
        "1",
    )
    done = retort(*command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "agreement-digits"


@pytest.mark.process
@pytest.mark.xdist_group("agreement")
def test_ours_takes_the_brute_forces_steps_on_every_output(run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())
    ours = [
        row for row in rows
        if row["attack"] == "jsma" and row["attack_params"]["saliency"] == "papernot"
        and row["attack_params"]["output"] != "probs"
    ]  # fmt: skip
    assert len(ours) == 4
    for row in ours:
        assert row["compared"] >= 27
        assert row["outcomes_differ"] == 0
        # float32 against float64: a tie may be broken otherwise, once in a while.
        assert row["inputs_differ"] <= 1


@pytest.mark.process
@pytest.mark.xdist_group("agreement")
def test_arts_map_is_the_target_gradient_and_its_excess_is_flagged(run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())
    art = [r for r in rows if r["attack"] == "art" and r["attack_params"]["output"] == "logits"]
    ours = [r for r in rows if r["attack_params"].get("saliency") == "target_gradient"]
    assert [r["success_rate"] for r in art] == [r["success_rate"] for r in ours]
    assert all(r["inputs_differ"] > 0 for r in ours)
    # Wherever ART fails it has gone a pair beyond the budget.
    for row in art:
        flagged = [f["value"] for f in row["flags"] if f["id"] == "invalid-output"]
        assert flagged == (
            [] if row["success_rate"] == 1 else [pytest.approx(1 - row["success_rate"])]
        )


@pytest.mark.process
@pytest.mark.xdist_group("agreement")
def test_the_peer_is_done_or_skipped_and_never_silent(run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())
    statuses = {row["status"] for row in rows if row["attack"] == "torchattacks_jsma"}
    installed = importlib.util.find_spec("torchattacks") is not None
    assert statuses == ({"done"} if installed else {"skipped"})
    if not installed:
        assert "torchattacks is not installed" in (run / "leaderboard.md").read_text()


@pytest.mark.process
@pytest.mark.xdist_group("agreement")
def test_the_page_has_a_line_and_a_remark_for_every_attack(run: Path) -> None:
    page = (run / "agreement.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + 10)
    assert page.count("overshoots by up to a pair") == 4
    assert page.count("what ART does on logits, within the budget") == 2


def test_disagreement_by_hand() -> None:
    def attempt(target: int, success: bool, content: str) -> dict:
        return {"sample_id": 1, "target": target, "success": success, "adversarial_hash": content}

    first = records([attempt(0, True, "a"), attempt(2, False, "b"), attempt(3, True, "c")])
    second = records([attempt(0, True, "a"), attempt(2, True, "d"), attempt(3, True, "e")])
    found = disagreement(second, first)
    assert found == {"compared": 3, "outcomes_differ": 1, "inputs_differ": 2}
    other = disagreement(second[:2], first)
    assert other == {"compared": None, "outcomes_differ": None, "inputs_differ": None}


def test_the_closest_tables_remark_is_shown() -> None:
    tables = [
        {"name": "jsma", "output": ["logits", "probs"], "note": "any"},
        {"name": "jsma", "output": "logits", "saliency": "single", "note": "single"},
    ]
    environment = {"matrix": {"attack": tables}}

    def of(**params: str) -> str:
        return note({"attack": "jsma", "attack_params": params}, environment)

    assert of(output="logits", saliency="papernot") == "any"
    assert of(output="logits", saliency="single") == "single"
    assert of(output="log_odds", saliency="single") == ""
