"""Claims: what is said of them, what they are put to, and all three answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.base.files import write_json, write_records
from bench.base.rows import Results
from bench.base.types import DataInfo, UserError
from bench.claims.answer import Tally, answer, least_sources, rate_interval, read_tallies
from bench.claims.claim import claim_names, load_claim, parse_claim
from bench.evidence.finished_run import FinishedRun
from bench.evidence.folder import RunFolder
from bench.plan.graph import make_plan
from bench.plan.matrix import parse_matrix
from bench.plugins import discovery as doors

INFO = DataInfo("digits", (1, 8, 8), 10, (0.3,), (0.3,))
BASE: dict[str, Any] = {
    "name": "c", "defense": "label_smoothing", "threat": {"norm": "linf", "budget": 0.2},
}  # fmt: skip
ACCURACY = {**BASE, "accuracy_at_least": 0.5}
SUCCESS = {**BASE, "success_at_most": 0.1}


@pytest.fixture(autouse=True)
def _plugins() -> None:
    doors.load_plugins(())


def tally(fallen: Sequence[int], sources: int = 100, **changes: Any) -> Tally:
    """One untargeted attempt on each of ``sources`` images, of which these fell to one attack."""
    mask = np.zeros((sources, 1), dtype=bool)
    mask[list(fallen)] = True
    return Tally(0, sources, np.arange(sources), {"pgd log_odds": mask}, **changes)


def test_accuracy_is_supported_where_the_interval_lies_above_the_claim() -> None:
    found = answer(parse_claim(ACCURACY, "c"), [tally(range(30))])
    assert found.word == "supported"
    (seed,) = found.seeds
    assert seed.rate == 0.7
    assert seed.interval is not None
    exact = stats.binomtest(70, 100).proportion_ci(method="wilson")
    assert seed.interval == pytest.approx((exact.low, exact.high))
    assert "70 % [60.4" in found.why


def test_accuracy_is_refuted_where_it_lies_below_and_the_attack_and_samples_are_named() -> None:
    weak = np.zeros((100, 1), dtype=bool)
    weak[:10] = True
    strong = np.zeros((100, 1), dtype=bool)
    strong[5:75] = True
    both = Tally(0, 100, np.arange(100, 200), {"fgsm": weak, "pgd": strong})
    found = answer(parse_claim(ACCURACY, "c"), [both])
    assert found.word == "refuted"
    (seed,) = found.seeds
    assert seed.rate == 0.25  # 5 fell to fgsm alone, 70 to pgd
    names = [(b.attack, b.reached, b.only, b.figure) for b in seed.breakers]
    assert names == [("pgd", 70, 65, 0.3), ("fgsm", 10, 5, 0.9)]
    assert list(seed.samples) == list(range(100, 175))
    assert "at least 50 % was claimed" in found.why


def test_between_the_two_it_is_inconclusive_and_says_how_many_sources_settle_it() -> None:
    claim = parse_claim(ACCURACY, "c")
    found = answer(claim, [tally(range(45))])
    assert found.word == "inconclusive"
    needed = found.sources_needed
    assert needed is not None
    assert rate_interval(0.55, needed, 0.95)[0] >= 0.5 > rate_interval(0.55, needed - 1, 0.95)[0]
    assert answer(claim, [tally(range(50))]).sources_needed is None  # exactly what was claimed


def test_misclassified_sources_count_against_accuracy_and_not_as_attempts() -> None:
    short = Tally(0, 100, np.arange(60), {"pgd": np.zeros((60, 1), dtype=bool)})
    (seed,) = answer(parse_claim(ACCURACY, "c"), [short]).seeds
    assert (seed.rate, seed.attempts) == (0.6, 100)
    (seed,) = answer(parse_claim(SUCCESS, "c"), [short]).seeds
    assert (seed.rate, seed.attempts, seed.effective) == (0.0, 60, 60)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"missing": ["pgd failed: RuntimeError: x"]}, "pgd failed"),
        ({"doubts": ["flag zero-gradient"]}, "flag zero-gradient"),
        ({"doubts": ["naive-beaten was not evaluated: x"]}, "naive-beaten was not evaluated"),
    ],
)
def test_what_failed_or_hides_never_supports_and_still_refutes(
    changes: dict[str, Any], words: str
) -> None:
    claim = parse_claim(ACCURACY, "c")
    found = answer(claim, [tally(range(10), **changes)])
    assert found.word == "inconclusive"
    assert words in found.why
    assert answer(claim, [tally(range(90), **changes)]).word == "refuted"


def test_no_attempt_at_all_is_inconclusive() -> None:
    empty = Tally(0, 0, np.zeros(0, dtype=np.int64), {}, ["pgd failed: x"])
    for table in (ACCURACY, SUCCESS):
        found = answer(parse_claim(table, "c"), [empty])
        assert found.word == "inconclusive"
        assert "pgd failed" in found.why


def test_targeted_attempts_are_clustered_and_any_attack_counts() -> None:
    claim = parse_claim({**SUCCESS, "goal": "targeted", "threat": {"norm": "l0", "budget": 4}}, "c")
    first, second = (np.zeros((100, 9), dtype=bool) for _ in range(2))
    first[:10] = True  # all nine targets of ten sources: one success a source tells as much
    second[10, 0] = True
    (seed,) = answer(claim, [Tally(0, 100, np.arange(100), {"a": first, "b": second})]).seeds
    assert (seed.rate, seed.attempts) == (91 / 900, 900)
    assert 100 <= seed.effective < 110
    assert len(seed.samples) == 11


def test_half_a_percent_takes_765_sources_even_with_no_success() -> None:
    claim = parse_claim({**SUCCESS, "success_at_most": 0.005}, "c")
    assert least_sources(claim) == 765
    found = answer(claim, [tally(())])
    assert (found.word, found.sources_needed) == ("inconclusive", 765)
    assert "100 sources cannot support it: at most 0.5 % takes about 765" in found.why
    assert answer(claim, [tally((), 765)]).word == "supported"
    assert answer(claim, [tally((), 764)]).word == "inconclusive"


def test_certainty_is_never_supported() -> None:
    claim = parse_claim({**SUCCESS, "success_at_most": 0.0}, "c")
    found = answer(claim, [tally(())])
    assert (found.word, found.sources_needed, found.least_sources) == ("inconclusive", None, None)
    assert "no number of sources supports at most 0 %" in found.why
    assert answer(claim, [tally(range(9))]).word == "refuted"


def test_more_confidence_takes_more_sources() -> None:
    strict = parse_claim({**ACCURACY, "accuracy_at_least": 0.9, "confidence": 0.99}, "c")
    plain = parse_claim({**ACCURACY, "accuracy_at_least": 0.9}, "c")
    assert (least_sources(plain), least_sources(strict)) == (35, 60)


def test_one_seed_refutes_and_all_must_support() -> None:
    claim = parse_claim({**ACCURACY, "seeds": [0, 1]}, "c")
    good, bad, unclear = tally(range(10)), tally(range(90)), tally(range(50))
    assert answer(claim, [good, good]).word == "supported"
    assert answer(claim, [good, unclear]).word == "inconclusive"
    assert answer(claim, [unclear, bad]).word == "refuted"


BAD = [
    ({"defense": None}, ["defense"]),
    ({"accuracy_at_least": None}, ["neither", "accuracy_at_least"]),
    ({"success_at_most": 0.1}, ["both"]),
    ({"accuracy_at_least": 45}, ["accuracy_at_least", "45", "fractions"]),
    ({"acuracy_at_least": 0.4}, ["acuracy_at_least", "did you mean 'accuracy_at_least'"]),
    ({"threat": {"norm": "l1", "budget": 1}}, ["threat.norm", "l1", "linf"]),
    ({"threat": {"norm": ["l0", "linf"], "budget": 1}}, ["threat.norm", "l0"]),
    ({"threat": {"norm": "linf", "budget": 2}}, ["at most 1", "2"]),
    ({"threat": {"norm": "l0", "budget": 0.25}}, ["numbers of features", "0.25"]),
    (
        {"threat": {"norm": "linf", "budget": 0.2, "unit": "features"}},
        ["budget of linf is in 'input'", "features"],
    ),
    ({"threat": {"norm": "l0", "budget": 4, "unit": "input"}}, ["'features'", "input"]),
    ({"threat": {"norm": "linf", "budget": 0.1, "bugdet": 1}}, ["did you mean 'budget'"]),
    ({"goal": "targeted"}, ["targeted", "success_at_most"]),
    ({"defense": {"name": "distillation", "temperature": [1, 2]}}, ["one defense", "temperature"]),
    ({"confidence": 1.0}, ["confidence", "1"]),
    ({"sources": 0}, ["sources", "0"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_bad_claims_are_explained(changes: dict[str, Any], words: list[str]) -> None:
    table = {key: value for key, value in {**ACCURACY, **changes}.items() if value is not None}
    with pytest.raises(UserError) as raised:
        parse_claim(table, "mine.toml")
    assert all(word in str(raised.value) for word in ["mine.toml", *words])


def test_an_unknown_claim_or_defense_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'papernot-2016-digits'"):
        load_claim("papernot-2016-digit")
    with pytest.raises(UserError, match=r"no\.toml"):
        load_claim("no.toml")
    unknown = parse_claim({**ACCURACY, "defense": "label_smothing"}, "c")
    with pytest.raises(UserError, match="did you mean 'label_smoothing'"):
        make_plan(parse_matrix(unknown.matrix(), "c"))


@pytest.mark.parametrize(
    ("attack", "changes", "words"),
    [
        ({"name": "jsma"}, {}, "mixes norms: .*linf.*'jsma' works in l0"),
        (
            {"name": "sparse_rs", "max_features": 4, "pixels": True},
            {"threat": {"norm": "l0", "budget": 4}},
            "l0 in pixels",
        ),
        (
            {"name": "sparse_rs", "max_features": 4},
            {"threat": {"norm": "l0", "budget": 4}, "goal": "targeted"},
            'targets = "untargeted": give it "all"',
        ),
    ],
)
def test_an_attack_of_another_threat_model_is_refused(
    attack: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    claim = parse_claim({**SUCCESS, **changes, "attack": [attack]}, "c")
    with pytest.raises(UserError, match=words):
        claim.check(INFO)


def test_a_budget_beyond_the_input_is_refused() -> None:
    claim = parse_claim({**SUCCESS, "threat": {"norm": "l0", "budget": 65}}, "c")
    with pytest.raises(UserError, match="65 features is more than the 64"):
        claim.check(INFO)


def test_the_claims_of_the_package_become_matrices() -> None:
    assert claim_names() == ["papernot-2016", "papernot-2016-digits", "pgd-digits"]
    for name in claim_names():
        claim = load_claim(name)
        assert claim.name == name
        assert claim.description
        assert claim.reference
        matrix = parse_matrix(claim.matrix(), name)
        assert matrix.name == f"claim-{name}"
        names = [spec.name for spec in matrix.defenses()]
        assert names == ["undefended", claim.defense_document()["name"]]
    for name, features in (("papernot-2016", 112), ("papernot-2016-digits", 16)):
        claim = load_claim(name)
        attacks = parse_matrix(claim.matrix(), name).attacks()
        differentiated = [a.params["output"] for a in attacks if a.name == "jsma"]
        assert differentiated == ["probs", "logits", "log_odds"]
        assert [a.name for a in attacks[3:]] == ["sparse_rs", "transfer", "transfer"]
        assert {a.params["max_features"] for a in attacks} == {features}
        assert (claim.success_at_most, claim.sources) == (0.0045, 100)
    panel = load_claim("pgd-digits").matrix()["panel"]
    assert panel == [{"norm": "linf", "budgets": [0.2]}]


@pytest.mark.parametrize("norm", ["l0", "l2", "linf"])
def test_targeted_protocols_attack_every_other_class_at_the_budget(norm: str) -> None:
    from bench.plugins import registry

    table = {**SUCCESS, "goal": "targeted", "threat": {"norm": norm, "budget": 1}}
    claim = parse_claim(table, "c")
    for spec in parse_matrix(claim.matrix(), "c").attacks():
        attack = registry.ATTACKS.make(spec)
        assert attack.targets == "all"
        assert attack.threat(INFO.shape) == claim.threat.model(64)


def attempt(sample: int, target: int, **changes: Any) -> dict[str, Any]:
    record = {
        "sample_id": sample, "label": 0, "target": target, "status": "attacked", "success": False,
        "misclassified": False, "l0_features": 3, "l0_pixels": 3, "l2": 1.0, "linf": 1.0,
    }  # fmt: skip
    return {**record, **changes}


def run_of(folder: Path, cells: list[list[dict[str, Any]] | None]) -> FinishedRun:
    """A finished run of a targeted L0 claim, with these records a cell; None: it failed.

    So do the cells behind the last one given.
    """
    claim = parse_claim({**SUCCESS, "goal": "targeted", "threat": {"norm": "l0", "budget": 4}}, "c")
    plan = make_plan(parse_matrix(claim.matrix(), "c"))
    fits = {node.id: node.document for node in plan.of("fit")}
    models, rows = [], []
    for name, fit in fits.items():
        models.append(
            {"id": name, "defense": fit["defense"]["name"], "seed": 0, "flags": [],
             "defense_params": fit["defense"]["params"], "not_evaluated": {}}
        )  # fmt: skip
    mine = next(name for name, fit in fits.items() if fit["defense"]["name"] == "label_smoothing")
    made = iter(cells)
    for node in plan.of("cell"):
        records = next(made, None) if node.needs["model"] == mine else None
        spec = node.document["attack"]
        rows.append(
            {"id": node.id, "attack": spec["name"], "attack_params": spec["params"],
             "status": "failed" if records is None else "done", "reason": "boom", "flags": [],
             "sources": 3}
        )  # fmt: skip
        if records is not None:
            path = RunFolder(folder).cell(node.id)
            checksum = write_records(path.with_suffix(".parquet"), pd.DataFrame(records))
            write_json(path, {"files": {"records": checksum}})
    return FinishedRun(RunFolder(folder), plan, Results(rows, models), {})


def test_tallies_are_read_off_the_records(tmp_path: Path) -> None:
    claim = parse_claim({**SUCCESS, "goal": "targeted", "threat": {"norm": "l0", "budget": 4}}, "c")
    won: dict[str, Any] = {"success": True, "misclassified": True}
    wrong = attempt(9, -1, status="misclassified", misclassified=True)
    probs = [attempt(7, 1, **won), attempt(7, 2, misclassified=True), wrong,
             attempt(5, 1), attempt(5, 2)]  # fmt: skip
    far = [attempt(7, 1), attempt(7, 2, **{**won, "l0_features": 5}), wrong,
           attempt(5, 1), attempt(5, 2, **won)]  # fmt: skip
    (tally,) = read_tallies(claim, run_of(tmp_path, [probs, far]), INFO)
    assert (tally.sources, tally.ids.tolist()) == (3, [5, 7])
    # Source 7 falls at target 1 alone: the other attempt went wrong elsewhere, or spent too much.
    assert tally.reached().tolist() == [[False, True], [True, False]]
    assert sorted(tally.hits) == ["jsma logits", "jsma probs"]
    others = ["jsma log_odds", "sparse_rs", "transfer undefended jsma", "transfer twin jsma"]
    assert tally.missing == [f"{name} failed: boom" for name in others]


def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    weights = [f"{name}.pt" for name in "abc"]
    for name in weights:
        (tmp_path / name).touch()
    return {"defense": {"name": "checkpoint", "weights": weights}}


def test_several_weights_of_a_claim_are_the_seeds_of_its_one_defense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = parse_claim({**ACCURACY, **checkpoints(tmp_path, monkeypatch)}, "c")
    plan = make_plan(parse_matrix({**claim.matrix(), "reference": "none"}, "c"))
    fits = [node.document for node in plan.of("fit")]
    assert [fit["seed"] for fit in fits] == [0, 1, 2]
    assert all(fit["defense"] == claim.defense_document() for fit in fits)
    with pytest.raises(UserError, match="a claim is about one defense, and builder lists 2"):
        parse_claim({**ACCURACY, "defense": {"name": "checkpoint", "builder": ["a", "b"]}}, "c")


def test_a_targeted_claim_on_weights_trains_nothing_to_attack_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**SUCCESS, "goal": "targeted", **checkpoints(tmp_path, monkeypatch)}
    plan = make_plan(parse_matrix(parse_claim(given, "c").matrix(), "c"))
    assert {fit.document["defense"]["name"] for fit in plan.of("fit")} == {"checkpoint"}
    further = {**given, "transfer_from": [{"name": "checkpoint", "weights": "b.pt"}]}
    plan = make_plan(parse_matrix(parse_claim(further, "c").matrix(), "c"))
    attacks = [cell.document["attack"] for cell in plan.of("cell")]
    sources = {a["params"]["source"]["weights"] for a in attacks if a["name"] == "transfer"}
    assert sources == {"b.pt"}
