"""What defenses are compared with, what transfer attacks are made on, and seeds that are files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.base.types import UserError
from bench.plan.graph import Plan, make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery

PANEL = [{"norm": "linf", "budgets": [0.1]}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    discovery.load_plugins()
    for name in "abcp":
        torch.save({"w": torch.zeros(1)}, f"{name}.pt")


def plan(*defenses: Any, **keys: Any) -> Plan:
    return make_plan(
        parse_matrix({"name": "m", "defense": list(defenses), "panel": PANEL, **keys}, "m")
    )


def checkpoint(*names: str) -> dict[str, Any]:
    return {"name": "checkpoint", "weights": [f"{name}.pt" for name in names]}


def seeds(found: Plan, name: str) -> list[int]:
    fits = [node.document for node in found.of("fit") if node.document["defense"]["name"] == name]
    return [document["seed"] for document in fits]


def sources(found: Plan) -> set[str]:
    attacks = [node.document["attack"] for node in found.of("cell")]
    named = [a["params"]["source"] for a in attacks if a["name"] == "transfer"]
    return {f"{s['name']} {s.get('weights', '')}".strip() for s in named}


def test_several_weights_are_the_seeds_of_one_defense_whatever_the_run_s_seeds() -> None:
    found = plan(checkpoint("a", "b", "c"), reference="none", seeds=[7])
    assert seeds(found, "checkpoint") == [0, 1, 2]
    documents = {str(node.document["defense"]) for node in found.of("fit")}
    assert len(documents) == 1


def test_one_file_is_one_seed_however_many_the_run_has() -> None:
    found = plan(checkpoint("a"), reference="none", seeds=[0, 1, 2])
    assert seeds(found, "checkpoint") == [0]
    bare = plan({"name": "checkpoint", "weights": "a.pt"}, reference="none", seeds=[0, 1, 2])
    assert [node.id for node in bare.nodes] == [node.id for node in found.nodes]


def test_the_default_reference_is_the_undefended_network_at_the_run_s_seeds() -> None:
    found = plan(checkpoint("a", "b", "c"))
    assert found.reference == {"name": "undefended", "params": {}}
    assert seeds(found, "undefended") == [0]
    assert "undefended" in sources(found)
    assert "twin" in sources(found)


def test_a_reference_of_one_s_own_takes_its_place_everywhere() -> None:
    found = plan(checkpoint("a", "b", "c"), reference=checkpoint("p"))
    assert {node.document["defense"]["name"] for node in found.of("fit")} == {"checkpoint"}
    assert sources(found) == {"checkpoint p.pt"}
    assert found.reference is not None
    assert found.reference["params"]["weights"] == "p.pt"


def test_transfer_from_adds_sources_and_no_reference_leaves_those_alone() -> None:
    found = plan(checkpoint("a"), reference="none", transfer_from=[checkpoint("b")])
    assert sources(found) == {"checkpoint b.pt"}
    assert found.reference is None
    both = plan(checkpoint("a"), reference=checkpoint("p"), transfer_from=[checkpoint("b")])
    assert sources(both) == {"checkpoint p.pt", "checkpoint b.pt"}
    assert "undefended" in sources(plan(checkpoint("a"), transfer_from=[checkpoint("b")]))
    assert not sources(plan(checkpoint("a"), reference="none"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reference": checkpoint("p", "b")}, r"has the training seeds \[0, 1\].*\[0, 1, 2\]"),
        ({"reference": {"name": "label_smoothing", "amount": [0.1, 0.2]}}, "lists 2 defenses"),
        ({"reference": "undefnded"}, "unknown defense 'undefnded': did you mean 'undefended'"),
        ({"transfer_from": ["nobody"], "reference": "none"}, "unknown defense 'nobody'"),
    ],
)
def test_what_cannot_be_compared_with_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(checkpoint("a", "b", "c"), **keys)


def test_the_same_file_twice_is_no_second_training() -> None:
    with pytest.raises(UserError, match="names a file twice"):
        plan(checkpoint("a", "a"), reference="none")
