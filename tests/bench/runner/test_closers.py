"""Closers: planned after all that they close, given only what still stands, reused."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.base.files import read_json, read_records, write_json
from bench.cli import app
from bench.compose import run_matrix
from bench.evidence.cells import NOTHING_LEFT
from bench.evidence.finished_run import FinishedRun, read_run
from bench.plan.options import RunOptions
from bench.plan.panel import PanelFile
from bench.runner.processes import LocalExecutor
from bench.runner.worker import attack_seed
from tests.bench.conftest import in_process

PANEL = PanelFile.model_validate(
    {
        "budget": "eps",
        "attack": [
            {"role": "naive", "name": "pgd", "at": "each", "effort": [], "output": "deployed",
             "adaptive": False, "steps": 2, "restarts": 1},
            {"role": "log-odds", "name": "pgd", "at": "each", "effort": [],
             "output": "scaled_log_odds", "steps": 2, "restarts": 1},
            {"role": "closer", "name": "pgd", "at": "each", "effort": [], "round": 1,
             "output": "scaled_log_odds", "steps": 2, "restarts": 1},
            {"role": "closer", "name": "pgd", "at": "each", "effort": [], "round": 2, "above": 0.1,
             "output": "margin", "steps": 5, "restarts": 1},
        ],
    }
)  # fmt: skip
MATRIX = """
name = "closing"
recipe = "smoke"
sources = 60
probe_samples = 10
[[defense]]
name = "undefended"
[[attack]]
name = "shy"
[[panel]]
norm = "linf"
budgets = [0.1, 0.9]
"""
SHY = '''
"""An attack that asks about more than it returns."""
from dataclasses import dataclass

import torch

import bench


@bench.attack("shy")
@dataclass(frozen=True)
class Shy(bench.Attack):
    """Asks about noise, and returns the source."""

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.2)

    def perturb(self, model, x, y, target, context):
        noise = torch.randn(x.shape, generator=context.generator(x.device))
        model((x + 0.2 * noise.sign()).clamp(0, 1))
        return bench.Perturbation(x)
'''


@contextlib.contextmanager
def panel() -> Iterator[None]:
    """The small panel in place of the committed ones, and work done in this process."""
    with pytest.MonkeyPatch.context() as patch, in_process():
        patch.setattr("bench.plan.panel.panel_file", lambda norm: PANEL)
        yield


@pytest.fixture(autouse=True)
def _panel() -> Iterator[None]:
    with panel():
        yield


@pytest.fixture(scope="session")
def closing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    """A finished run of a small panel with closers, and the options that made it."""
    folder = tmp_path_factory.mktemp("closing")
    (folder / "closing.toml").write_text(MATRIX)
    (folder / "shy.py").write_text(SHY)
    options = (
        "--matrix", folder / "closing.toml", "--plugin", folder / "shy.py",
        "--cache-dir", folder / "cache", "--offline", "--device", "cpu", "--out", folder / "run",
    )  # fmt: skip
    with panel():
        done = _invoke("run", *options)
    assert done.exit_code == 0, done.output
    return folder / "run", options


def _invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(item) for item in args])


def cells(run: FinishedRun) -> dict[tuple[float, int], list[Any]]:
    """The panel's cells by budget and round."""
    found: dict[tuple[float, int], list[Any]] = {}
    for node in run.plan.of("cell"):
        if (eps := node.document["attack"]["params"].get("eps")) is not None:
            found.setdefault((eps, node.closes.round if node.closes else 0), []).append(node)
    return found


def test_a_closer_comes_after_all_of_its_panel_and_earlier_rounds(closing: Any) -> None:
    run = read_run(closing[0])
    found = cells(run)
    for budget in (0.1, 0.9):
        before: list[str] = []
        for number in (0, 1, 2):
            for node in found[budget, number]:
                assert (node.closes is None) == (number == 0)
                if node.closes:
                    assert node.closes.after == before
                    assert set(node.after) == {*before, node.needs["model"]}
            before += [node.id for node in found[budget, number]]
        assert len(before) == 4


def test_a_closer_is_given_only_what_stands(closing: Any) -> None:
    run = read_run(closing[0])
    rows = {row["id"]: row for row in run.rows}
    for number in (1, 2):
        (node,) = cells(run)[0.1, number]
        earlier = [read_records(run.folder.files("cell", cell)["records"])
                   for cell in node.closes.after if rows[cell]["status"] == "done"]  # fmt: skip
        sources = set(earlier[0]["sample_id"])
        broken: set[int] = set()
        for frame in earlier:
            gone = frame["misclassified"] | (frame["status"] == "misclassified")
            broken |= set(frame["sample_id"][gone])
        records = read_records(run.folder.files("cell", node.id)["records"])
        assert set(records["sample_id"]) == sources - broken
        assert 0 < len(records) < 60
        assert rows[node.id]["round"] == number
        assert (rows[node.id]["robust_accuracy"], rows[node.id]["paired"]) == (None, None)


