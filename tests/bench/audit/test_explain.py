"""``explain`` shows what a cell rests on, ``diff`` what explains a changed number."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from bench.audit.diff import compare_runs
from bench.audit.repeat_command import repeat_command, to_toml
from bench.base.files import read_json, write_json
from bench.base.json_changes import changes, flatten
from bench.evidence.finished_run import read_run
from bench.plan.matrix import load_matrix
from bench.plan.options import RunOptions, plan_of
from leaderboard.tables.cells import labels
from tests.bench.conftest import options


def test_explain_shows_the_cell_from_outcome_to_repetition(finished, command) -> None:
    row = read_json(finished / "results.json")[0]
    done = command("explain", finished, row["id"][:8])
    assert done.exit_code == 0, done.output
    text = done.output
    for part in (
        f"cell {row['id']}  done",
        '"harness_source"',
        '"weights"',
        "success_rate",
        "few-sources",
        "status: attacked 12",
        "stop_reason: ",
        "adversarial_prediction",
        "python -m bench run --matrix small.toml --device cpu",
        "[[defense]]",
    ):
        assert part in text, part


def test_explain_says_why_a_cell_failed(copy, command) -> None:
    row = read_json(copy / "results.json")[0]
    path = copy / "cells" / f"{row['id']}.json"
    document = read_json(path)["key"]["document"]
    outcome = {"status": "failed", "reason": "out of luck"}
    write_json(path, {"id": row["id"], "outcome": outcome, "document": document})
    done = command("explain", copy, row["id"])
    assert done.exit_code == 0, done.output
    assert "failed: out of luck" in done.output


@pytest.mark.parametrize(("prefix", "message"), [("", "is ambiguous"), ("zz", "is the id of no")])
def test_a_prefix_must_name_one_cell(prefix, message, finished, command) -> None:
    done = command("explain", finished, prefix)
    assert done.exit_code == 2
    assert message in done.output
    assert read_json(finished / "results.json")[0]["id"] in done.output


def test_the_matrix_file_of_the_repetition_loads_back_equal(finished, tmp_path: Path) -> None:
    run = read_run(finished)
    _, text = repeat_command(run, "cpu")
    assert text is not None
    (tmp_path / "small.toml").write_text(text)
    assert load_matrix(tmp_path / "small.toml") == run.plan.matrix


def test_strange_values_survive_toml(tmp_path: Path) -> None:
    matrix = load_matrix("smoke", {"description": 'a "quoted" \\ line\nand π'})
    (tmp_path / "m.toml").write_text(to_toml(matrix), encoding="utf-8")
    assert load_matrix(tmp_path / "m.toml") == matrix


def test_a_built_in_matrix_is_repeated_by_its_name_and_options(finished, command) -> None:
    run = read_run(finished)
    made = plan_of("smoke", RunOptions(seeds=[3, 4], sources="all", recipe="digits"))
    object.__setattr__(run, "plan", made)
    words, text = repeat_command(run, "cpu")
    assert text is None
    given = shlex.split(words)
    assert given[:8] == ["python", "-m", "bench", "run", "--matrix", "smoke", "--recipe", "digits"]
    assert given[8:12] == ["--seeds", "3,4", "--sources", "all"]


def test_a_run_does_not_differ_from_itself(finished, command) -> None:
    done = command("diff", finished, finished)
    assert done.exit_code == 0, done.output
    assert "6 cells compared, 0 with changed numbers" in done.output


def test_the_number_of_sources_explains_what_it_changes(finished, small, tmp_path, command) -> None:
    again = command("run", *options(small), "--sources", 9, "--out", tmp_path / "nine")
    assert again.exit_code == 0, again.output
    done = command("diff", finished, tmp_path / "nine")
    assert done.exit_code == 0, done.output
    assert "sources: 12 → 9" in done.output
    assert "document.sources: 12 → 9" in done.output
    assert "model.weights" not in done.output
    assert "6 cells compared, 6 with changed numbers" in done.output


def test_a_recipe_and_a_budget_are_named_where_they_differ(
    finished, small, tmp_path, command
) -> None:
    text = (small / "small.toml").read_text()
    other = text.replace("gamma = 0.1", "gamma = 0.2").replace('"smoke"', '"digits"')
    (tmp_path / "small.toml").write_text(other)
    args = ("--matrix", tmp_path / "small.toml", *options(small)[2:])
    again = command("run", *args, "--recipe", "smoke", "--out", tmp_path / "other")
    assert again.exit_code == 0, again.output
    compared = compare_runs(read_run(finished), read_run(tmp_path / "other"))
    assert (len(compared.pairs), compared.only_first, compared.only_second) == (6, [], [])
    jsma = next(pair for pair in compared.pairs if pair.first["attack"] == "jsma")
    assert jsma.keys["document.attack.params.gamma"] == (0.1, 0.2)
    assert not any(pair.failure for pair in compared.pairs)


def test_what_nothing_explains_is_a_reproducibility_failure(finished, copy, command) -> None:
    rows = read_json(copy / "results.json")
    rows[0]["success_rate"] = 0.123
    write_json(copy / "results.json", rows)
    done = command("diff", finished, copy)
    assert done.exit_code == 1
    assert "→ 12.3 %" in done.output
    assert "a reproducibility failure" in done.output


def test_a_library_that_changed_is_named(finished, copy, command) -> None:
    rows = read_json(copy / "results.json")
    rows[0]["success_rate"] = 0.123
    write_json(copy / "results.json", rows)
    environment = read_json(copy / "environment.json")
    environment["libraries"]["torch"] = "0.0.1"
    write_json(copy / "environment.json", environment)
    done = command("diff", finished, copy)
    assert done.exit_code == 0
    assert "environment: torch: " in done.output
    assert "no key field differs" in done.output


def test_a_worst_case_may_change_by_another_cell(finished, copy, command) -> None:
    rows = read_json(copy / "results.json")
    left = [row for row in rows if row["attack"] != "jsma"]
    left[0]["worst_case"] = 0.999
    write_json(copy / "results.json", left)
    done = command("diff", finished, copy)
    assert done.exit_code == 0, done.output
    assert "siblings.jsma" in done.output
    assert done.output.count("only in the first") == 2


def test_paths_of_documents() -> None:
    assert flatten({"a": [1, {"b": {}}]}) == {"a.0": 1, "a.1.b": {}}
    assert changes({"a": 1, "b": 2}, {"a": True, "c": 2}) == {
        "a": (1, True),
        "b": (2, "absent"),
        "c": ("absent", 2),
    }
    assert changes(json.loads("[0.1]"), [0.1]) == {}


@pytest.mark.parametrize("order", [0, 1])
def test_diff_wants_two_finished_runs(order, finished, tmp_path, command) -> None:
    runs = [finished, tmp_path / "none"]
    done = command("diff", runs[order], runs[1 - order])
    assert done.exit_code == 2
    assert "is no finished run" in done.output


def test_a_run_is_shown_again_and_its_tables_whole(finished, command) -> None:
    done = command("show", finished)
    assert done.exit_code == 0, done.output
    assert "worst case" in done.output
    assert "leaderboard.md" in done.output
    whole = command("show", finished, "--table", "attacks")
    assert whole.exit_code == 0, whole.output
    assert "success rate" in whole.output
    assert command("show", finished, "--table", "none").exit_code == 2


def test_a_cell_is_explained_by_the_names_in_the_tables(finished, command) -> None:
    rows = read_json(finished / "results.json")
    defense, attack = labels(rows, "defense")[0], labels(rows, "attack")[0]
    done = command("explain", finished, defense, attack)
    assert done.exit_code == 0, done.output
    assert rows[0]["id"] in done.output


def test_what_changed_beyond_the_headline_is_behind_all(finished, copy, command) -> None:
    rows = read_json(copy / "results.json")
    rows[0]["accuracy"] = 0.123
    write_json(copy / "results.json", rows)
    assert "1 numbers: --all" in command("diff", finished, copy).output
    assert "→ 0.123" in command("diff", finished, copy, "--all").output


def test_the_version_is_told(command) -> None:
    done = command("--version")
    assert done.exit_code == 0
    assert done.output.startswith("retort ")
