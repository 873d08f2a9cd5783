"""Networks that others trained get the verdict of the matrix that trained them."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.base.files import read_json, read_tensors
from bench.base.types import UserError
from bench.judging.question import Question, checkpoint, placed_builder, slug, travelling
from bench.judging.words import Handed
from tests.bench.conftest import Command, _invoke, in_process

MATRIX = """
name = "trained"
recipe = "smoke"
sources = 60
probe_samples = 60
[[defense]]
name = "undefended"
[[defense]]
name = "distillation"
temperature = 100
[[defense]]
name = "adversarial_training"
method = "pgd"
eps = 0.2
[[panel]]
norm = "linf"
budgets = [0.2]
"""
pytestmark = pytest.mark.xdist_group("judging")
NAMES = ("distillation", "adversarial_training")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a matrix, and every network of it as a plain .pt file."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "trained.toml").write_text(MATRIX)
    with in_process():
        done = _invoke(
            "run", "--matrix", folder / "trained.toml", "--out", folder / "run", "--offline",
            "--cache-dir", folder / "cache", "--device", "cpu",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    for path in (folder / "run" / "models").glob("*.json"):
        defense = read_json(path)["key"]["document"]["defense"]
        name = defense["name"] + ("-fgsm" if defense["params"].get("method") == "fgsm" else "")
        torch.save(read_tensors(path.with_suffix(".safetensors")), folder / f"{name}.pt")
    return folder


def judged(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *more: str) -> Any:
    monkeypatch.chdir(folder)
    budget = () if "--budget" in more else ("--budget", "0.2")
    with in_process():
        return _invoke(
            "judge", "digits-cnn", "--weights", f"{name}.pt", "--dataset", "digits",
            "--norm", "linf", *budget, "--sources", "60", "--offline",
            "--cache-dir", "cache", "--device", "cpu", *more,
        )  # fmt: skip


def verdict(run: Path, name: str, weights: str = "") -> dict[str, Any]:
    rows = json.loads((run / "verdicts.json").read_text())
    return next(r for r in rows if r["defense"] == name and weights in str(r["defense_params"]))


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_is_that_of_the_matrix_that_trained_them(
    trained: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    done = judged(
        trained, monkeypatch, name, "--reference-weights", "undefended.pt",
        "--transfer-from", "twin.pt", "adversarial_training-fgsm.pt", "--out", f"of-{name}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    here, there = (
        verdict(trained / f"of-{name}", "checkpoint", f"{name}.pt"),
        verdict(trained / "run", name),
    )
    assert here["verdict"] == there["verdict"]
    assert here["reference"]["defense_params"]["weights"].endswith("undefended.pt")
    mine, theirs = here["seeds"][0], there["seeds"][0]
    assert mine["worst_case"] == pytest.approx(theirs["worst_case"], abs=1 / 60 + 1e-9)
    assert mine["undefended"] == pytest.approx(theirs["undefended"], abs=1 / 60 + 1e-9)
    assert mine["naive"] == theirs["naive"]
    assert {f["id"] for f in mine["flags"]} == {f["id"] for f in theirs["flags"]}
    assert here["verdict"].upper() in done.output

    # The matrix beside the results runs by itself, and everything of it stands already.
    again = trained / f"of-{name}"
    with in_process():
        repeated = _invoke(
            "run", "--matrix", again / "judge.toml", "--out", again, "--offline",
            "--cache-dir", trained / "cache", "--device", "cpu",
        )  # fmt: skip
        checked = _invoke("verify", again, "--offline")
    assert repeated.exit_code == 0, repeated.output
    assert verdict(again, "checkpoint", f"{name}.pt") == here
    assert checked.exit_code == 0, checked.output


def test_without_a_reference_it_says_what_stands_and_never_holds(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = judged(trained, monkeypatch, "adversarial_training", "--out", "alone")
    assert done.exit_code == 0, done.output
    row = verdict(trained / "alone", "checkpoint")
    assert row["verdict"] == "no reference"
    assert row["reference"] is None
    assert row["why"].startswith("no reference: of 60 sources ")
    assert row["seeds"][0]["delta"] is None
    assert "NO REFERENCE" in done.output
    assert "holds:" not in done.output


def test_weights_that_changed_are_named_and_made_again_never_mixed(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(torch.load(trained / "undefended.pt"), trained / "moving.pt")
    options = ("--sources", "10", "--out", "moved")
    assert judged(trained, monkeypatch, "moving", *options).exit_code == 0
    first = verdict(trained / "moved", "checkpoint")
    torch.save(torch.load(trained / "adversarial_training.pt"), trained / "moving.pt")
    done = judged(trained, monkeypatch, "moving", *options)
    assert done.exit_code == 0, done.output
    assert "moving.pt has changed since this folder's last run" in " ".join(done.output.split())
    second = verdict(trained / "moved", "checkpoint")
    assert second["seeds"][0]["worst_case"] > first["seeds"][0]["worst_case"]


def test_another_budget_never_takes_a_folder_silently(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--sources", "5", "--out", "kept")
    assert judged(trained, monkeypatch, "undefended", *options).exit_code == 0
    before = (trained / "kept" / "verdicts.json").read_bytes()
    refused = judged(trained, monkeypatch, "undefended", *options, "--budget", "0.1")
    assert refused.exit_code == 2
    assert "panel = " in refused.output
    assert "--replace" in refused.output
    assert (trained / "kept" / "verdicts.json").read_bytes() == before
    done = judged(trained, monkeypatch, "undefended", *options, "--budget", "0.1", "--replace")
    assert done.exit_code == 0, done.output


def test_a_dry_run_prints_the_matrix_and_what_it_takes(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = judged(trained, monkeypatch, "undefended", "--dry-run", "--out", "dry")
    assert done.exit_code == 0, done.output
    assert "where the models fall" in done.output
    assert "apgd dlr" in done.output
    text = done.output[done.output.index('name = "judge-digits-cnn"') :]
    matrix = tomllib.loads(text)
    assert matrix["reference"] == "none"
    assert matrix["defense"][0]["weights"] == ["../undefended.pt"]
    assert not (trained / "dry").exists()


def test_a_time_chooses_the_sources_or_says_what_it_takes(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = judged(trained, monkeypatch, "undefended", "--dry-run", "--time", "3h")
    assert "300 sources" in done.output  # all of the test set
    short = judged(trained, monkeypatch, "undefended", "--dry-run", "--time", "1s")
    assert short.exit_code == 2
    assert "a verdict needs 60" in short.output


NARROW = """
from torch import nn

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))