def test_where_too_little_is_left_a_closer_is_skipped_and_nothing_is_missing(closing: Any) -> None:
    run = read_run(closing[0])
    rows = {row["id"]: row for row in run.rows}
    for number in (1, 2):
        (node,) = cells(run)[0.9, number]
        assert rows[node.id]["status"] == "skipped"
        assert rows[node.id]["reason"].startswith(NOTHING_LEFT)
        assert rows[node.id]["worst_case"] is not None
    (verdict,) = [row for row in run.results.verdicts if row["at"] == 0.9]
    assert verdict["seeds"][0]["worst_case"] == 0.0
    assert "panel-incomplete" not in json.dumps(verdict)


def test_no_two_attacks_share_their_draws_and_every_model_meets_the_same(closing: Any) -> None:
    run = read_run(closing[0])
    documents = [node.document for node in run.plan.of("cell")]
    seeds = [attack_seed(document) for document in documents]
    assert len(set(seeds)) == len(seeds)  # the closer of round 1 is the log-odds attack again
    assert attack_seed({**documents[0], "fit": "another"}) == seeds[0]
    starts = [
        read_records(run.folder.files("cell", node.id)["records"])["adversarial_hash"]
        for node in cells(run)[0.1, 0]
    ]
    assert (starts[0] != starts[1]).any()


def test_what_an_attack_only_asked_about_is_a_row_and_counts(closing: Any) -> None:
    run = read_run(closing[0])
    (row,) = [row for row in run.rows if row["attack"] == "shy"]
    records = read_records(run.folder.files("cell", row["id"])["records"])
    seen = records[records["status"] == "seen"]
    assert row["seen"] == seen["misclassified"].sum() > 0
    assert [flag["id"] for flag in row["flags"] if flag["severity"] == "info"] == [
        "found-not-returned"
    ]
    assert not records["success"].any()
    assert row["worst_case"] <= (60 - len(seen)) / 60


def test_the_same_command_runs_nothing_again(closing: Any) -> None:
    run, options = closing
    evidence = [*run.rglob("cells/*"), *run.rglob("rechecks/*")]
    before = {path: path.stat().st_mtime_ns for path in evidence if path.suffix != ".json"}
    documents = {path: path.read_bytes() for path in evidence if path.suffix == ".json"}
    assert _invoke("run", *options).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path: path.read_bytes() for path in documents} == documents


def test_a_closer_is_made_again_where_others_left_something_else(closing: Any) -> None:
    run, options = closing
    (node,) = cells(read_run(run))[0.1, 1]
    path = run / "cells" / f"{node.id}.json"
    document = read_json(path)
    assert "left" in document["key"]
    write_json(path, {**document, "key": {**document["key"], "left": "0" * 64}})
    assert _invoke("run", *options).exit_code == 0
    assert read_json(path) == document


def test_it_is_verified_and_a_recheck_that_was_changed_is_noticed(closing: Any) -> None:
    run, options = closing
    plugin = options[2:4]
    done = _invoke("verify", run, *plugin)
    assert done.exit_code == 0, done.output
    for name in ("differing", "reason"):
        (path,) = (run / "rechecks").glob("*.json")
        kept = read_json(path)
        assert set(kept["differing"].values()) == {0}
        forged = {"differing": dict.fromkeys(kept["differing"], 1), "reason": "it would not say"}
        write_json(path, {**kept, name: forged[name]})
        changed = _invoke("verify", run, *plugin)
        write_json(path, kept)
        assert changed.exit_code == 1
        assert "judged-differently" in changed.output or "recheck" in changed.output


@pytest.mark.process
def test_worker_processes_leave_the_same_bytes(closing: Any, tmp_path: Path) -> None:
    run, options = closing
    matrix, plugin = options[1], options[3]
    chosen = RunOptions(
        out=tmp_path / "two", workers=2, plugin=(str(plugin),),
        cache_dir=tmp_path / "cache", offline=True, device="cpu",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.runner.processes.LocalExecutor", LocalExecutor)
        run_matrix(matrix, chosen)
    names = ["results.json", "models.json", "verdicts.json"]
    names += [str(p.relative_to(run)) for kind in ("cells", "rechecks")
              for p in (run / kind).iterdir()]  # fmt: skip
    assert len(names) > 12
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (run / name).read_bytes(), name
