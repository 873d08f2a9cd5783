"""Networks that no harness likes, run to a verdict: a reason each, and never a better verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from bench.base.rows import CellRow, SeedRow
from bench.compose import RunResult, run_matrix
from bench.plan.options import RunOptions
from bench.plan.panel import PanelFile
from tests.bench.conftest import in_process

AWKWARD = Path(__file__).parents[2] / "cheats" / "awkward.py"
PANEL = TypeAdapter(PanelFile).validate_python(
    {
        "budget": "eps",
        "attack": [
            {"role": "naive", "name": "pgd", "at": "each", "effort": [], "output": "deployed",
             "adaptive": False, "steps": 3},
            {"role": "strong", "name": "apgd", "at": "each", "effort": [], "runners_up": 2,
             "steps": 3},
            {"role": "black-box", "name": "square", "at": "each", "effort": [], "queries": 20},
            {"role": "closer", "name": "apgd", "at": "each", "effort": [], "round": 1, "steps": 3},
        ],
    }
)  # fmt: skip
WAYS = {
    "no_single_rows": "awkward: no answer to 1 rows",
    "another_device": "the model must answer on the device of its input, cpu, got meta",
    "raises_on_backward": "awkward: no way back",
    "no_gradient_for_some": None,
    "slow": None,
}
"""What is wrong with a network, and why its gradient attacks fail, None where they do not."""


def run(folder: Path, ways: tuple[str, ...], passes: int | None = None) -> RunResult:
    """Run a small panel on the undefended network and on awkward ones."""
    matrix = {
        "name": "awkward",
        "recipe": "smoke",
        "sources": 60,
        "probe_samples": 10,
        "defense": [
            {"name": "undefended"},
            *({"name": "awkward", "way": way, "seconds": 0.001} for way in ways),
        ],
        "panel": [{"norm": "linf", "budgets": [0.05]}],
    }
    with pytest.MonkeyPatch.context() as patch, in_process():
        patch.setattr("bench.plan.panel.panel_file", lambda norm: PANEL)
        chosen = RunOptions(
            out=folder / "run", cache_dir=folder / "cache", offline=True, device="cpu",
            plugin=(str(AWKWARD),), max_passes=passes,
        )  # fmt: skip
        return run_matrix(matrix, chosen)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run of the undefended network and of one a way."""
    return run(tmp_path_factory.mktemp("awkward"), tuple(WAYS))


def cells(found: RunResult, way: str) -> list[CellRow]:
    """Return the cells of the network of a way."""
    return [row for row in found.rows if row["defense_params"].get("way") == way]


def verdict(found: RunResult, way: str) -> SeedRow:
    """Return what is said of the only seed of a network."""
    (row,) = (v for v in found.results.verdicts if v["defense_params"].get("way") == way)
    (seed,) = row["seeds"]
    return seed


@pytest.mark.parametrize(("way", "reason"), WAYS.items())
def test_it_ends_in_a_reason_and_never_holds(
    awkward: RunResult, way: str, reason: str | None
) -> None:
    seed, found = verdict(awkward, way), cells(awkward, way)
    failed = [row for row in found if row["status"] == "failed"]
    assert all(reason is not None and reason in str(row["reason"]) for row in failed)
    assert {row["attack"] for row in failed} >= ({"pgd", "apgd"} if reason else set())
    assert seed["verdict"] == "inconclusive"
    if reason is not None:
        assert seed["worst_case"] is None
        assert any(flag["id"] == "panel-incomplete" for flag in seed["flags"])


def test_rows_without_a_gradient_are_noticed(awkward: RunResult) -> None:
    flags = {flag["id"] for flag in verdict(awkward, "no_gradient_for_some")["flags"]}
    assert flags & {"gradient-mismatch", "zero-gradient"}
    assert not {flag["id"] for flag in verdict(awkward, "slow")["flags"]} & flags


def test_an_attack_that_has_spent_its_passes_is_no_evidence(tmp_path: Path) -> None:
    found = run(tmp_path, ("slow",), passes=3)
    done = [row for row in cells(found, "slow") if row["attempts"]]
    assert {row["attack"] for row in done} == {"pgd", "apgd", "square"}
    for row in done:
        assert row["stop_reasons"] == {"max-passes": row["attempts"]}
        # The query that goes beyond the limit is made; two rows looked whether the model answers.
        assert (row["forwards"] or 0) + (row["backwards"] or 0) <= 4 * row["attempts"] + 2
        assert "spent" in {flag["id"] for flag in row["flags"]}
    judged = verdict(found, "slow")
    assert judged["verdict"] == "inconclusive"
    (incomplete,) = (flag for flag in judged["flags"] if flag["id"] == "panel-incomplete")
    assert "was stopped before its end" in incomplete["evidence"]
