"""A real package, built and installed by pip: its entry points are found by a fresh process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("plugin package")]
ROOT = Path(__file__).parents[1]
BROKEN = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "retort-broken"
version = "0.1.0"
[project.entry-points."retort.attacks"]
gone = "retort_broken.attacks:Gone"
fgsm = "retort_broken:Impostor"
"<script>" = "retort_broken:Impostor"
[project.entry-points."retort.defenses"]
quits = "retort_broken.quits:Quits"
[tool.setuptools]
packages = ["retort_broken"]
"""
MATRIX = """
name = "example"
recipe = "smoke"
sources = 10
[[defense]]
name = "example-noise"
sigma = 0.2
[[attack]]
name = "example-uniform"
eps = 0.3
"""


def install(package: Path, site: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet",
        "--no-build-isolation", "--disable-pip-version-check", "--target", str(site), str(package),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def retort(*args: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
        "RETORT_CACHE": str(cwd / "cache"),
    }
    return subprocess.run(
        [sys.executable, "-m", "bench", *args],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    # A copy: building leaves files beside the sources.
    shutil.copytree(ROOT / "tests" / "plugin_package", folder / "source")
    install(folder / "source", folder / "site")
    return folder / "site"


def test_its_plugins_are_listed_with_their_docstrings(site: Path, tmp_path: Path) -> None:
    done = retort("list", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "example-noise" in done.stdout
    assert "Add noise drawn uniformly" in done.stdout


def test_a_matrix_runs_with_them_in_worker_processes(site: Path, tmp_path: Path) -> None:
    (tmp_path / "example.toml").write_text(MATRIX)
    done = retort("run", "--matrix", "example.toml", "--workers", "1", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "runs" / "example-digits" / "results.json").read_text())
    assert [row["defense_params"]["sigma"] for row in rows] == [0.2]
    assert {row["status"] for row in rows} == {"done"}
    assert {row["attack"] for row in rows} == {"example-uniform"}


def test_it_passes_the_conformance_suite(site: Path, tmp_path: Path) -> None:
    done = retort("check", "retort_example", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "defense example-noise: gradients" in done.stdout
    assert "attack example-uniform: budget" in done.stdout
    assert "FAILED" not in done.stdout


def test_a_broken_package_is_a_row_and_breaks_only_who_selects_it(tmp_path: Path) -> None:
    package = tmp_path / "broken"
    (package / "retort_broken").mkdir(parents=True)
    (package / "pyproject.toml").write_text(BROKEN)
    (package / "retort_broken" / "__init__.py").write_text("class Impostor: pass\n")
    (package / "retort_broken" / "quits.py").write_text("raise SystemExit('bye')\n")
    install(package, tmp_path / "site")

    done = retort("list", site=tmp_path / "site", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "broken: attack 'gone' (from retort-broken" in lines["gone"]
    assert "ModuleNotFoundError" in lines["gone"]
    assert "broken: defense 'quits'" in lines["quits"]
    assert "two attacks are called 'fgsm'" in lines["fgsm"]
    assert "attacks.fgsm:FGSM" in lines["fgsm"]
    assert "not valid" in lines["<script>"]

    code = (
        "from bench import Spec, UserError\n"
        "from bench.plugins import discovery, registry; discovery.load_plugins()\n"
        "print(registry.ATTACKS.make(Spec('jsma')).theta)\n"
        "for name in ('gone', 'fgsm', '<script>'):\n"
        "    try: registry.ATTACKS.make(Spec(name))\n"
        "    except UserError as error: print('refused', name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    selected = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert selected.stdout.split("\n")[:4] == ["1.0", "refused gone", "refused fgsm",
                                               "refused <script>"], selected.stderr  # fmt: skip
