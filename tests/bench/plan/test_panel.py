"""Panels: what is committed, how budgets and effort expand, what a matrix may ask for."""

import tomllib
from typing import Any, get_args

import pytest
import torch
from torch import nn

from bench.base.types import DataInfo, Norm, Spec, ThreatModel, UserError
from bench.measure.cell import Sources, attack_sources
from bench.plan.graph import make_plan
from bench.plan.matrix import parse_matrix
from bench.plan.options import RunOptions, plan_of
from bench.plan.panel import LATE, Panel, PanelAttack, Role, make_attack, panel_file
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import AttackContext

BASE: dict[str, Any] = {"name": "m", "defense": [{"name": "label_smoothing"}]}
LINF = {"norm": "linf", "budgets": [0.1, 0.2]}


@pytest.fixture(autouse=True)
def _plugins() -> None:
    doors.load_plugins(())


@pytest.mark.parametrize("norm", get_args(Norm))
def test_every_committed_attack_is_valid_and_says_the_budget_that_it_is_run_at(norm: Norm) -> None:
    panel = Panel(norm=norm, budgets=[1.0] if norm != "l0" else [2, 6])
    shape = (1, 8, 8)
    roles = set()
    for entry in panel.entries(effort=10):
        attack = registry.ATTACKS.make(entry.spec)
        roles.add(entry.role)
        if entry.role != "unbounded" and attack.threat(shape).budget is not None:
            at = entry.budget or panel.budgets[-1]
            assert attack.threat(shape) == panel.threat(at, 64)
    needed = {"naive", "log-odds", "strong", "black-box", "transfer", "noise"}
    assert roles >= (needed if norm == "l0" else set(get_args(Role))) | set(LATE)
    sources = [e.spec.params["source"] for e in panel.entries() if e.role == "transfer"]
    assert sources[:2] == ["undefended", "twin"]
    # Gradients of a robust network transfer to robust networks.
    robust = [] if norm == "l0" else ["adversarial_training"]
    assert [source["name"] for source in sources[2:]] == robust


def test_the_naive_attack_ignores_surrogates_and_the_strong_ones_do_not() -> None:
    for norm in ("linf", "l2"):
        found = {a.role: a.params() for a in panel_file(norm).attack}
        assert found["naive"]["adaptive"] is False
        assert "adaptive" not in found["log-odds"]
        assert found["naive"]["output"] == "deployed"
        assert found["log-odds"]["output"] == "scaled_log_odds"


def test_a_trajectory_is_run_once_and_serves_every_budget() -> None:
    entries = Panel(norm="l0", budgets=[6, 2]).entries()
    jsma = [e for e in entries if e.spec.name == "jsma" and e.role != "closer"]
    assert [e.spec.params["max_features"] for e in jsma] == [6, 6]
    assert all(e.serves(2) and e.serves(6) for e in jsma)
    box = [e for e in entries if e.role == "black-box"]
    assert [e.budget for e in box] == [2, 6]
    assert box[0].serves(2)
    assert not box[0].serves(6)


def test_of_one_feature_jsma_chooses_singly() -> None:
    """It changes features in pairs otherwise, and could not run at all."""

    def jsma(budgets: list[float]) -> list[tuple[int, str]]:
        specs = [e.spec for e in Panel(norm="l0", budgets=budgets).entries()]
        # A transfer is handed the budget, and gives it to the attack on the source.
        inner = [(s.params["max_features"], s.params.get("attack", s.params)) for s in specs
                 if "jsma" in (s.name, s.params.get("attack", {}).get("name"))]  # fmt: skip
        return [(most, params.get("saliency", "papernot")) for most, params in inner]

    assert jsma([1]) == [(1, "single")] * 6
    assert sorted(jsma([1, 4])) == [(1, "single")] * 2 + [(4, "papernot")] * 6


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize(
    ("shape", "classes"), [((30,), 2), ((4,), 3), ((1, 4, 4), 3), ((3, 4, 4), 10)]
)
def test_every_committed_attack_runs_on_any_shape_and_number_of_classes(
    norm: Norm, shape: tuple[int, ...], classes: int
) -> None:
    info = DataInfo("d", shape, classes, (0.0,), (1.0,))
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(info.features, classes))
    x = torch.rand(3, *shape, generator=generator)
    y = model(x).argmax(dim=1)
    panel = Panel(norm=norm, budgets=[1, 3] if norm == "l0" else [0.1])
    for entry in panel.entries():
        few = {k: min(v, 4) for k, v in entry.spec.params.items() if k in ("steps", "queries")}
        attack = registry.ATTACKS.make(Spec(entry.spec.name, {**entry.spec.params, **few}))
        fitted = dict.fromkeys(attack.requires(), model)
        context = AttackContext(info, 0, fitted)
        found = attack_sources(model, attack, Sources(torch.arange(3), x, y), context)
        assert (found.records["status"] != "misclassified").all(), entry
        assert found.records["in_budget"].all(), entry


