"""Names and text from plugins, matrices and data do no harm; nothing is downloaded unasked."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bench.base.text import one_line, plain
from bench.base.types import Spec, UserError
from bench.cli import app
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import DataSettings
from leaderboard.pages.markdown import escape

ROOT = Path(__file__).parents[1]
HOSTILE = [
    "<script>alert(1)</script>",
    "../../x",
    "a|b\n| c | d |",
    "`rm -rf`",
    "$(touch harmed)",
    "\x1b[31mred\x1b]0;title\x07",
    "[bold red]rich[/]",
    "![x](http://example.com/x.png)",
    "\u202egnp.exe",
    "<!-- end -->",
]
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202e]")
PLUGIN = '''"""Plugins that take any text."""
from dataclasses import dataclass

import bench


@bench.defense("hostile")
@dataclass(frozen=True)
class Hostile(bench.Defense):
    """Untrained; ``text`` is anything \\x1b[31m <script>."""

    text: str = ""


@bench.attack("hostile")
@dataclass(frozen=True)
class HostileAttack(bench.Attack):
    """Raises with ``text``."""

    text: str = ""

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.1)

    def perturb(self, model, x, y, target, context):
        if self.text:
            raise ValueError(f"broken {self.text}")
        return bench.Perturbation(x, stop_reason=["\\x1b[31m<script>|"] * len(x))
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    doors.load_plugins()
    for found in registry.REGISTRIES.values():
        monkeypatch.setattr(found, "_entries", dict(found._entries))
        monkeypatch.setattr(found, "_classes", dict(found._classes))


def invoke(*args: str) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(app, args)


def retort(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RETORT_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "bench", *args],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.process
def test_hostile_parameters_and_messages_do_no_harm(tmp_path: Path) -> None:
    home = tmp_path / "a folder with spaces" / "work"
    home.mkdir(parents=True)
    (home / "my plugin.py").write_text(PLUGIN)
    texts = json.dumps(HOSTILE)  # JSON's escapes are TOML's, but for a few
    (home / "m.toml").write_text(
        f'name = "m"\nrecipe = "smoke"\nsources = 60\n[[defense]]\nname = "hostile"\n'
        f'text = {texts}\n[[attack]]\nname = "hostile"\ntext = ["", {json.dumps(HOSTILE[5])}]\n'
    )
    done = retort(
        "run", "--matrix", "m.toml", "--plugin", "my plugin.py", "--workers", "1", cwd=home
    )
    assert done.returncode == 1, done.stderr  # the attack that raises
    assert "Traceback" not in done.stdout + done.stderr
    whole = retort("show", "runs/m-digits", "--table", "attacks", cwd=home).stdout
    for stream in (done.stdout, done.stderr, whole):
        assert not CONTROLS.search(stream)
    assert "\\x1b[31mred" in whole
    assert "[bold red]rich" in whole  # shown, not obeyed

    made = [path.relative_to(home) for path in home.rglob("*")]
    assert {path.parts[0] for path in made} == {"runs", "cache", "m.toml", "my plugin.py"}
    assert all(re.fullmatch(r"[\w.-]+", part) for path in made for part in path.parts[1:])
    assert sorted(path.name for path in home.parent.iterdir()) == ["work"]

    rows = json.loads((home / "runs" / "m-digits" / "results.json").read_text())
    assert {row["defense_params"]["text"] for row in rows} == set(HOSTILE)
    page = (home / "runs" / "m-digits" / "leaderboard.md").read_text()
    assert "<script" not in page.replace("\\<script", "")
    assert "![x]" not in page
    assert not re.search(r"(?<!\\)`rm", page)
    assert not CONTROLS.search(page)
    tables = [line for line in page.splitlines() if line.startswith("| hostile")]
    assert tables
    assert "| c |" not in page


@pytest.mark.parametrize("command", ["list", "list hostile", "run --matrix m.toml --dry-run"])
def test_listings_and_plans_show_hostile_text_as_text(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my plugin.py").write_text(PLUGIN)
    defense = f'[[defense]]\nname = "hostile"\ntext = {json.dumps(HOSTILE)}\n'
    Path("m.toml").write_text(f'name = "m"\nattack = ["fgsm"]\n{defense}')
    done = invoke(*command.split(), "--plugin", "my plugin.py")
    assert done.exit_code == 0, done.output
    assert "\\x1b[31m" in done.stdout
    assert not CONTROLS.search(done.stdout)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_with_a_printable_message(name: str) -> None:
    doors.load_plugins()
    for found in registry.REGISTRIES.values():
        with pytest.raises(UserError) as caught:
            found.make(Spec(name))
        assert "\x1b" not in str(caught.value)
    with pytest.raises(UserError, match="name"):
        parse_matrix({"name": name, "defense": ["undefended"], "attack": ["fgsm"]}, "test")


def test_a_hostile_name_ends_the_command_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text('name = "m"\ndefense = ["../../\\u001b[31mx"]\nattack = ["fgsm"]\n')
    done = invoke("run", "--matrix", "m.toml")
    assert done.exit_code == 2
    assert "unknown defense" in done.stderr
    assert not CONTROLS.search(done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["m.toml"]


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_one_line_without_controls_or_markup(text: str) -> None:
    for shown in (one_line(text), escape(text)):
        assert shown.isprintable()
    assert plain(plain(text)) == plain(text)
    assert not re.search(r"(?<!\\)[<>|`\[\]!](?<!!)", escape(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("&rlm;", r"\&rlm;"),
        ("at http://example.com", r"at http\://example.com"),
        ("www.example.com", r"www\.example.com"),
        ("$x$", r"\$x\$"),
        ("a\u3164b\ue000", r"a\\u3164b\\ue000"),
    ],
)
def test_what_a_page_would_make_of_text_is_escaped(text: str, shown: str) -> None:
    """FAULTS E."""
    assert escape(text) == shown


def test_plain_keeps_what_is_meant() -> None:
    text = "ρ_adv ≤ 25 %: naïve\n\tlogits"
    assert plain(text) == text
    assert plain("\udce9") == "\\udce9"  # a file name that is no UTF-8


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_offline_forbids_every_download(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket
    import urllib.request

    from torchvision.datasets import utils

    called: list[str] = []

    def refuse(*args: object, **options: object) -> None:
        called.append(str(args))
        raise OSError("no network here")

    for holder, function in (
        (utils, "download_url"), (utils, "download_and_extract_archive"),
        (urllib.request, "urlopen"), (socket, "create_connection"), (socket, "getaddrinfo"),
    ):  # fmt: skip
        monkeypatch.setattr(holder, function, refuse)
    doors.load_plugins()
    source = registry.DATASETS.make(Spec(name))
    with pytest.raises(UserError, match="--offline forbids"):
        source.load(DataSettings(tmp_path, offline=True))
    assert called == []
    with pytest.raises(UserError, match="cannot be downloaded"):  # the guard itself works
        source.load(DataSettings(tmp_path))
    assert called or name == "fashion-mnist"  # which is published over plain HTTP alone


def test_offline_at_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--dataset", "mnist", "--data-dir", str(tmp_path))
    done = invoke("run", "--matrix", "smoke", *data, "--offline")
    assert done.exit_code == 2
    assert "--offline forbids" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_security_rules_of_the_linter_stay_on() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert [rule for rule in lint["ignore"] if re.fullmatch(r"S\d*", rule)] == ["S101"]


UNPICKLE = ROOT / "bench" / "plugins" / "unpickle.py"
"""The one door for pickles: it reads those alone whose SHA-256 its user trusts."""


def test_nothing_is_pickled_evaluated_or_run_by_a_shell() -> None:
    forbidden = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "subprocess"}
    for package in ("attacks", "bench", "defenses", "leaderboard"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] + [getattr(node, "module", "")]
                    if path == UNPICKLE and names == ["cloudpickle", ""]:
                        continue
                    assert not {name.partition(".")[0] for name in names if name} & forbidden, path
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in {"eval", "exec", "compile"}, path
