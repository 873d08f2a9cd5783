"""Rows of verdicts, from records made by hand."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.base.types import DataInfo, Document, Flag, Norm, Suspicions, ThreatModel
from bench.evidence.cells import NOTHING_LEFT, SETTLED, UNSUSPECTED, Trial
from bench.evidence.records import smallest
from bench.plan.matrix import MatrixConfig, parse_matrix
from bench.plan.panel import LATE, Entry, Panel
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.verdict.ranking import rank_ranges
from bench.verdict.survivors import Subject
from bench.verdict.verdict_rows import Model, verdict_rows

N = 100
INFO = DataInfo("digits", (1, 8, 8), 10, (0.0,), (1.0,))
IDS = list(range(1000, 1000 + N))
Reach = Mapping[str, Sequence[float]]


@pytest.fixture(autouse=True, scope="module")
def _plugins() -> None:
    doors.load_plugins(())


def matrix(norm: str = "linf", budgets: Sequence[float] = (0.1, 0.2), **keys: Any) -> MatrixConfig:
    panel = [{"norm": norm, "budgets": list(budgets)}]
    return parse_matrix({"name": "m", "defense": ["undefended"], "panel": panel, **keys}, "m")


def records(distance: Sequence[float], wrong: int = 0, column: str = "linf") -> pd.DataFrame:
    """One untargeted attempt a source, broken at ``distance`` (infinity: not at all)."""
    found = np.asarray(distance, dtype=float)
    status = np.where(np.arange(N) >= N - wrong, "misclassified", "attacked")
    frame = pd.DataFrame({"sample_id": IDS, "status": status})
    frame["misclassified"] = np.isfinite(found) & (status == "attacked")
    for name in ("l0_features", "l2", "linf"):
        frame[name] = np.where(np.isfinite(found), found, 9.0) if name == column else 9.0
    return frame


def at(budget: float, count: int) -> list[float]:
    """The first ``count`` sources broken at ``budget``, the others never."""
    return [budget if number < count else np.inf for number in range(N)]


@functools.cache
def committed(
    norm: Norm, budgets: tuple[float, ...], effort: int
) -> list[tuple[Entry, Document, str]]:
    """The attacks of a panel, with the document and the access of each."""
    found = []
    for entry in Panel(norm=norm, budgets=list(budgets)).entries(effort):
        attack = registry.ATTACKS.make(entry.spec)
        found.append((entry, registry.ATTACKS.document(attack), attack.access))
    return found


def model(
    config: MatrixConfig, name: str, breaks: Mapping[str, int], *, seed: int = 0, wrong: int = 0,
    failed: str = "", flags: tuple[Flag, ...] = (), extra: Sequence[Trial] = (),
    shapes: Sequence[Sequence[int]] = ((10,), (10, 64)),
) -> Model:  # fmt: skip
    """A model on which every panel attack of a role breaks so many sources at its budget.

    ``all``: for the roles that are not named; closers, which only get what stands, need a name,
    and follow-ups are skipped without one.
    """
    panel = config.panel[0]
    trials = []
    known = committed(panel.norm, tuple(panel.budgets), config.effort)
    for number, (entry, document, access) in enumerate(known):
        budget = 1.0 if entry.role == "unbounded" else entry.budget or panel.budgets[-1]
        others = 0 if entry.role in LATE else breaks.get("all", 0)
        count = N if entry.role == "unbounded" else breaks.get(entry.role, others)
        column = "l0_features" if panel.norm == "l0" else panel.norm
        skipped = entry.role == "follow-up" and entry.role not in breaks
        done = entry.role != failed and not skipped
        row = {
            "id": f"{name}{seed}-{number}", "attack": document["name"],
            "attack_params": document["params"], "flags": [],
            "status": "done" if done else "skipped" if skipped else "failed",
            "reason": None if done else UNSUSPECTED if skipped else "RuntimeError: boom",
            "forwards": 10, "backwards": 5, "round": entry.round,
        }  # fmt: skip
        frame = records(at(budget, count), wrong, column) if done else None
        trials.append(Trial(row, frame, access))
    row = {
        "id": f"fit-{name}{seed}", "dataset": "digits", "network": "n", "recipe": "r",
        "defense": name, "defense_params": {}, "seed": seed, "accuracy": 0.97,
        "gradients": {"cosine_median": 1.0, "zero_share": 0.0},
        "suspicion": {"shapes": shapes},
    }  # fmt: skip
    return Model(row, Suspicions(flags), [*trials, *extra])


def rows(config: MatrixConfig, *models: Model) -> dict[tuple[str, float], Document]:
    found = verdict_rows(config, INFO, IDS, models)
    json.dumps(found, allow_nan=False)
    return {(row["defense"], row["at"]): row for row in found}


LOST = {"all": 98}


def test_a_gain_holds_at_three_seeds_and_the_undefended_network_is_the_reference() -> None:
    config = matrix(seeds=[0, 1, 2])
    models = [model(config, "undefended", LOST, seed=s) for s in range(3)]
    models += [model(config, "twin", {"all": 30}, seed=s, wrong=2) for s in range(3)]
    found = rows(config, *models)
    row = found["twin", 0.2]
    assert (row["verdict"], row["rule"]) == ("holds", 4)
    assert [s["worst_case"] for s in row["seeds"]] == [0.68] * 3
    first = row["seeds"][0]
    assert (first["undefended"], first["delta"]) == (0.02, pytest.approx(0.66))
    assert first["delta_ci"][0] > 0.5
    known = committed("linf", (0.1, 0.2), 1)
    cells = sum(entry.serves(0.2) and entry.role != "follow-up" for entry, _, _ in known)
    assert (first["forwards"], first["backwards"]) == (10 * cells, 5 * cells)
    assert found["undefended", 0.2]["verdict"] == "reference"
    assert found["undefended", 0.2]["seeds"][0]["delta"] is None
    assert (row["rank"], found["undefended", 0.2]["rank"]) == ((1, 1), (2, 2))
    assert len({row["id"] for row in found.values()}) == 4
    one = rows(config, models[0], models[3])
    assert one["twin", 0.2]["verdict"] == "holds (one seed)"


def test_the_headline_is_the_smallest_budget_with_power_at_every_seed() -> None:
    config = matrix()
    weak = Trial(dict(model(config, "x", {}).trials[0].row), records(at(0.05, 90)), "scores")
    weak = replace(weak, row={**weak.row, "id": "own", "attack": "mine", "attack_params": {}})
    strong = model(config, "undefended", {"all": 50}, extra=[weak])
    found = rows(config, strong, model(config, "twin", {"all": 10}))
    assert [found["twin", b]["headline"] for b in (0.1, 0.2)] == [True, False]
    none = rows(config, model(config, "undefended", {"all": 50}), model(config, "twin", {}))
    assert not any(row["headline"] for row in none.values())
    assert {row["rule"] for (name, _), row in none.items() if name == "twin"} == {1}


def test_a_masked_defense_shows_the_drop_and_who_broke_it() -> None:
    config = matrix()
    hidden = {"naive": 5, "log-odds": 95, "strong": 90, "all": 20}
    found = rows(config, model(config, "undefended", LOST), model(config, "twin", hidden))
    row = found["twin", 0.2]
    assert row["verdict"] == "masked, broken"
    seed = row["seeds"][0]
    assert (seed["naive"], seed["worst_case"], seed["drop"]) == (0.95, 0.05, pytest.approx(0.9))
    assert [flag["id"] for flag in seed["flags"]] == ["naive-beaten"]
    top = seed["broken_by"][0]
    assert (top["attack"], top["role"], top["breaks"]) == ("pgd scaled_log_odds", "log-odds", 95)
    assert top["only"] == 5  # five more than dlr


def test_a_failed_cell_is_no_robustness() -> None:
    config = matrix()
    reference = model(config, "undefended", LOST)
    for count in (5, 97):
        failed = model(config, "twin", {"all": count}, failed="black-box")
        row = rows(config, reference, failed)["twin", 0.2]
        assert (row["verdict"], row["rule"], row["rank"]) == ("inconclusive", 1, None)
        seed = row["seeds"][0]
        assert (seed["worst_case"], seed["delta"], seed["drop"]) == (None, None, None)
        assert "boom" in row["why"]
        assert "panel-incomplete" in [flag["id"] for flag in seed["flags"]]
        assert row["curve"]["worst_case"] == {"0": None}
    # Nor is one of the undefended network: the gain over it is not known.
    other = rows(
        config, model(config, "undefended", LOST, failed="noise"), model(config, "twin", {})
    )
    assert other["twin", 0.2]["rule"] == 1
    assert "undefended: noise failed" in other["twin", 0.2]["why"]


def test_a_cell_that_is_not_there_is_no_robustness() -> None:
    config = matrix()
    whole = model(config, "twin", {"all": 5})
    boxes = [t for t in whole.trials if t.row["attack"] != "square" or t.row["round"]]
    row = rows(config, model(config, "undefended", LOST), replace(whole, trials=boxes))["twin", 0.2]
    assert (row["verdict"], row["rule"], row["seeds"][0]["worst_case"]) == ("inconclusive", 1, None)
    assert "square (black-box) was not run" in row["why"]


def test_a_cell_that_changed_nothing_is_no_robustness() -> None:
    config = matrix()
    idle = model(config, "twin", {"all": 5})
    idle.trials[0].row["flags"].append({"id": "no-op", "severity": "warning"})
    row = rows(config, model(config, "undefended", LOST), idle)["twin", 0.1]
    assert row["rule"] == 1
    assert "changed nothing" in row["why"]


def test_an_l0_budget_counts_features_and_a_trajectory_serves_smaller_ones() -> None:
    config = matrix("l0", (2, 6))
    undefended = model(config, "undefended", LOST)
    jsma = [0 if i < 10 else 2 if i < 30 else 6 if i < 60 else np.inf for i in range(N)]
    trials = [
        replace(trial, records=records(jsma, column="l0_features"))
        if trial.row["attack_params"].get("output") == "log_odds" and not trial.row["round"]
        else trial
        for trial in model(config, "twin", {}).trials
    ]
    twin = replace(model(config, "twin", {}), trials=trials)
    found = rows(config, undefended, twin)
    worst = {b: found["twin", b]["seeds"][0]["worst_case"] for b in (2, 6)}
    assert worst == {2: 0.7, 6: 0.4}
    assert found["twin", 2]["threat"] == {"norm": "l0", "budget": 2 / 64, "unit": "features"}
    curve = found["twin", 6]["curve"]
    assert curve["at"] == [0, 2, 6]
    assert curve["worst_case"]["0"] == [1.0, 0.7, 0.4]
    assert curve["undefended"]["0"][-1] == 0.02
    assert found["twin", 2]["curve"] is None


def test_effort_says_by_how_much_the_worst_case_moved() -> None:
    config = matrix(effort=10)
    entries = [entry for entry, _, _ in committed("linf", (0.1, 0.2), 10)]
    base = model(config, "twin", {"all": 10})
    harder = [
        replace(trial, records=records(at(0.1, 14)))
        if entry.effort == 10 and entry.role == "log-odds" and entry.budget == 0.1
        else trial
        for trial, entry in zip(base.trials, entries, strict=True)
    ]
    found = rows(config, model(config, "undefended", LOST), replace(base, trials=harder))
    seed = found["twin", 0.1]["seeds"][0]
    assert (seed["worst_case"], seed["moved"]) == (0.86, pytest.approx(0.04))
    assert [f["id"] for f in seed["flags"]] == []  # thresholds are for the plain effort
    assert {"pgd scaled_log_odds", "pgd scaled_log_odds × 10"} <= {
        item["attack"] for item in seed["broken_by"]
    }
    plain = rows(matrix(), model(matrix(), "undefended", LOST), model(matrix(), "twin", {}))
    assert plain["twin", 0.1]["seeds"][0]["moved"] is None


def closing(base: Model, config: MatrixConfig, broken: Mapping[int, int]) -> Model:
    """``base`` with the first closer of a round breaking so many sources, in the last places."""
    panel, left = config.panel[0], dict(broken)
    trials = []
    entries = committed(panel.norm, tuple(panel.budgets), config.effort)
    for trial, (entry, _, _) in zip(base.trials, entries, strict=True):
        if entry.budget == panel.budgets[-1] and entry.round in left:
            count = left.pop(entry.round)
            reach = [entry.budget if N - i <= count else np.inf for i in range(N)]
            trials.append(replace(trial, records=records(reach)))
        else:
            trials.append(trial)
    assert not left
    return replace(base, trials=trials)


def test_closers_count_and_a_last_round_that_still_breaks_is_not_converged() -> None:
    config = matrix()
    undefended = model(config, "undefended", LOST)
    found = {}
    for rounds in ({1: 6}, {1: 6, 3: 7}, {3: 1}):
        twin = closing(model(config, "twin", {"all": 10}), config, rounds)
        found[tuple(rounds)] = rows(config, undefended, twin)["twin", 0.2]
    settled, unsettled, one = found[1,], found[1, 3], found[3,]
    assert settled["seeds"][0]["worst_case"] == pytest.approx(0.84)
    assert (settled["verdict"], settled["seeds"][0]["unsettled"]) == ("holds (one seed)", 0.0)
    assert unsettled["seeds"][0]["unsettled"] == pytest.approx(0.01)  # one that no other reached
    assert unsettled["verdict"] == "not converged (moved 1 points)"
    assert one["verdict"] == "not converged (moved 1 points)"
    assert (one["rule"], one["seeds"][0]["verdict"]) == (5, "inconclusive")


def test_a_closer_that_had_too_little_left_is_no_gap_and_one_that_failed_is() -> None:
    config = matrix()
    undefended = model(config, "undefended", LOST)

    def ended(status: str, reason: str) -> Document:
        base = model(config, "twin", {"all": 10})
        trials = [
            replace(t, row={**t.row, "status": status, "reason": reason}, records=None)
            if t.row["round"] == 3
            else t
            for t in base.trials
        ]
        return rows(config, undefended, replace(base, trials=trials))["twin", 0.2]

    for needless in (NOTHING_LEFT, f"{NOTHING_LEFT}: 4 sources stand", SETTLED):
        assert ended("skipped", needless)["verdict"] == "holds (one seed)"
    assert ended("failed", "RuntimeError: boom")["rule"] == 1


def test_a_row_says_what_followed_up_and_what_only_that_broke() -> None:
    config = matrix()
    undefended = model(config, "undefended", LOST)
    suspect = model(config, "twin", {"all": 20, "follow-up": 70})
    seed = rows(config, undefended, suspect)["twin", 0.2]["seeds"][0]
    assert (seed["worst_case"], seed["followed_up"]) == (0.3, 50)
    assert "gradients of surrogates, which broke 50 more" in seed["why"]
    assert seed["broken_by"][0]["role"] == "follow-up"
    assert seed["broken_by"][0]["attack"].startswith("surrogate")
    honest = rows(config, undefended, model(config, "twin", {"all": 20}))["twin", 0.2]["seeds"][0]
    assert honest["followed_up"] is None
    assert "surrogates" not in honest["why"]


def test_a_gain_over_another_architecture_has_no_like_reference() -> None:
    config = matrix()
    undefended = model(config, "undefended", LOST)
    for shapes, verdict in (
        (((10,), (10, 64), (64, 64)), "holds (one seed)"),  # and a part of its own
        (((10,), (10, 32)), "no like reference"),
        ((), "no like reference"),
    ):
        twin = model(config, "twin", {"all": 30}, shapes=shapes)
        assert rows(config, undefended, twin)["twin", 0.2]["verdict"] == verdict
    # What breaks stays broken, whatever it is compared with.
    weak = model(config, "twin", {"all": 97}, shapes=((10, 32),))
    assert rows(config, undefended, weak)["twin", 0.2]["verdict"] == "broken"


def test_other_attacks_count_whatever_their_norm_and_goal() -> None:
    config = matrix()
    frame = records(at(0.15, 40))
    own = Trial(
        {"id": "own", "attack": "jsma", "attack_params": {}, "status": "done", "flags": [],
         "reason": None, "forwards": 1, "backwards": 1}, frame, "gradients",
    )  # fmt: skip
    models = model(config, "undefended", LOST), model(config, "twin", {"all": 5}, extra=[own])
    found = rows(config, *models)
    assert [found["twin", b]["seeds"][0]["worst_case"] for b in (0.1, 0.2)] == [0.95, 0.6]
    assert found["twin", 0.2]["seeds"][0]["broken_by"][0]["role"] is None


def test_smallest_takes_the_nearest_of_several_targets_and_leaves_the_wrong_alone() -> None:
    frame = pd.DataFrame(
        {
            "sample_id": [5, 5, 7, 9, 9],
            "misclassified": [True, True, False, True, False],
            "l0_features": [8, 4, 1, 6, 2],
        }
    )
    found = smallest(frame, np.array([9, 7, 5]), ThreatModel("l0", 0.5, "features"), (1, 8, 8))
    assert found.tolist() == [6 / 64, np.inf, 4 / 64]


def subject(reach: Sequence[Sequence[float]]) -> Subject:
    row = {"attack": "a", "attack_params": {}, "status": "done", "reason": None, "flags": []}
    trials = [
        Trial({**row, "id": str(number)}, records(line), "scores")
        for number, line in enumerate(reach)
    ]
    return Subject(Panel(norm="linf", budgets=[0.1, 0.2]), INFO, np.array(IDS), trials)


distances = st.lists(st.sampled_from([0.05, 0.1, 0.2, np.inf]), min_size=N, max_size=N)


@settings(max_examples=15, deadline=None)
@given(st.lists(distances, min_size=1, max_size=3), distances)
def test_one_more_attack_and_a_larger_budget_never_raise_the_worst_case(
    reach: list[list[float]], more: list[float]
) -> None:
    before, after = subject(reach), subject([*reach, more])
    for budget in (0.05, 0.1, 0.2):
        assert not (after.survivors(budget) & ~before.survivors(budget)).any()
    assert not (before.survivors(0.2) & ~before.survivors(0.1)).any()
    counted = {item["attack"]: item for item in before.breakers(0.2)}
    assert sum(item["only"] for item in counted.values()) <= N - before.survivors(0.2).sum()


def test_ranks_are_ranges_of_what_is_told_apart() -> None:
    survivors = {name: np.arange(N) < k for name, k in {"a": 90, "b": 85, "c": 20}.items()}
    assert rank_ranges(survivors) == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    assert rank_ranges({"a": survivors["a"]}) == {"a": (1, 1)}
    # Six against none are significant for one pair, p = 0.03, and not among several.
    close = {"a": np.arange(N) < 90, "b": np.arange(N) < 84}
    assert rank_ranges(close) == {"a": (1, 1), "b": (2, 2)}
    more = {**close, "c": np.arange(N) < 87}
    assert rank_ranges(more) == dict.fromkeys("abc", (1, 3))
