"""The figures behind the thresholds, and the page that is made of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.base.types import Norm, Spec
from bench.conformance import tiny_data
from bench.plugins import registry
from tests.calibration import calibrate, measure
from tests.calibration.page import QUANTITIES, TWINS, insert, tables
from tests.calibration.population import Kind, population
from tests.calibration.power import chances
from tests.cheats.truth import Fits


@pytest.fixture(scope="module")
def kinds() -> list[Kind]:
    return population()


def test_every_flag_has_honest_kinds_and_a_dishonest_one_that_has_to_raise_it(
    kinds: list[Kind],
) -> None:
    assert sum(kind.honest for kind in kinds) >= 10
    assert len({kind.label for kind in kinds}) == len(kinds)
    for flag, norm in QUANTITIES:
        owners = [kind for kind in kinds if flag in kind.own]
        assert [kind for kind in owners if norm is None or norm in kind.norms], (flag, norm)
    for kind in kinds:
        registry.DEFENSES.make(Spec(kind.name, kind.params))


@pytest.mark.parametrize(
    ("name", "raised"),
    [("undefended", set()), ("canary_detached", {"zero-gradient", "gradient-mismatch"})],
)
def test_the_flags_of_a_model_are_those_that_a_run_would_raise(
    name: str, raised: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    fits = Fits(tiny_data(), 0)
    fits.network = registry.NETWORKS.make(Spec("mlp", {"width": 32}))
    case = calibrate.case(fits, Kind(name, {}), 20)
    found = measure.of_model(case)
    assert [figure.flag for figure in found] == measure.LOOKED_AT
    # A small network may be so sure that its softmax saturates: that may be said of it.
    told = {figure.flag for figure in found if figure.raised} - {"gradient-direction"}
    assert told == raised
    norm: Norm = "linf"
    panel, survivors = measure.of_panel(case, norm)
    assert len(survivors) == 20
    assert {figure.flag for figure in panel} == {
        "naive-beaten", "black-box-beats-gradient", "unbounded-budget",
    }  # fmt: skip
    assert all(figure.norm == norm for figure in panel)


def figure(kind: str, flag: str, raised: bool | None, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "seed": 0, "flag": flag, "norm": None, "value": None, "p": None,
            "raised": raised, **more}  # fmt: skip


def test_the_page_counts_false_alarms_and_misses_with_intervals() -> None:
    kinds = [Kind("good", {}), Kind("other", {}), Kind("bad", {}, ("zero-gradient",))]
    rows = [
        figure("good", "zero-gradient", False, value=0.02),
        figure("other", "zero-gradient", True, value=0.3),
        figure("bad", "zero-gradient", False, value=0.0),
        figure("bad", "zero-gradient", True, value=1.0, seed=1),
        figure("bad", "chance", True),  # earned or not, it is nobody's miss
        figure("good", "chance", None),
        figure("good", TWINS, None, value=0.021, norm="linf"),
        figure("gone", "zero-gradient", True),  # no kind any more
    ]
    page = tables(rows, kinds)
    assert "2 honest kinds, 2 fitted models, training seeds 0." in page
    assert "1 dishonest kinds, 2 fitted models, training seeds 0, 1." in page
    (line,) = [line for line in page.splitlines() if line.startswith("| zero-gradient")]
    assert "1 of 2 [9.5, 90.5]" in line
    assert line.count("1 of 2") == 2
    assert "0.3000" in line
    assert "False alarms: zero-gradient on `other` (1)." in page
    assert "Missed: zero-gradient on `bad` (1)." in page
    assert "at most 2 points (1 pairs)" in page


def test_tables_replace_what_stands_between_the_marks() -> None:
    page = "a\n<!-- power -->\nold\n<!-- /power -->\nb"
    new = "a\n<!-- power -->\n\nnew\n\n<!-- /power -->\nb"
    assert insert(page, "power", "new") == new
    with pytest.raises(ValueError, match="calibration"):
        insert(page, "calibration", "new")
    docs = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
    for name in ("calibration", "power"):
        assert "\n\nnew\n\n" in insert(docs, name, "new")


def test_a_larger_gain_and_more_sources_are_seen_more_often() -> None:
    above, below = chances(0.2, 100)
    assert above == pytest.approx(0.71, abs=0.02)  # 36 % at three seeds
    assert below < 0.001
    assert chances(0.25, 100)[0] > above
    assert chances(0.2, 200)[0] > above
    exactly = chances(0.1, 100)
    assert exactly[0] <= 0.06
    assert exactly[1] <= 0.08
