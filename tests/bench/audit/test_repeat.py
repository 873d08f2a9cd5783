"""What nobody measured is found out where cells and fits are made anew."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from bench.audit.published import read_published, seal
from bench.audit.repeat import Choice
from bench.base.files import read_json, read_tensors, write_json
from bench.evidence.finished_run import read_run
from leaderboard.pages.publish import write_pages
from tests.bench.conftest import _invoke, in_process, options
from tests.soak.forgeries import NOTICED, UNNOTICED, Forger, elsewhere, forge, set_weights

ALL = ("--again", "6", "--again-fits", "2")


def test_what_is_made_anew_is_identical_and_only_then_verified(finished, verify) -> None:
    done = verify(finished, *ALL, "--seed", "7")
    assert done.exit_code == 0, done.output
    assert "made anew: 6 cells, 2 fits (--seed 7): 8 identical" in done.output
    assert "\nverified: " in done.output
    alone = verify(finished)
    assert "consistent with itself: " in alone.output
    assert "verified" not in alone.output


def test_the_seed_draws_the_cells_and_is_told(finished, verify) -> None:
    run = read_run(finished)
    drawn = {tuple(Choice(2, 1, seed).drawn(run)["cell"]) for seed in range(20)}
    assert len(drawn) > 5
    assert Choice(2, 1, 3).drawn(run) == Choice(2, 1, 3).drawn(run)
    assert len(set(Choice(99, 0, 3).drawn(run)["cell"])) == 6
    assert Choice(99, 0, 3).drawn(run)["fit"] == []
    told = verify(finished, "--again", "1").output
    assert "made anew: 1 cells, 0 fits (--seed " in told


@pytest.mark.parametrize("forgery", NOTICED)
def test_a_sealed_forgery_is_consistent_and_found_out(forgery, finished, tmp_path, verify) -> None:
    """FAULTS B, forgeries."""
    touched = forge(finished, tmp_path / "forged", forgery, seed=1)
    alone = verify(tmp_path / "forged")
    assert alone.exit_code == 0, alone.output
    assert "consistent with itself" in alone.output
    done = verify(tmp_path / "forged", *ALL)
    assert done.exit_code == 1, done.output
    assert any(f"{item}: again" in done.output for item in touched)


@pytest.mark.parametrize("forgery", UNNOTICED)
def test_what_another_machine_or_version_explains_passes(
    forgery, finished, tmp_path, verify
) -> None:
    """FAULTS B, arguable: no outcome changes."""
    forge(finished, tmp_path / "forged", forgery, seed=1)
    done = verify(tmp_path / "forged", *ALL)
    assert done.exit_code == 0, done.output


def test_weights_of_another_model_are_found_out_by_a_fit(
    finished, small, tmp_path, command, verify
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "forged"))
    noisy = list(read_run(run).fits())[1]
    stored = read_tensors(run / "models" / f"{noisy}.safetensors")
    set_weights(run, noisy, {name: value * 1.01 for name, value in stored.items()})
    assert command("run", *options(small), "--out", run).exit_code == 0
    assert verify(run, "--again", "6").exit_code == 0
    done = verify(run, "--again-fits", "2")
    assert done.exit_code == 1
    assert f"{noisy}: again: weights" in done.output


def test_elsewhere_a_cell_may_differ_a_little_and_not_much(finished, tmp_path, verify) -> None:
    def few(forger: Forger, draw: random.Random) -> list[str]:
        elsewhere(forger)
        node = next(node for node in forger.cells() if node.document["attack"]["name"] == "fgsm")
        forger.inputs(node, lambda x_adv, x: x_adv - 1e-3 * (x_adv - x))
        return [node.id]

    def many(forger: Forger, draw: random.Random) -> list[str]:
        elsewhere(forger)
        return NOTICED[0](forger, draw)

    forge(finished, tmp_path / "few", few, seed=1)
    done = verify(tmp_path / "few", *ALL)
    assert done.exit_code == 0, done.output
    assert "1 within tolerance" in done.output
    forge(finished, tmp_path / "many", many, seed=1)
    done = verify(tmp_path / "many", *ALL)
    assert done.exit_code == 1, done.output
    assert "at most 1 otherwise" in done.output


PUBLISHED = {
    "a digit": (lambda run: rewrite(run, "leaderboard.md", "1", "2"), "leaderboard.md: line"),
    "a rate": (
        lambda run: rewrite(run, "results.json", '"successes": ', '"successes": 9'),
        "SHA-256 of results.json",
    ),
    "a file": (lambda run: (run / "best.md").write_text("best"), "SHA-256 of best.md"),
    "no file": (lambda run: (run / "models.json").unlink(), "is no finished run"),
    "an outcome": (lambda run: rewrite(run, "audit.json", "identical", "differs"), "outcome in"),
    "other cells": (
        lambda run: rewrite(run, "audit.json", '"kind": "cell",', '"kind": "fit",'),
        "fits drawn by seed",
    ),
}


def rewrite(run: Path, name: str, old: str, new: str) -> None:
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="session")
def published(finished: Path, small: Path) -> Path:
    with in_process():
        done = _invoke("publish", finished, "--to", small / "published", "--cache-dir",
                       small / "cache", "--plugin", small / "noisy.py", "--offline")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "made anew: 5 cells, 1 fits" in done.output
    return small / "published" / "run"


def test_what_is_published_says_what_was_made_anew_and_can_be_made_anew(published, verify) -> None:
    record = read_json(published / "audit.json")
    assert record["again"] == {"cells": 5, "fits": 1, "seed": record["again"]["seed"]}
    assert [item["kind"] for item in record["repeated"]] == ["fit", *["cell"] * 5]
    assert {item["outcome"] for item in record["repeated"]} == {"identical"}
    assert record["environment"]["libraries"]["torch"]
    assert record["verified"]["counts"]["cells"] == 6
    assert set(record["files"]) == {
        path.name for path in published.iterdir() if path.name != "audit.json"
    }
    done = verify(published)
    assert done.exit_code == 0, done.output
    assert "consistent with itself" in done.output
    done = verify(published, "--again", "6", "--again-fits", "2")
    assert done.exit_code == 0, done.output
    assert "6 cells, 2 fits" in done.output
    assert "8 identical" in done.output


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_change_of_what_is_published_is_noticed(name, published, tmp_path, verify) -> None:
    run = Path(shutil.copytree(published, tmp_path / "run"))
    damage, said = PUBLISHED[name]
    damage(run)
    done = verify(run)
    assert done.exit_code == (2 if "finished" in said else 1), done.output
    assert said in done.output


def test_a_published_figure_that_was_sealed_again_is_found_out(published, tmp_path, verify) -> None:
    run = Path(shutil.copytree(published, tmp_path / "run"))
    rows = read_json(run / "results.json")
    rows[1]["success_rate"] = 0.01
    write_json(run / "results.json", rows)
    write_pages(run, read_published(run).results, read_json(run / "environment.json"))
    seal(run, {"verified": None})
    assert verify(run).exit_code == 0
    done = verify(run, "--again", "6")
    assert done.exit_code == 1
    assert f"{rows[1]['id']}: again: success_rate" in done.output


def test_a_run_that_differs_is_not_published(finished, small, tmp_path, command) -> None:
    forge(finished, tmp_path / "forged", NOTICED[0], seed=1)
    args = ("--plugin", small / "noisy.py", "--cache-dir", small / "cache", "--offline")
    to = tmp_path / "published"
    done = command("publish", tmp_path / "forged", "--to", to, "--again", "6", *args)
    assert done.exit_code == 1
    assert not (to / "forged").exists()
