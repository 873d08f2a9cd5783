"""What share of sealed forgeries ``verify --again 20 --again-fits 1`` notices: by ``make soak``.

``RETORT_SOAK_TRIES`` (100) tries a forgery: each forges other cells and draws by another seed. What
a cell comes to when it is made anew depends on no other: every cell is made anew once, each forged
one is held against that, and the first try of each forgery is verified in full as well.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.audit.repeat import Anew, Bench, Choice
from bench.base.files import read_tensors
from bench.evidence.finished_run import read_run
from bench.plugins.contracts import DataSettings
from bench.runner.task import Settings
from tests.bench.conftest import _invoke, in_process
from tests.soak.forgeries import NOTICED, UNNOTICED, Forger, Forgery, set_weights

TRIES = int(os.environ.get("RETORT_SOAK_TRIES", "100"))
AGAIN = Choice(cells=20, fits=1, seed=0)
MATRIX = """
name = "forged"
recipe = "smoke"
sources = 10
probe_samples = 10
[[defense]]
name = "undefended"
[[defense]]
name = "label_smoothing"
[[defense]]
name = "twin"
[[defense]]
name = "temperature_only"
temperature = 20.0
[[attack]]
name = "fgsm"
eps = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
[[attack]]
name = "pgd"
eps = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
steps = 5
[[attack]]
name = "noise"
norm = "linf"
eps = [0.1, 0.2, 0.3]
draws = 5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("forged")
    (found / "forged.toml").write_text(MATRIX)
    with in_process():
        done = _invoke("run", "--matrix", found / "forged.toml", "--cache-dir", found / "cache",
                       "--out", found / "run", "--offline", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    return found


def made_anew(folder: Path, kind: str) -> Anew:
    """Make every cell, or every fit, anew."""
    run = read_run(folder / "run")
    there = folder / f"again-{kind}"
    cache = folder / "cache" if kind == "cell" else folder / "empty"
    settings = Settings(there, cache, DataSettings(None, cache, offline=True))
    anew = Anew(run, Bench(settings), run.plan.of("cell" if kind == "cell" else "fit"))
    anew.make()
    return anew


def verify(run: Path, folder: Path, *args: str) -> str:
    return str(_invoke("verify", run, "--cache-dir", folder / "cache", "--offline", *args).output)


def tried(folder: Path, anew: Anew, forgery: Forgery, number: int) -> bool:
    """Forge, and return whether a cell that the try's seed draws differs when it is made anew."""
    forged = folder / "forged"
    shutil.rmtree(forged, ignore_errors=True)
    shutil.copytree(folder / "run", forged)
    forger = Forger(forged)
    touched = forgery(forger, random.Random(number))
    choice = replace(AGAIN, seed=number)
    drawn = set(choice.drawn(forger.run)["cell"])
    anew.run, mode = forger.run, "exact"
    if forgery in UNNOTICED[:1]:
        mode = "tolerant"  # it says that another machine made it
    nodes = {node.id: node for node in forger.run.plan.of("cell")}
    noticed = any(
        anew.held(nodes[cell], mode).differences  # type: ignore[arg-type]
        for cell in touched
        if cell in drawn
    )
    if number == 0:
        forger.seal()
        assert "consistent with itself" in verify(forged, folder)
        told = verify(forged, folder, "--again", "20", "--seed", str(number))
        assert (": again" in told) == noticed, told
    return noticed


def test_the_share_of_forgeries_that_are_noticed(folder: Path) -> None:
    lines = []
    with in_process():
        anew = made_anew(folder, "cell")
        cells = len(anew.chosen)
        for forgery in (*NOTICED, *UNNOTICED):
            found = sum(tried(folder, anew, forgery, number) for number in range(TRIES))
            lines.append(f"| {forgery.__doc__} | {found} of {TRIES} |")
            assert not (found and forgery in UNNOTICED)
        fits = made_anew(folder, "fit")
        found = sum(tried_weights(folder, fits, number) for number in range(TRIES))
        lines.append(f"| One model has the weights of another. | {found} of {TRIES} |")
    sys.stdout.write(f"\n{cells} cells, {len(fits.chosen)} fits\n" + "\n".join(lines) + "\n")


def tried_weights(folder: Path, anew: Anew, number: int) -> bool:
    forged = folder / "forged"
    shutil.rmtree(forged, ignore_errors=True)
    shutil.copytree(folder / "run", forged)
    draw = random.Random(number)
    fit, other = draw.sample([node.id for node in anew.chosen], 2)
    set_weights(forged, fit, read_tensors(forged / "models" / f"{other}.safetensors"))
    anew.run = read_run(forged)
    drawn = replace(AGAIN, seed=number).drawn(anew.run)["fit"]
    nodes = {node.id: node for node in anew.chosen}
    return fit in drawn and bool(anew.held(nodes[fit], "exact").differences)
