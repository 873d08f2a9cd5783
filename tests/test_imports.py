"""Who may import whom, read from the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "defenses", "attacks", "leaderboard")
ALLOWED = {
    "bench": {"bench"},
    "defenses": {"bench", "defenses"},
    "attacks": {"bench", "attacks"},
    "leaderboard": {"bench", "leaderboard"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names & set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    files = [path for path in (ROOT / package).rglob("*.py") if path.name != "cli.py"]
    assert files
    for path in files:
        assert imported(path) <= ALLOWED[package], path


def test_types_need_no_torch() -> None:
    code = "import sys, bench.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_embedded_path_needs_neither_torchvision_nor_art() -> None:
    code = (
        "import sys, bench; bench.evaluate; from bench import doors, registry, cli;"
        "doors.load_plugins();"
        "registry.DATASETS.make(bench.Spec('digits')).load(bench.DataSettings());"
        "[registry.ATTACKS.get(name) for name in registry.ATTACKS.names()];"
        "import leaderboard.markdown, leaderboard.terminal;"
        "sys.exit('torchvision' in sys.modules or 'art' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['retort', '--help'];\n"
        "from bench.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
