"""A user's own package called as one of ours is named in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.process
@pytest.mark.parametrize("name", ["attacks", "defenses", "leaderboard"])
def test_a_foreign_package_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = ("from bench.cli import main; main()", "error: ")
    notebook = "import bench\ntry: bench.run('smoke')\nexcept bench.UserError as e: print(e)"
    for code, end in [command, *([(notebook, "")] if name == "attacks" else [])]:
        done = subprocess.run(
            [sys.executable, "-c", code, "list", name], cwd=tmp_path, capture_output=True,
            env={**os.environ, "PYTHONPATH": path}, text=True, check=False,
        )  # fmt: skip
        said = (done.stdout + done.stderr).strip()
        assert len(said.splitlines()) == 1, said
        assert said.startswith(f"{end}Retort's package '{name}' is another one, {tmp_path / name}")
        assert done.returncode == (2 if end else 0)
