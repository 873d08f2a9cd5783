"""``verify`` and ``run --dry-run`` run a stranger's code only when asked, and look at all of it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.base.files import read_json, write_json, write_tensors
from bench.plugins import discovery

ROOT = Path(__file__).parents[3]
BUILDER = """
from pathlib import Path

from torch import nn

Path("ran").touch()


def build(info):
    return nn.Sequential(nn.Flatten(), nn.Linear(info.features, info.classes))
"""
MATRIX = """
name = "gift"
recipe = "smoke"
sources = 3
[[defense]]
name = "checkpoint"
builder = "models{number}.py:build"
weights = "model.safetensors"
[[attack]]
name = "fgsm"
"""
numbers = itertools.count()


@pytest.fixture
def gift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A matrix whose builder leaves a trace where it is run, each under a name of its own."""
    monkeypatch.chdir(tmp_path)
    number = next(numbers)
    (tmp_path / "gift").mkdir()
    (tmp_path / f"gift/models{number}.py").write_text(BUILDER)
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 10)
    write_tensors(
        tmp_path / "gift/model.safetensors",
        {f"1.{name}": value for name, value in layer.state_dict().items()},
    )
    (tmp_path / "gift/gift.toml").write_text(MATRIX.format(number=number))
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was imported, as another process would not know it."""
    monkeypatch.setattr(discovery, "_file_name", lambda path: f"never_loaded_{path.stem}")


def test_a_plan_of_a_stranger_is_inert(gift, command, small, monkeypatch) -> None:
    """FAULTS B5."""
    dry = ("run", "--matrix", "gift/gift.toml", "--dry-run", "--cache-dir", small / "cache")
    done = command(*dry)
    assert done.exit_code == 2, done.output
    assert "is code that nobody asked to run" in " ".join(done.output.split())
    assert not Path("ran").exists()
    assert command(*dry, "--trust").exit_code == 0
    assert Path("ran").exists()

    done = command("run", "--matrix", "gift/gift.toml", "--cache-dir", small / "cache",
                   "--out", "run", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    Path("ran").unlink()
    with monkeypatch.context() as patch:
        forget(patch)
        write_json(Path("run/results.json"), read_json(Path("run/results.json"))[::-1] * 2)
        done = command("verify", "run", "--cache-dir", small / "cache")
        assert done.exit_code == 2, done.output
        assert "is code that nobody asked to run" in " ".join(done.output.split())
        assert "results-key.json: SHA-256" in done.output  # what needs no code is said all the same
        assert not Path("ran").exists()


@pytest.mark.parametrize("asked", ["--trust", "--plugin"])
def test_a_builder_that_is_asked_for_is_run(asked, gift, command, small) -> None:
    """FAULTS B5."""
    run = ("--cache-dir", small / "cache", "--device", "cpu")
    assert command("run", "--matrix", "gift/gift.toml", "--out", "run", *run).exit_code == 0
    [builder] = Path("gift").glob("*.py")
    args = [asked] if asked == "--trust" else [asked, builder]
    done = command("verify", "run", *run, *args, "--again", "1")
    assert done.exit_code == 0, done.output
    assert "1 identical" in done.output


@pytest.mark.process
def test_a_plugin_that_patches_the_verification_is_told_of(copy, tmp_path, small) -> None:
    """FAULTS B4: the plugin that ``verify`` loads makes its findings vanish."""
    (tmp_path / "silent.py").write_text(
        "from bench.audit.verify_folder import Verification\n"
        "Verification.add = lambda *args: None\n"
    )
    plugins = [arg for name in (small / "noisy.py", tmp_path / "silent.py")
               for arg in ("--plugin", str(name))]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench", "verify", str(copy), *plugins], cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "functions that it replaces" in done.stdout
    assert "Verification" in done.stdout


# What is shown, beside the rows: FAULTS B1 and B2.


def nines(name: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        text = (run / name).read_text()
        (run / name).write_text("".join("9" if char.isdigit() else char for char in text))

    return change


def figure(run: Path) -> Path:
    return min((run / "figures").glob("*.png"))


def cut_figure(run: Path) -> None:
    path = figure(run)
    path.write_bytes(path.read_bytes()[:100])


def foreign(name: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("look at this")

    return change


SHOWN = {
    "findings.md": (nines("findings.md"), "findings.md: line"),
    "cost.md": (nines("cost.md"), "cost.md: line"),
    "leaderboard.md": (nines("leaderboard.md"), "leaderboard.md: line"),
    "no page": (lambda run: (run / "cost.md").unlink(), "cost.md: page"),
    "cut figure": (cut_figure, "bytes"),
    "no figure": (lambda run: figure(run).unlink(), ": figure"),
    "foreign file": (foreign("certificate.md"), "certificate.md: foreign file"),
    "foreign figure": (foreign("figures/best.png"), "figures/best.png: foreign file"),
    "foreign folder": (foreign("more/page.md"), "more/page.md: foreign file"),
    "foreign evidence": (foreign("cells/notes.json"), "cells/notes.json: foreign file"),
}


@pytest.fixture(scope="session")
def told(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with findings and figures."""
    from tests.bench.audit.test_verify import FINDINGS
    from tests.bench.conftest import _invoke, in_process

    folder = tmp_path_factory.mktemp("told")
    (folder / "told.toml").write_text(FINDINGS)
    with in_process():
        done = _invoke("run", "--matrix", folder / "told.toml", "--cache-dir", small / "cache",
                       "--out", folder / "run", "--offline", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.mark.parametrize("name", SHOWN)
def test_whatever_is_shown_is_covered(name, told, tmp_path, verify) -> None:
    """FAULTS B1."""
    run = Path(shutil.copytree(told, tmp_path / "run"))
    damage, said = SHOWN[name]
    damage(run)
    done = verify(run)
    assert done.exit_code == 1, done.output
    assert said in done.output


AGREEMENT = """
name = "agreed"
recipe = "smoke"
sources = 6
probe_samples = 6
report = "{report}"
[[defense]]
name = "undefended"
[[attack]]
name = "fgsm"
eps = [0.1, 0.2]
"""


@pytest.mark.parametrize("report", ["agreement", "distillation"])
def test_pages_of_other_reports_are_covered(report, tmp_path, small, command, verify) -> None:
    """FAULTS B1."""
    (tmp_path / "m.toml").write_text(AGREEMENT.format(report=report))
    run = tmp_path / "run"
    done = command("run", "--matrix", tmp_path / "m.toml", "--cache-dir", small / "cache",
                   "--out", run, "--offline", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert verify(run).exit_code == 0
    nines(f"{report}.md")(run)
    assert f"{report}.md: line" in verify(run).output


CLAIM = """
name = "mine"
defense = "undefended"
recipe = "smoke"
sources = 10
threat = { norm = "linf", budget = 0.2 }
accuracy_at_least = 0.9
"""


def test_an_answer_is_made_again(tmp_path, small, command, verify) -> None:
    """FAULTS B2: refuted becomes supported."""
    (tmp_path / "claim.toml").write_text(CLAIM)
    run = tmp_path / "run"
    done = command("claim", tmp_path / "claim.toml", "--cache-dir", small / "cache",
                   "--out", run, "--offline", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 1, done.output
    assert verify(run).exit_code == 0, verify(run).output
    path = run / "claim.json"
    path.write_text(path.read_text().replace("refuted", "supported"))
    done = verify(run)
    assert done.exit_code == 1
    assert "claim.json: answer" in done.output
