"""Every ending of a worker, and every failure of a method that the parent calls, is a value."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("endings")]
ROOT = Path(__file__).parents[2]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RETORT_CACHE": str(folder / "cache")}


def retort(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *args], cwd=cwd, env=environment(cwd),
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip


PLUGIN = '''
"""Attacks that end, each in its own way."""
import os, time
from dataclasses import dataclass

import torch

import bench


class Weird(BaseException):
    """No Exception."""


class Picky(Exception):
    """Cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Mute(Exception):
    """Has no message to show."""

    def __str__(self):
        raise ValueError("no words")


ENDS = {
    "kbdint": lambda: KeyboardInterrupt(),
    "weird": lambda: Weird("odd"),
    "genexit": lambda: GeneratorExit(),
    "badstr": lambda: Mute(),
    "picky": lambda: Picky(1, 2),
    "surrogate": lambda: FileNotFoundError("no file caf\\udce9"),
    "huge": lambda: ValueError("x" * 20_000_000),
    "escape": lambda: ValueError("a\\x1b[31mb"),
}


@bench.attack("ends")
@dataclass(frozen=True)
class Ends(bench.Attack):
    """Ends as told."""

    how: str
    name: str = ""

    @property
    def access(self):
        return "scores"

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.1)

    def unavailable(self):
        if self.how == "unavailable":
            raise RuntimeError("cannot say")
        return "no \\udce9" if self.how == "no" else None

    def code(self):
        if self.how == "code":
            raise RuntimeError("no code")
        return (5,) if self.how == "nonsense" else ()

    def perturb(self, model, x, y, target, context):
        if self.how in ENDS:
            raise ENDS[self.how]()
        if self.how.startswith("exit"):
            os._exit(int(self.how[4:]))
        if self.how == "closed":
            os.closerange(3, 100)
        if self.how == "memory":
            kept = []
            while True:
                kept.append(torch.ones(2**24))
                time.sleep(0.02)
        return bench.Perturbation(x)


@bench.defense("fits")
@dataclass(frozen=True)
class Fits(bench.Defense):
    """Does not end its fit."""

    how: str

    def fit(self, model, train, context):
        if self.how == "exit0":
            os._exit(0)
        time.sleep(600)
'''
HOWS = [
    "kbdint", "weird", "genexit", "badstr", "picky", "surrogate", "huge", "escape", "exit0",
    "exit3", "closed", "memory", "unavailable", "no", "code", "nonsense", "none",
]  # fmt: skip
HEAD = 'name = "m"\nrecipe = "smoke"\nsources = 5\n'


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ends")
    (folder / "ends.py").write_text(PLUGIN)
    (folder / "m.toml").write_text(
        f'{HEAD}[[defense]]\nname = "undefended"\n[[attack]]\nname = "ends"\nhow = {HOWS}\n'
    )
    done = retort(
        "run", "--matrix", "m.toml", "--plugin", "ends.py", "--out", "run", "--memory", "1.5",
        "--workers", "2", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stdout) < 100_000
    assert "\x1b[31mb" not in done.stdout
    rows = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    return {row["attack_params"]["how"]: row for row in rows}


SAID = {
    "kbdint": "KeyboardInterrupt",
    "weird": "Weird: odd",
    "genexit": "GeneratorExit",
    "badstr": "Mute: (its message cannot be shown)",
    "picky": "Picky: 1 and 2",
    "surrogate": "FileNotFoundError: no file caf\\udce9",
    "huge": "ValueError: xxx",
    "escape": "ValueError: a\\x1b[31mb",
    "exit0": "its worker process died with exit code 0",
    "exit3": "its worker process died with exit code 3",
    "closed": "its worker process died with exit code",
    "memory": "its process used more than 1.5 GiB",
    "unavailable": "Ends.unavailable: RuntimeError: cannot say",
    "code": "Ends.code: RuntimeError: no code",
    "nonsense": "Ends.code: AttributeError",
}


@pytest.mark.parametrize("how", SAID)
def test_every_ending_is_a_failed_cell_with_its_reason(ended, how) -> None:
    assert ended[how]["status"] == "failed"
    assert ended[how]["reason"].startswith(SAID[how])
    assert len(ended[how]["reason"]) < 1100


def test_the_others_go_on(ended) -> None:
    assert ended["none"]["status"] == "done"
    assert ended["no"] | {"status": "skipped", "reason": "no \\udce9"} == ended["no"]


def test_a_fit_ends_with_its_time_or_its_process(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(PLUGIN)
    (tmp_path / "m.toml").write_text(
        f'{HEAD}[[defense]]\nname = "fits"\nhow = ["exit0", "hang"]\n[[attack]]\nname = "fgsm"\n'
    )
    done = retort(
        "run", "--matrix", "m.toml", "--plugin", "ends.py", "--out", "run", "--fit-timeout", "20",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    found = {row["defense_params"]["how"]: row["reason"] for row in rows}
    assert found["exit0"] == "its fit failed: its worker process died with exit code 0"
    assert found["hang"] == "its fit failed: timed out after 20 s"


IMPORT = [
    ("os._exit(0)", "its worker process died with exit code 0"),
    ("os._exit(3)", "its worker process died with exit code 3"),
    ("os.kill(os.getpid(), 9)", "its worker process died with exit code -9"),
    ("raise KeyboardInterrupt", "cannot start: KeyboardInterrupt"),
]


@pytest.mark.parametrize(("how", "said"), IMPORT)
def test_a_death_at_import_is_a_failure(how, said, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(
        f"import multiprocessing, os\nif multiprocessing.parent_process():\n    {how}\n"
    )
    (tmp_path / "m.toml").write_text(
        f'{HEAD}[[defense]]\nname = "undefended"\n[[attack]]\nname = "fgsm"\n'
    )
    done = retort("run", "--matrix", "m.toml", "--plugin", "dies.py", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert said in rows[0]["reason"]


SLOW = '''
"""An attack that takes its time, and says which process it is in."""
import os, time
from dataclasses import dataclass
from pathlib import Path