class Rounded(nn.Sequential):
    def forward(self, x):
        return super().forward((x * 3).round() / 3)

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def rounded():
    return Rounded(nn.Flatten(), nn.Linear(64, 10))

def greedy():
    import urllib.request
    urllib.request.urlopen("http://weights.example/w.pt")
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "0"], "budgets must be positive"),
        (["--budget", "1.5"], "at most 1"),
        (["--norm", "l0", "--budget", "65"], "more than the 64 features"),
        (["--norm", "l2", "--budget", "9"], "exceeds the box"),
        (["--sources", "301"], "301 sources were asked for and the test split of 'digits' has 300"),
        (["--sources", "many"], "--sources takes a whole number or all"),
        (["--reference-weights", "nowhere.pt"], "nowhere.pt"),
        (["--reference-weights", "undefended.pt"], "holds the same bytes as ../../undefended.pt"),
        (["--reference", "net.py:narrow", "--reference-weights", "n.pt"], "it has 3 classes and"),
        (["--reference", "net.py:wide", "--reference-weights", "w.pt"], "net.py:wide"),
        (["--reference", "net.py:greedy", "--reference-weights", "n.pt"], "weights.example"),
        (["--reference", "net.py:wide"], "needs --reference-weights"),
        (["--reference-weights", "undefended.pt", "twin.pt", "--weights", "w.pt", "n.pt"],
         "one reference for all, or one for each"),
        (["--weights", "gone.pt"], "error: 'gone.pt' does not exist"),
        (["--data", "x.npz"], "--dataset NAME for one that comes with it, or --data FILE"),
        (["--time", "soon"], "--time takes a duration"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_one_message(
    trained: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    (trained / "net.py").write_text(NARROW)
    torch.save({"1.weight": torch.zeros(3, 64), "1.bias": torch.zeros(3)}, trained / "n.pt")
    torch.save({"1.weight": torch.zeros(10, 65), "1.bias": torch.zeros(10)}, trained / "w.pt")
    done = judged(trained, monkeypatch, "undefended", "--dry-run", *more)
    said = " ".join(done.output.split())
    assert done.exit_code == 2, done.output
    assert said.startswith("error: "), said
    assert message in said
    assert "Traceback" not in said


def test_a_defense_may_stand_on_the_weights_of_its_reference(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained / "net.py").write_text(NARROW)
    torch.save({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, trained / "p.pt")
    monkeypatch.chdir(trained)
    given = [
        "--weights", "p.pt", "--dataset", "digits", "--norm", "linf", "--budget", "0.2",
        "--reference", "net.py:plain", "--reference-weights", "p.pt", "--dry-run", "--offline",
        "--cache-dir", "cache", "--device", "cpu", "--sources", "60",
    ]  # fmt: skip
    with in_process():
        done = _invoke("judge", "net.py:rounded", *given)
        same = _invoke("judge", "net.py:plain", *given)
    assert done.exit_code == 0, done.output
    assert same.exit_code == 2
    assert "holds the same bytes" in same.output


def test_a_folder_of_images_needs_no_slash_and_takes_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imgs").mkdir()
    (tmp_path / "lr=0.1").mkdir()
    for name in ("w.pt", "lr=0.1/w.pt"):
        torch.save({}, name)
    given: dict[str, Any] = {
        "builder": "digits-cnn", "weights": ["w.pt"], "norm": "linf", "budgets": ["0.1"],
    }  # fmt: skip
    images = {"resize": 40, "crop": 32, "gray": None}
    asked = Handed(**given, data="imgs", images=images, transfer_from=["lr=0.1/w.pt"])
    question = asked.question(tmp_path)
    assert question.dataset == {"name": "image-folder", "path": "imgs/", "resize": 40, "crop": 32}
    assert question.transfer_from[0]["weights"] == ["lr=0.1/w.pt"]
    with pytest.raises(UserError, match=r"'nowhere': a .* file or a folder of images is"):
        Handed(**given, data="nowhere").question(None)
    with pytest.raises(UserError, match="--crop is for a folder of images"):
        Handed(**given, dataset="digits", images=images).question(None)


def test_what_makes_the_network_may_stand_after_its_weights(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained / "net.py").write_text(NARROW)
    torch.save({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, trained / "p.pt")
    torch.save({"1.weight": torch.ones(10, 64), "1.bias": torch.zeros(10)}, trained / "q.pt")
    monkeypatch.chdir(trained)
    more = ["--dataset", "digits", "--dry-run", "--offline", "--cache-dir", "cache", "--sources",
            "60", "--device", "cpu"]  # fmt: skip
    with in_process():
        behind = _invoke(
            "judge", "--weights=p.pt", "q.pt", "--budget", "0.2", "net.py:plain", *more
        )
        before = _invoke(
            "judge", "net.py:plain", "--weights", "p.pt", "q.pt", "--budget", "0.2", *more
        )
    assert behind.exit_code == before.exit_code == 0, behind.output
    assert "net.py:plain" in behind.output
    assert "q.pt" in behind.output


def test_what_was_not_handed_is_asked_for() -> None:
    def said(**given: Any) -> str:
        with pytest.raises(UserError) as caught:
            Handed(**{"builder": "b", "weights": ["w.pt"], "norm": "linf", "budgets": ["0.1"],
                      "dataset": "digits", **given}).question(None)  # fmt: skip
        return str(caught.value)

    assert "--weights" in said(weights=[])
    assert "--budget" in said(budgets=[])
    assert "--dataset" in said(dataset=None)


def test_a_folder_is_named_after_all_that_is_asked() -> None:
    model = checkpoint(None, ["w.pt"], {"mean": None})
    assert model == {"name": "checkpoint", "weights": ["w.pt"]}
    data = {"name": "arrays", "path": "a folder/my data.npz"}
    folder = Question("judge-w", model, data, "linf", ["8/255"]).folder()
    assert folder == Path("runs/judge-w-my_data-linf-8_255")
    assert Question("j", model, {"name": "digits"}, "l0", [2, 4]).folder().name == "j-digits-l0-2-4"
    assert slug("/") == "model"


def test_files_below_the_current_folder_travel_with_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere.pt"
    (here / "sub").mkdir(parents=True)
    for path in (here / "w.pt", here / "sub" / "net.py", elsewhere):
        path.touch()
    monkeypatch.chdir(here)
    home = here / "runs" / "mine"
    assert travelling("w.pt", home) == "../../w.pt"
    assert placed_builder("sub/net.py:build", home) == "../../sub/net.py:build"
    assert placed_builder("my_pkg.nets:build", home) == "my_pkg.nets:build"
    assert placed_builder("torchvision:resnet18", home) == "torchvision:resnet18"
    assert travelling(str(elsewhere), home) == str(elsewhere)
    with pytest.raises(UserError, match=r"'gone\.pt' does not exist"):
        travelling("gone.pt", home)


def test_options_of_several_values_end_at_the_next_option(command: Command) -> None:
    done = command("judge", "b", "--weights", "a.pt", "b.pt", "--budget", "0.1", "0.2")
    assert "judge needs test data" in done.output


def test_the_networks_of_the_guide_are_for_the_data_of_the_guide() -> None:
    page = (Path(__file__).parents[3] / "docs" / "judge.md").read_text(encoding="utf-8")
    script = page.split("```python\n# my_digits.py\n")[1].split("```")[0]
    names: dict[str, Any] = {"__name__": "my_digits"}
    exec(script, names)
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    model = names["build"]()
    assert model(x).shape == (5, 10)
    moved = names["climb"](model, x, y, 0.1, 2)
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6
    assert names["train"](x, y, 0, eps=0.1, epochs=1)(x).shape == (5, 10)
