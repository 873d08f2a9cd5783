"""An attack that learns: its fit is a node, keyed, cached, bounded, stored, made again."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bench
from bench.base.files import read_json, read_tensors, write_json, write_tensors
from bench.conformance import tiny_data
from bench.evidence.folder import RunFolder
from bench.plan.graph import Plan, make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors
from bench.plugins.contracts import LEARNT
from bench.runner.keys import Keys
from tests.bench.conftest import Command, _invoke, in_process

PLUGIN = '''
"""An attack that learns a shift, and some that go wrong on the way."""
import time
from dataclasses import dataclass

import torch
from torch import nn

import bench


class Shift(nn.Module):
    """What is added to every input."""

    def __init__(self, shape):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))


@bench.attack("shift")
@dataclass(frozen=True)
class Shift_(bench.LearningAttack):
    """Learns the sign of one gradient; ``how`` it goes wrong, ``eps`` the L-infinity budget.

    ``shared``: one fit for all budgets.
    """

    eps: float = 0.3
    how: str = "well"
    shared: bool = False

    def threat(self, shape):
        return bench.ThreatModel("linf", self.eps)

    def fitted_as(self):
        return Shift_(1.0, self.how, True) if self.shared else self

    def build(self, info):
        return Shift(info.shape)

    def fit(self, model, train, context):
        if self.how == "raises":
            raise RuntimeError("out of ideas")
        if self.how == "sleeps":
            time.sleep(60)
        if self.how == "weights":
            for weight in model.parameters():
                weight.data.mul_(0.5)
        if self.how == "data":
            train.stored.mul_(0.5)
        x = train.x[:64].clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(x), train.y[:64])
        (gradient,) = torch.autograd.grad(loss, x)
        found = Shift(context.info.shape)
        found.shift.data.copy_(self.eps * gradient.sum(dim=0).sign())
        if self.how == "infinite":
            found.shift.data[0] = float("inf")
        if self.how == "other":
            return nn.Linear(3, 3)
        if self.how == "nothing":
            return None
        return found

    def perturb(self, model, x, y, target, context):
        shift = self.learnt(context).shift.clamp(-self.eps, self.eps)
        return bench.Perturbation((x + shift).clamp(0, 1))


@bench.attack("clash")
@dataclass(frozen=True)
class Clash(bench.Attack):
    """Needs a model called as what an attack learnt is."""

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.1)

    def requires(self):
        return {"learnt": bench.Spec("undefended")}

    def perturb(self, model, x, y, target, context):
        return bench.Perturbation(x)
'''
WRONG = {
    "raises": "the attack's fit failed: RuntimeError: out of ideas",
    "weights": "attack 'shift' changes the weights or buffers of the model while it learns",
    "data": "attack 'shift' changes the data set that it learns from",
    "infinite": "the fitted weights are not finite: shift",
    "other": "fit must return a module with the weights of build",
    "nothing": "fit must return a torch.nn.Module, got NoneType",
}
HEAD = 'name = "learns"\nrecipe = "smoke"\nsources = 20\n[[defense]]\nname = "undefended"\n'
WELL = '[[attack]]\nname = "shift"\neps = [0.2, 0.4]\n[[attack]]\nname = "fgsm"\n'


def plan(*attacks: Any, **changes: Any) -> Plan:
    doors.load_plugins()
    table = {"name": "p", "defense": [{"name": "distillation"}], "attack": list(attacks)}
    return make_plan(parse_matrix({**table, **changes}, "here"))


UNIVERSAL = {"name": "universal", "eps": [0.1, 0.2]}


def test_what_an_attack_learns_is_a_node_between_the_model_and_its_cells() -> None:
    found = plan(UNIVERSAL, "fgsm", seeds=[0, 1])
    fits, cells = found.of("attack-fit"), found.of("cell")
    assert len(fits) == 4  # budgets × seeds
    models = {node.id: node.document for node in found.of("fit")}
    for node in fits:
        assert models[node.needs["model"]]["defense"]["name"] == "distillation"
        assert models[node.needs["model"]]["seed"] == node.document["seed"]
        assert set(node.needs) == {"model"}
    by_id = {node.id: node for node in found.nodes}
    for cell in cells:
        if cell.document["attack"]["name"] == "fgsm":
            assert LEARNT not in cell.needs
            continue
        assert by_id[cell.needs[LEARNT]].document["attack"] == cell.document["attack"]
        assert by_id[cell.needs[LEARNT]].needs["model"] == cell.needs["model"]
    order = [node.id for node in found.nodes]
    for node in found.nodes:
        assert all(order.index(need) < order.index(node.id) for need in node.after)


def test_budgets_share_a_fit_where_the_attack_says_so() -> None:
    found = plan({**UNIVERSAL, "fitted_eps": 0.3})
    (fit,) = found.of("attack-fit")
    assert fit.document["attack"]["params"]["eps"] == 0.3
    assert [cell.needs[LEARNT] for cell in found.of("cell")] == [fit.id, fit.id]
    assert len({cell.id for cell in found.of("cell")}) == 2


def test_a_fit_of_an_attack_is_keyed_by_its_model_and_a_cell_by_both() -> None:
    found = plan({"name": "universal"}, sources=12)
    weights = {node.id: f"w{number}" for number, node in enumerate(found.of("fit"))}

    def keys(**changed: str) -> dict[str, Any]:
        made = Keys(tiny_data(), "cpu", {**weights, **changed})
        return {node.id: made.of(node) for node in found.nodes}

    (fit,), (cell,) = found.of("attack-fit"), found.of("cell")
    key = keys(**{fit.id: "learnt"})
    model = {**weights, fit.id: "learnt"}[fit.needs["model"]]
    assert key[fit.id]["model"]["weights"] == model
    assert key[cell.id]["required"][LEARNT] == {
        "fit": fit.id, "source": key[fit.id]["source"], "weights": "learnt",
    }  # fmt: skip
    other = keys(**{fit.id: "again"})
    assert other[cell.id] != key[cell.id]
    assert other[fit.id] == key[fit.id]
    assert keys(**{fit.id: "learnt", fit.needs["model"]: "new"})[fit.id] != key[fit.id]
    # What trains a defense knows nothing of it.
    alone = plan("fgsm", sources=12)
    made = Keys(tiny_data(), "cpu", weights)
    assert [made.of(n) for n in alone.of("fit")] == [key[n.id] for n in found.of("fit")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin, two matrices, a cache, and the finished run ``run``."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "shift.py").write_text(PLUGIN)
    (folder / "well.toml").write_text(HEAD + WELL)
    wrong = "".join(f'[[attack]]\nname = "shift"\nhow = "{how}"\n' for how in WRONG)
    (folder / "wrong.toml").write_text(HEAD + wrong + WELL)
    with in_process():
        done = run(_invoke, folder, "well", "run")
    assert done.exit_code == 0, done.output
    return folder


def run(command: Command, folder: Path, matrix: str, out: str, *more: object) -> Any:
    return command(
        "run", "--matrix", folder / f"{matrix}.toml", "--out", folder / out,
        *options(folder), "--device", "cpu", *more,
    )  # fmt: skip


def options(folder: Path) -> tuple[Any, ...]:
    return ("--plugin", folder / "shift.py", "--cache-dir", folder / "cache", "--offline")


def rows(folder: Path, out: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(folder / out / "results.json")
    return found


def learnt(run: Path) -> list[Path]:
    return sorted((run / "learnt").glob("*.safetensors"))


def test_what_was_learnt_is_evidence_and_the_row_says_what_it_cost(folder: Path) -> None:
    first, second, fgsm = rows(folder, "run")
    assert first["success_rate"] < second["success_rate"]
    assert first["forwards"] == 0  # nothing is asked any more
    assert first["learnt"]["forwards"] == first["learnt"]["backwards"] == 64
    assert "learnt" not in fgsm
    stored = RunFolder(folder / "run").weights(first["learnt"]["id"], "attack-fit")
    shift = read_tensors(stored)["shift"]
    assert shift.abs().max() == pytest.approx(0.2)
    assert len(learnt(folder / "run")) == 2


def test_another_run_takes_what_was_learnt_from_the_cache(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learnt_again(*_: Any) -> None:
        raise AssertionError("it was learnt again")

    monkeypatch.setattr("bench.runner.worker.fit_attack", learnt_again)
    done = run(command, folder, "well", "cached")
    assert done.exit_code == 0, done.output
    assert rows(folder, "cached") == rows(folder, "run")
    (folder / "anew.toml").write_text(HEAD + '[[attack]]\nname = "shift"\neps = 0.1\n')
    done = run(command, folder, "anew", "anew")  # that it would have been seen
    assert "it was learnt again" in rows(folder, "anew")[0]["reason"]


def test_verify_builds_it_anew_and_repeats(folder: Path, command: Command) -> None:
    more = (*options(folder), "--again", "3", "--again-fits", "3")
    done = command("verify", folder / "run", *more)
    assert done.exit_code == 0, done.output
    assert "made anew: 3 cells, 3 fits" in done.output
    assert "6 identical" in done.output
    assert "2 attacks' fits" in done.output


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "run", tmp_path / "copy"))


def test_verify_finds_other_weights(folder: Path, copy: Path, command: Command) -> None:
    path = learnt(copy)[0]
    document = read_json(path.with_suffix(".json"))
    tensors = {name: value / 2 for name, value in read_tensors(path).items()}
    path.unlink()  # it is a link to the cache's
    checksum = write_tensors(path, tensors)
    done = command("verify", copy, *options(folder))
    assert f"{path.stem}: SHA-256 of {path.name}" in done.output
    # Sealed again, cells say that they were made with others.
    write_json(path.with_suffix(".json"), {**document, "weights": checksum})
    done = command("verify", copy, *options(folder))
    assert done.exit_code == 1
    assert "key: required.learnt.weights" in done.output


def test_verify_misses_what_was_learnt(folder: Path, copy: Path, command: Command) -> None:
    path = learnt(copy)[0]
    path.with_suffix(".json").unlink()
    done = command("verify", copy, *options(folder))
    assert done.exit_code == 1
    assert "what its attack learnt is not" in done.output


def test_a_fit_that_goes_wrong_is_a_failed_cell_with_the_reason(
    folder: Path, command: Command
) -> None:
    done = run(command, folder, "wrong", "wrong")
    assert done.exit_code == 1, done.output
    found = {row["attack_params"].get("how"): row for row in rows(folder, "wrong")}
    for how, reason in WRONG.items():
        assert found[how]["status"] == "failed"
        assert reason in found[how]["reason"]
        assert found[how]["success_rate"] is None
        assert found[how]["learnt"]["forwards"] is None
    # The others go on as if nothing had been, and the model is what it was.
    assert found["well"]["success_rate"] == rows(folder, "run")[1]["success_rate"]
    told = command("verify", folder / "wrong", *options(folder))
    assert told.exit_code == 0, told.output


@pytest.mark.process
@pytest.mark.xdist_group("learning")
def test_a_fit_that_runs_past_its_bound_is_ended(folder: Path) -> None:
    (folder / "slow.toml").write_text(f'{HEAD}[[attack]]\nname = "shift"\nhow = "sleeps"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        done = run(_invoke, folder, "slow", "slow", "--fit-timeout", "20", "--workers", "1")
    assert done.exit_code == 1, done.output
    (row,) = rows(folder, "slow")
    assert row["status"] == "failed"
    assert row["reason"] == "the attack's fit failed: timed out after 20 s"


@pytest.fixture
def untaught(tmp_path: Path) -> Path:
    """A matrix of a network that others trained, on a test set alone."""
    random = np.random.RandomState(0)
    x = random.uniform(size=(30, 8)).astype(np.float32)
    model = nn.Linear(8, 3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    y = model(torch.from_numpy(x)).argmax(1).numpy()
    y[:3] = [0, 1, 2]
    np.savez(tmp_path / "test.npz", x=x, y=y)
    (tmp_path / "build.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Linear(8, 3)\n"
    )
    (tmp_path / "alone.toml").write_text(
        'name = "alone"\nsources = 10\ndataset = "test.npz"\nreference = "none"\n'
        '[[defense]]\nname = "checkpoint"\nbuilder = "build.py:build"\nweights = "model.pt"\n'
        '[[attack]]\nname = "universal"\n[[attack]]\nname = "fgsm"\n'
    )
    return tmp_path


def test_without_training_data_a_cell_is_skipped(untaught: Path, command: Command) -> None:
    where = ("--cache-dir", untaught / "cache", "--offline")
    done = command("run", "--matrix", untaught / "alone.toml", "--out", untaught / "run",
                   "--device", "cpu", *where)  # fmt: skip
    assert done.exit_code == 0, done.output
    universal, fgsm = rows(untaught, "run")
    assert universal["status"] == "skipped"
    assert universal["reason"] == (
        "the attack learns before it attacks, and 'test' has no training data"
    )
    assert fgsm["status"] == "done"
    told = command("verify", untaught / "run", *where, "--trust")
    assert told.exit_code == 0, told.output


def test_evaluate_skips_it_without_training_data_and_runs_it_with() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    x = torch.rand(40, 8)
    y = model(x).argmax(1)
    y[:4] = torch.arange(4)
    attacks = [bench.Spec("universal", {"eps": 0.5, "steps": 30}), "fgsm"]
    with pytest.warns(UserWarning, match="universal is skipped: the attack learns"):
        table = bench.evaluate(model, x, y, attacks=attacks)
    assert table["status"].tolist() == ["skipped", "done"]
    table = bench.evaluate(model, x, y, attacks=attacks, train=(x, y))
    assert table["status"].tolist() == ["done", "done"]
    assert table.loc[0, "success_rate"] > 0.2
    with pytest.raises(bench.UserError, match=r"train holds inputs of shape \(7,\)"):
        bench.evaluate(model, x, y, attacks=attacks, train=(x[:, :7], y))


def test_a_requirement_may_not_take_the_name_of_what_is_learnt(
    folder: Path, command: Command
) -> None:
    (folder / "clash.toml").write_text(f'{HEAD}[[attack]]\nname = "clash"\n')
    done = run(command, folder, "clash", "clash")
    assert done.exit_code == 2
    assert "attack 'clash': requires may name no role 'model' or 'learnt'" in done.output
