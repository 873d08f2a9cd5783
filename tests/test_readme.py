"""The README's own code, run."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from bench.evidence.finished_run import read_results
from leaderboard.pages.publish import every_page
from leaderboard.pages.readme import MARKED, TABLES, refresh

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
DISTILLATION = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")


def block(language: str, holds: str, page: str = README) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    (text,) = [text for text in found if holds in text]
    return text


@pytest.mark.process
def test_the_defense_and_the_matrix_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "my_defense.py").write_text(block("python", "my_defense.py"))
    matrix = 'recipe = "smoke"\nsources = 10\n' + block("toml", "uniform_augmentation", USAGE)
    (tmp_path / "mine.toml").write_text(matrix)
    command = ["-m", "bench", "run", "--matrix", "mine.toml", "--plugin", "my_defense.py"]
    assert f"run by `python -m bench run --matrix noise.toml {' '.join(command[-2:])}`" in README
    done = subprocess.run(
        [sys.executable, *command, "--cache-dir", "cache", "--workers", "1"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "runs" / "mine-digits" / "results.json").read_text())
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"done"}
    assert {row["defense_params"].get("width") for row in rows} == {None, 0.1, 0.3}


@pytest.mark.process
def test_your_own_model_and_inputs_of_the_readme_run(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n\ndef build(info):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(info.features, info.classes))\n"
    )
    weights = {"1.weight": torch.eye(10, 64), "1.bias": torch.zeros(10)}
    save_file(weights, tmp_path / "model.safetensors")
    inputs = {"x_adv": torch.rand(300, 1, 8, 8), "sample_ids": torch.arange(300)}
    save_file(inputs, tmp_path / "adv.safetensors")
    (tmp_path / "own.toml").write_text("sources = 10\n" + block("toml", "own.toml", USAGE))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--matrix", "own.toml", "--cache-dir", "cache",
         "--workers", "1"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "runs" / "own-digits" / "results.json").read_text())
    assert (row["defense"], row["attack"], row["status"]) == ("checkpoint", "submission", "done")
    assert set(row["stop_reasons"]) == {"submitted"}
    assert "invalid-output" in {flag["id"] for flag in row["flags"]}  # noise is no 0.1 away


def test_the_three_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    raw = load_digits()
    x = torch.tensor(raw.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(raw.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1500]), y[:1500]).backward()
        optimizer.step()
    names = {"model": model, "x_test": x[1500:1560], "y_test": y[1500:1560]}
    exec(block("python", "bench.evaluate"), names)
    shown = capsys.readouterr().out
    assert "jsma" in shown
    assert "pgd" in shown


def test_the_tables_of_the_readme_are_the_published_ones() -> None:
    assert len(MARKED.findall(README + FINDINGS + DISTILLATION)) == len(TABLES)
    assert refresh(README) == README
    assert refresh(FINDINGS) == FINDINGS
    assert refresh(DISTILLATION) == DISTILLATION


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 150
    made_elsewhere = {"docs/files.md", "docs/architecture.md", "CONTRIBUTING.md"}
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", README):
        assert target in made_elsewhere or (ROOT / target).exists(), target


def test_the_matrix_and_the_claim_of_the_readme_are_read() -> None:
    from bench.claims.claim import Claim
    from bench.plan.matrix import parse_matrix

    matrix = parse_matrix(tomllib.loads(block("toml", "noise.toml")), "README.md")
    assert [panel.budgets for panel in matrix.panel] == [[0.1, 0.2]]
    claim = Claim.model_validate(tomllib.loads(block("toml", "accuracy_at_least")))
    assert claim.defense["name"] == "checkpoint"


@pytest.mark.parametrize("folder", sorted((ROOT / "leaderboard" / "published").glob("*/")))
def test_published_pages_regenerate_byte_for_byte(folder: Path) -> None:
    environment = json.loads((folder / "environment.json").read_text())
    made = every_page(folder, read_results(folder), environment)
    assert {path.name for path in folder.glob("*.md")} <= set(made)
    for name, page in made.items():
        assert (folder / name).read_text() == page, name


def test_the_help_shows_its_defaults() -> None:
    from typer.testing import CliRunner

    from bench.cli import app

    shown = " ".join(CliRunner().invoke(app, ["run", "--help"]).output.split())
    assert "[runs/MATRIX-DATASET]" in shown
    assert "[RETORT_DATA]" in shown
