"""Who may import whom, read from the imports themselves."""

import ast
import re
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
    composed = {
        ROOT / "bench" / f"{name}.py" for name in ("cli", "commands", "compose", "judging/answer")
    }
    files = [path for path in (ROOT / package).rglob("*.py") if path not in composed]
    assert files
    for path in files:
        assert imported(path) <= ALLOWED[package], path


FLOORS = {
    "bench": [
        {"base"},
        {"plugins"},
        {"plan", "training", "measure"},
        {"suspicion", "handed"},
        {"evidence", "conformance"},
        {"runner", "verdict"},
        {"results", "claims", "cluster"},
        {"audit"},
        {"compose", "evaluation"},
        {"judging", "merging"},
        {"skeleton"},
        {"commands"},
        {"cli"},
    ],
    "attacks": [
        {"kit"},
        {"carlini_wagner", "jsma", "peers"},
        {path.stem for path in (ROOT / "attacks").glob("*.py")} - {"__init__"},
    ],
    "leaderboard": [{"tables"}, {"figures"}, {"findings"}, {"site"}, {"pages"}, {"terminal"}],
}
"""The rooms of a package, floor by floor: a room imports itself and floors before its own."""


def _rooms(path: Path, package: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            names.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_the_way_of_the_data_is_one_way(package: str) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    for path in (ROOT / package).rglob("*.py"):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        for other in _rooms(path, package) - {room}:
            assert other in floor, f"{path}: {package}.{other} stands on no floor"
            assert floor[other] < floor[room], f"{path}: {room} imports {other}"


def test_every_room_stands_on_a_floor_and_holds_at_most_ten_files() -> None:
    for package in PACKAGES:
        for folder in (ROOT / package).rglob("*"):
            if folder.is_dir() and any(folder.glob("*.py")):
                files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
                assert len(files) <= 10 or folder == ROOT / "defenses", folder
        rooms = {p.name for p in (ROOT / package).iterdir() if p.is_dir() and any(p.glob("*.py"))}
        if package in FLOORS:
            assert rooms <= set().union(*FLOORS[package])


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_the_map_of_the_house_has_every_room_on_its_floor(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (table,) = re.findall(rf"\| floor \| `{package}/` \|.*?\n\n", text + "\n\n", flags=re.DOTALL)
    shown = {
        (room.removesuffix(".py"), int(floor))
        for floor, rooms in re.findall(r"^\| (\d+) \| ([^|]*) \|", table, flags=re.MULTILINE)
        for room in re.findall(r"`([\w.]+)`", rooms)
    }
    folders = {room for room in set().union(*FLOORS[package]) if (ROOT / package / room).is_dir()}
    floors = {room: floor for floor, rooms in enumerate(FLOORS[package], 1) for room in rooms}
    assert {room for room, _ in shown} >= folders
    assert all(floors[room] == floor for room, floor in shown)


def test_no_room_takes_the_place_of_a_public_name() -> None:
    # Importing ``bench.run.keys`` would put a module where ``bench.run`` is a function.
    import bench

    folder = ROOT / "bench"
    rooms = {path.name.removesuffix(".py") for path in folder.iterdir() if path.name[0] != "_"}
    assert not rooms & set(bench.__all__)


@pytest.mark.process
def test_types_need_no_torch() -> None:
    code = "import sys, bench.base.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.process
def test_the_embedded_path_needs_neither_torchvision_nor_art() -> None:
    code = (
        "import sys, bench; bench.evaluate; from bench import cli;"
        "from bench.plugins import discovery, registry; discovery.load_plugins();"
        "registry.DATASETS.make(bench.Spec('digits')).load(bench.DataSettings());"
        "[registry.ATTACKS.get(name) for name in registry.ATTACKS.names()];"
        "import leaderboard.pages.leaderboard, leaderboard.terminal.results;"
        "sys.exit('torchvision' in sys.modules or 'art' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.process
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