def test_effort_adds_the_panel_once_more_with_more_steps() -> None:
    panel = Panel(norm="linf", budgets=[0.1])
    plain, hard = panel.entries(), panel.entries(10)
    assert hard[: len(plain)] == plain
    strong = [e.spec.params for e in hard if e.role == "log-odds"]
    assert strong[1]["steps"] == 10 * strong[0]["steps"]
    assert strong[1]["restarts"] == 10 * strong[0]["restarts"]
    again = Panel(norm="l0", budgets=[2]).entries(10)
    assert {e.effort for e in again if e.spec.name == "jsma"} == {1}  # nothing to multiply


def test_the_first_round_of_closers_has_none_before_it() -> None:
    closer = {"role": "closer", "name": "square", "at": "each", "effort": [], "round": 2}
    assert PanelAttack(**closer, unsettled=True).unsettled
    with pytest.raises(ValueError, match="no round before the first"):
        PanelAttack(**{**closer, "round": 1}, unsettled=True)


def test_l0_budgets_are_counts_of_features() -> None:
    assert Panel(norm="l0", budgets=[4]).threat(4, 64) == ThreatModel("l0", 4 / 64, "features")
    assert Panel(norm="l0", budgets=[99]).threat(99, 64).budget == 1.0


@pytest.mark.parametrize(
    ("panel", "words"),
    [
        ({"norm": "l1", "budgets": [1]}, ["panel", "l1", "linf"]),
        ({"norm": "linf", "budgets": []}, ["budgets", "at least 1"]),
        ({"norm": "linf", "budgets": [0.1, 0.1]}, ["twice"]),
        ({"norm": "linf", "budgets": [2]}, ["at most 1", "2"]),
        ({"norm": "l0", "budgets": [0.5]}, ["numbers of features", "0.5"]),
        ({"norm": "l2", "budgets": [-1]}, ["positive", "-1"]),
    ],
)
def test_bad_panels_are_explained(panel: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        parse_matrix({**BASE, "panel": [panel]}, "m.toml")
    assert all(word in str(raised.value) for word in ["m.toml", *words])


def test_a_matrix_needs_an_attack_or_a_panel_and_effort_needs_a_panel() -> None:
    with pytest.raises(UserError, match=r"panel.* is required"):
        parse_matrix(BASE, "m")
    with pytest.raises(UserError, match="effort = 10"):
        parse_matrix({**BASE, "attack": ["fgsm"], "effort": 10}, "m")
    with pytest.raises(UserError, match=r"one .*panel.* a norm"):
        parse_matrix({**BASE, "panel": [LINF, LINF]}, "m")


def test_the_plan_adds_the_undefended_network_and_no_cell_twice() -> None:
    (own,) = [
        {"name": e.spec.name, **e.spec.params}
        for e in Panel(**LINF).entries()  # type: ignore[arg-type]
        if e.role == "log-odds" and e.budget == 0.1
    ]
    plan = make_plan(parse_matrix({**BASE, "attack": [own], "panel": [LINF]}, "m"))
    fits = {node.id: node.document["defense"]["name"] for node in plan.of("fit")}
    attacked = [fits[node.needs["model"]] for node in plan.of("cell")]
    assert set(attacked) == {"undefended", "label_smoothing"}
    others = {"twin", "adversarial_training"}  # what attacks are transferred from
    assert set(fits.values()) == {"undefended", "label_smoothing", *others}
    entries = Panel(**LINF).entries()  # type: ignore[arg-type]
    assert attacked.count("label_smoothing") == len(entries)  # the own one is among them
    alone = make_plan(parse_matrix({**BASE, "attack": [own]}, "m"))
    assert {n.document["defense"]["name"] for n in alone.of("fit")} == {"label_smoothing"}


def test_budgets_replace_a_panel_or_add_one() -> None:
    matrix = parse_matrix({**BASE, "panel": [LINF]}, "m")
    found = matrix.with_budgets({"linf": [0.3], "l0": [2]})
    assert [(p.norm, p.budgets) for p in found.panel] == [("linf", [0.3]), ("l0", [2.0])]
    with pytest.raises(UserError, match="--budgets"):
        matrix.with_budgets({"linf": [3]})


def test_to_toml_keeps_panels() -> None:
    from bench.audit.repeat_command import to_toml

    matrix = parse_matrix({**BASE, "panel": [LINF, {"norm": "l0", "budgets": [2]}]}, "m")
    again = parse_matrix(tomllib.loads(to_toml(matrix)), "again")
    assert again.model_dump() == matrix.model_dump()


@pytest.mark.parametrize(
    ("budgets", "found"),
    [
        (["0.3"], {"linf": [0.3]}),
        (["linf=0.05,0.1", "l0=2,4"], {"linf": [0.05, 0.1], "l0": [2.0, 4.0]}),
        ("linf=0.3", {"linf": [0.3]}),
        ([], {"linf": [0.1, 0.2]}),
    ],
)
def test_the_option_of_a_run(budgets: Any, found: dict[str, list[float]]) -> None:
    document = {**BASE, "panel": [LINF]}
    plan = plan_of(document, RunOptions(budgets=budgets))
    assert {panel.norm: panel.budgets for panel in plan.matrix.panel} == found
    with pytest.raises(UserError, match="names no norm, and the matrix has 0 panels"):
        plan_of({**BASE, "attack": ["fgsm"]}, RunOptions(budgets=["0.3"]))
    with pytest.raises(UserError, match="numbers with commas"):
        plan_of(document, RunOptions(budgets=["linf=much"]))
    with pytest.raises(UserError, match="l1"):
        plan_of(document, RunOptions(budgets=["l1=0.3"]))


@pytest.mark.parametrize(
    ("norm", "budgets", "expected"),
    [
        ("linf", ["8/255"], [8 / 255]),
        ("linf", [0.1, "8 / 255"], [8 / 255, 0.1]),
        ("linf", "8/255", [8 / 255]),
        ("l2", ["0.5", "1/2.5"], [0.4, 0.5]),
        ("l0", ["24 features", 3], [3, 24]),
    ],
)
def test_budgets_as_people_write_them(norm: str, budgets: object, expected: list[float]) -> None:
    assert Panel(norm=norm, budgets=budgets).budgets == expected


@pytest.mark.parametrize(
    ("norm", "budget", "message"),
    [
        ("linf", "8/0", "divides by zero"),
        ("linf", "eight", "a number is expected, as 0.1 or 8/255"),
        ("linf", 8, "8 levels of 255 are 8/255, and a budget on inputs that were normalised"),
        ("l0", "8 pixels", "counts features, and a pixel of three channels is three"),
        ("l0", 0.1, "whole numbers of features.*for a share of them multiply"),
        ("l2", "3 features", "a number is expected"),
    ],
)
def test_budgets_that_cannot_be(norm: str, budget: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Panel(norm=norm, budgets=[budget])


def test_a_fraction_is_a_number_wherever_one_is_given() -> None:
    doors.load_plugins()
    assert make_attack(Spec("pgd", {"eps": "8/255"})) == make_attack(Spec("pgd", {"eps": 8 / 255}))
    table = {"name": "fgsm", "eps": ["4/255", 0.1]}
    found = parse_matrix({"name": "m", "defense": ["undefended"], "attack": [table]}, "m")
    assert [spec.params["eps"] for spec in found.attacks()] == [4 / 255, 0.1]