import bench


@bench.attack("slow")
@dataclass(frozen=True)
class Slow(bench.Attack):
    """Waits."""

    @property
    def access(self):
        return "scores"

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.1)

    def perturb(self, model, x, y, target, context):
        Path(f"{os.getpid()}.pid").touch()
        time.sleep(300)
        return bench.Perturbation(x)
'''


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_parent_that_is_ended_takes_its_workers_along(number, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "m.toml").write_text(
        f'{HEAD}[[defense]]\nname = "undefended"\n[[attack]]\nname = "slow"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", "--matrix", "m.toml", "--plugin", "slow.py"],
        cwd=tmp_path, env=environment(tmp_path), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.pid")) and time.monotonic() < deadline:
        time.sleep(0.05)
    [worker] = [int(path.stem) for path in tmp_path.glob("*.pid")]
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 10
    while lives(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(worker)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed_spoils_no_cell(stream: str, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(
        f'{HEAD}[[defense]]\nname = "undefended"\n[[attack]]\nname = "fgsm"\n'
    )
    closing = {"stdout": ">&-", "stderr": "2>&-"}[stream]
    command = [sys.executable, "-m", "bench", "run", "--matrix", "m.toml", "--out", "run"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *command],
        cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["status"] for row in rows] == ["done"]


@pytest.mark.parametrize("after", ["at once", "a cell", "a cell, twice"])
def test_an_interrupt_shows_no_traceback(after: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "m.toml").write_text(
        f'{HEAD}[[defense]]\nname = "undefended"\n[[attack]]\nname = "slow"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", "--matrix", "m.toml", "--plugin", "slow.py"],
        cwd=tmp_path, env=environment(tmp_path), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # In the background of a shell it would be ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    deadline = time.monotonic() + 120
    if after == "at once":  # Python catches it before our first line, and again once we have begun
        while not catches(process.pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        while catches(process.pid) and time.monotonic() < deadline:
            time.sleep(0.001)
    while after != "at once" and not list(tmp_path.glob("*.pid")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    if "twice" in after:
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in said


def catches(process: int) -> bool:
    """Whether a process has a handler for Ctrl-C."""
    found = re.search(
        r"^SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE
    )
    return found is not None and bool(int(found[1], 16) >> (signal.SIGINT - 1) & 1)


def lives(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
