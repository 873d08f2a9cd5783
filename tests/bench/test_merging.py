"""Runs made apart, united: the same results as one run of all seeds, or a refusal."""

import json
import shutil
from pathlib import Path

import pytest

from bench.base.files import read_json, write_json
from tests.bench.cluster.clusters import evidence
from tests.bench.conftest import Command, _invoke, in_process

MATRIX = """
name = "apart"
recipe = "smoke"
sources = 8
[[defense]]
name = "undefended"
[[defense]]
name = "label_smoothing"
amount = 0.1
[[panel]]
norm = "linf"
budgets = [0.2]
"""


def run(command: Command, folder: Path, seeds: str, *args: str) -> Path:
    out = folder / f"seeds-{seeds}"
    done = command(
        "run", "--matrix", folder / "apart.toml", "--seeds", seeds, "--out", out, "--device", "cpu",
        "--offline", "--cache-dir", folder / "cache", *args,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of seed 0, of seed 1, and of both."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "apart.toml").write_text(MATRIX)
    with in_process():
        for seeds in ("0", "1", "0,1"):
            run(_invoke, folder, seeds)
    return folder


def merge(command: Command, out: Path, *runs: Path, status: int = 0) -> str:
    done = command("merge", *runs, "--out", out, "--offline")
    assert done.exit_code == status, done.output
    return " ".join(done.output.split())


def changed(apart: Path, to: Path, name: str, value: object) -> Path:
    """Copy the run of seed 1 with another value of one field of every cell's key."""
    there = Path(shutil.copytree(apart / "seeds-1", to))
    for path in (there / "cells").glob("*.json"):
        document = read_json(path)
        if "key" in document:
            document["key"][name] = value
            write_json(path, document)
    return there


@pytest.mark.process
def test_seeds_made_apart_are_one_run(apart: Path, tmp_path: Path, command: Command) -> None:
    said = merge(command, tmp_path / "whole", apart / "seeds-1", apart / "seeds-0")
    assert "consistent with itself" in said
    assert evidence(tmp_path / "whole") == evidence(apart / "seeds-0,1")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("attack_source", "of other code", "attack_source of"),
        ("harness_source", "of other code", "harness_source of"),
        ("data", "of other data", "data of"),
        ("device", "cuda", "device of"),
    ],
)
def test_runs_made_otherwise_are_refused(
    apart: Path, tmp_path: Path, command: Command, name: str, value: str, told: str
) -> None:
    other = changed(apart, tmp_path / "other", name, value)
    said = merge(command, tmp_path / "whole", apart / "seeds-0", other, status=2)
    assert "do not belong together" in said
    assert told in said
    assert value in said
    assert not (tmp_path / "whole").exists()


def test_runs_of_other_matrices_are_refused(apart: Path, tmp_path: Path, command: Command) -> None:
    other = Path(shutil.copytree(apart / "seeds-1", tmp_path / "other"))
    plan = json.loads((other / "plan.json").read_text())
    plan["matrix"]["sources"] = 9
    (other / "plan.json").write_text(json.dumps(plan))
    said = merge(command, tmp_path / "whole", apart / "seeds-0", other, status=2)
    assert "are runs of other matrices: sources = 8 and 9" in said


def test_two_runs_of_one_seed_must_say_the_same(
    apart: Path, tmp_path: Path, command: Command
) -> None:
    other = Path(shutil.copytree(apart / "seeds-1", tmp_path / "other"))
    path = next(path for path in (other / "cells").glob("*.json") if "key" in read_json(path))
    write_json(path, {**read_json(path), "files": {"records": "0", "inputs": "0"}})
    said = merge(command, tmp_path / "whole", apart / "seeds-1", other, status=2)
    assert f"both hold the cell {path.stem}, and not the same evidence of it" in said


def test_what_is_no_run_is_refused(apart: Path, tmp_path: Path, command: Command) -> None:
    assert "is no finished run" in merge(
        command, tmp_path / "whole", apart / "seeds-0", tmp_path, status=2
    )
    said = merge(command, apart / "seeds-0", apart / "seeds-0", apart / "seeds-1", status=2)
    assert "merge writes a folder of its own" in said
