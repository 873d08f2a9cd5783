"""Adversarial inputs made elsewhere: judged by the runner, refused where malformed."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attacks.submission import Submission
from bench.base.types import DataInfo, Document, Spec, UserError
from bench.conformance import check_attack, tiny_data
from bench.measure.cell import Sources, attack_sources
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import AttackContext
from bench.results.cell_metrics import summarise
from bench.verdict.flags import cell_flags

INFO = DataInfo("toy", (3,), 3, (0.0,), (1.0,))
SOURCES = Sources(
    torch.tensor([70, 20, 90, 10]), torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])
)


def submit(path: Path, **params: object) -> Submission:
    given = {"inputs": str(path / "adv.safetensors"), "norm": "linf", "budget": 1.0, **params}
    return registry.ATTACKS.make(Spec("submission", given))


def write(path: Path, x_adv: Tensor, sample_ids: object, **more: object) -> None:
    columns = {"sample_ids": torch.as_tensor(sample_ids)}
    columns |= {name: torch.as_tensor(value) for name, value in more.items()}
    save_file({"x_adv": x_adv, **columns}, path / "adv.safetensors")


def judge(attack: Submission) -> pd.DataFrame:
    """The identity is the model: the largest input wins."""
    return attack_sources(nn.Identity(), attack, SOURCES, AttackContext(INFO)).records


@pytest.fixture(autouse=True)
def plugins() -> None:
    doors.load_plugins()


def test_each_row_reaches_its_own_sample(tmp_path: Path) -> None:
    # In the file's own order, with a sample that is not attacked.
    write(tmp_path, torch.eye(3)[[1, 1, 2]], [10, 55, 20])
    records = judge(submit(tmp_path)).set_index("sample_id")
    assert records.loc[10, "adversarial_prediction"] == 1
    assert records.loc[20, "adversarial_prediction"] == 2
    assert records["success"].to_dict() == {70: False, 20: True, 90: False, 10: True}
    assert records["stop_reason"].to_dict() == {
        70: "not_submitted", 20: "submitted", 90: "not_submitted", 10: "submitted",
    }  # fmt: skip
    assert records.loc[[70, 90], "linf"].tolist() == [0.0, 0.0]


def flags(records: pd.DataFrame, attack: Submission) -> dict[str, Document]:
    summary = summarise(records, attack.threat((3,)), 3)
    found = cell_flags(summary, {"accuracy": 1.0}, attack.threat((3,)), 3)
    return {flag.id: flag for flag in found}


def test_what_is_not_submitted_is_flagged_and_no_no_op(tmp_path: Path) -> None:
    write(tmp_path, torch.eye(3)[[1]], [10])
    found = flags(judge(submit(tmp_path)), submit(tmp_path))
    assert "no-op" not in found
    assert found["not-submitted"].evidence.startswith("3 of 4 attempts have no submitted input")
    write(tmp_path, torch.eye(3)[[1, 2, 0, 0]], [10, 20, 90, 70])
    assert "not-submitted" not in flags(judge(submit(tmp_path)), submit(tmp_path))


def test_targets_are_matched(tmp_path: Path) -> None:
    write(tmp_path, torch.eye(3)[[1, 2, 1]], [10, 10, 20], target=[1, 2, 0])
    records = judge(submit(tmp_path, targets="all"))
    found = records.set_index(["sample_id", "target"])
    assert found.loc[(10, 1), "success"]
    assert found.loc[(10, 2), "success"]
    assert found.loc[(20, 0), "stop_reason"] == "submitted"
    assert not found.loc[(20, 0), "success"]  # its input is still classified as 1
    assert (records["stop_reason"] == "not_submitted").sum() == 5


@pytest.mark.parametrize(
    ("row", "column"), [([0.0, 1.0, float("nan")], "finite"), ([0.0, 3.0, 0.0], "in_box"),
                        ([0.0, 1.0, 0.0], "in_budget")],
)  # fmt: skip
def test_the_runner_judges_it_like_any_output(
    tmp_path: Path, row: list[float], column: str
) -> None:
    write(tmp_path, torch.tensor([row]), [10])
    attack = submit(tmp_path, budget=0.5)
    records = judge(attack).set_index("sample_id")
    assert not records.loc[10, column]
    assert not records["success"].any()
    assert "invalid-output" in flags(records.reset_index(), attack)


def test_it_counts_in_the_worst_case_of_larger_budgets(tmp_path: Path) -> None:
    from bench.results.cell_metrics import worst_case

    write(tmp_path, torch.eye(3)[[1]], [10])
    attack = submit(tmp_path, budget=1.0)
    assert worst_case([judge(attack)], attack.threat((3,)), (3,))["worst_case"] == 0.75


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x_adv": torch.zeros(1, 3)}, "has no tensor 'sample_ids'; it holds x_adv"),
        ({"sample_ids": torch.zeros(1, dtype=torch.int64)}, "has no tensor 'x_adv'"),
        ({"x_adv": torch.zeros(1, 3).double(), "sample_ids": torch.tensor([1])},
         r"x_adv must be float32 \(n, 3\), got torch.float64"),
        ({"x_adv": torch.zeros(1, 4), "sample_ids": torch.tensor([1])}, r"got .* \(1, 4\)"),
        ({"x_adv": torch.zeros(2, 3), "sample_ids": torch.tensor([1])}, r"\(2,\) integers"),
        ({"x_adv": torch.zeros(1, 3), "sample_ids": torch.tensor([1.0])}, "integers"),
        ({"x_adv": torch.zeros(1, 3), "sample_ids": torch.tensor([-1])}, "must not be negative"),
        ({"x_adv": torch.zeros(2, 3), "sample_ids": torch.tensor([10, 10])},
         r"several rows \(sample 10 is one\): put them in several files"),
        ({"x_adv": torch.zeros(1, 3), "sample_ids": torch.tensor([1]),
          "target": torch.tensor([1])}, "holds targets: say targets"),
        ("junk", "cannot be read as safetensors"),
        (None, "cannot be read as safetensors"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named(
    tmp_path: Path, tensors: dict[str, Tensor] | str | None, message: str
) -> None:
    path = tmp_path / "adv.safetensors"
    if isinstance(tensors, dict):
        save_file(tensors, path)
    elif tensors is not None:
        path.write_text(tensors)
    with pytest.raises(UserError, match=rf"adv\.safetensors.*{message}"):
        judge(submit(tmp_path))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"inputs": "adv.npz"}, "inputs must be a .safetensors file"),
        ({"norm": "l1"}, "norm"),
        ({"norm": "l0", "budget": 3.0}, "a fraction in"),
        ({"unit": "pixels"}, "an l0 threat model counts features or pixels"),
    ],
)
def test_a_threat_model_that_is_none_is_refused(
    tmp_path: Path, params: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        submit(tmp_path, **params)


def test_its_file_is_part_of_the_cell_s_key(tmp_path: Path) -> None:
    from bench.plan.graph import make_plan
    from bench.plan.matrix import parse_matrix
    from bench.runner.keys import Keys, check_files

    attack = {"name": "submission", "norm": "linf", "inputs": str(tmp_path / "adv.safetensors")}
    matrix = {"name": "m", "sources": 5, "defense": [{"name": "undefended"}], "attack": [attack]}
    plan = make_plan(parse_matrix(matrix, "test"))
    with pytest.raises(UserError, match="needs the file"):
        check_files(plan)
    (fit,), (cell,) = plan.of("fit"), plan.of("cell")
    found = []
    for value in (0.0, 1.0):
        write(tmp_path, torch.full((1, 3), value), [1])
        keys = Keys(tiny_data(), "cpu", {fit.id: "weights"})
        keys.of(fit)
        found.append(keys.of(cell))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"files"}


def test_it_passes_the_conformance_suite(tmp_path: Path) -> None:
    data = tiny_data()
    x_adv = (data.test.x[:8] + 0.1).clamp(0, 1)
    write(tmp_path, x_adv, list(range(8)))
    checks = check_attack(submit(tmp_path, budget=0.11))
    assert len(checks) == 15
    assert [str(check) for check in checks if check.status != "ok"] == []


def test_without_sample_ids_it_says_what_it_needs(tmp_path: Path) -> None:
    write(tmp_path, torch.eye(3)[[1]], [10])
    attack, context = submit(tmp_path), AttackContext(INFO)
    with pytest.raises(ValueError, match=r"needs context\.sample_ids"):
        attack.perturb(nn.Identity(), SOURCES.x, SOURCES.y, None, context)
    told = replace(context, sample_ids=SOURCES.ids)
    assert attack.perturb(nn.Identity(), SOURCES.x, SOURCES.y, None, told).x_adv[3, 1] == 1
