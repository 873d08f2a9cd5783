"""``verify`` says yes to what a run left, and no to whatever is changed in it afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.audit.verify_rows import compare, near_tie
from bench.base.files import (
    file_hash,
    read_json,
    read_records,
    read_tensors,
    write_json,
    write_records,
    write_tensors,
)
from bench.base.fingerprint import digest
from bench.evidence.finished_run import read_run
from leaderboard.pages.leaderboard import pages


def cell(run: Path, defense: str = "undefended", attack: str = "fgsm") -> Path:
    rows = json.loads((run / "results.json").read_text())
    row = next(row for row in rows if (row["defense"], row["attack"]) == (defense, attack))
    return run / "cells" / f"{row['id']}.json"


def edit(path: Path, change: Callable[[dict], object]) -> None:
    document = read_json(path)
    change(document)
    write_json(path, document)


def seal(path: Path) -> None:
    """Write the checksums of a document's files and the hash of its key anew."""

    def change(document: dict) -> None:
        suffixes = {"records": ".parquet", "inputs": ".safetensors"}
        for name in document.get("files", {}):
            document["files"][name] = file_hash(path.with_suffix(suffixes[name]))
        if "weights" in document:
            document["weights"] = file_hash(path.with_suffix(".safetensors"))
        document["evidence"] = digest(document["key"])

    edit(path, change)


def seal_results(run: Path) -> None:
    """Write the checksums of the rows anew, and the page that they make."""

    def change(note: dict) -> None:
        note["files"] = {name: file_hash(run / name) for name in note["files"]}

    edit(run / "results-key.json", change)
    set_page(run)


def set_page(run: Path) -> None:
    made = pages(read_run(run).results, read_json(run / "environment.json"))
    for name, page in made.items():
        (run / name).write_text(page)


def flip(path: Path, place: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_records(path: Path, column: str, value: object, row: int = 0) -> None:
    records = read_records(path.with_suffix(".parquet"))
    records.loc[row, column] = value
    write_records(path.with_suffix(".parquet"), records)
    seal(path)


# Each takes a run's folder and damages it; what verify must say stands beside it.


def flipped_input(run: Path) -> None:
    flip(cell(run).with_suffix(".safetensors"))


def resealed_input(run: Path) -> None:
    path = cell(run)
    tensors = read_tensors(path.with_suffix(".safetensors"))
    tensors["x_adv"][0, 0, 0, 0] += 1e-3
    write_tensors(path.with_suffix(".safetensors"), tensors)
    seal(path)


def missing_input(run: Path) -> None:
    cell(run).with_suffix(".safetensors").unlink()


def fewer_inputs(run: Path) -> None:
    path = cell(run)
    tensors = read_tensors(path.with_suffix(".safetensors"))
    write_tensors(path.with_suffix(".safetensors"), {"x_adv": tensors["x_adv"][:-1]})
    seal(path)


def flipped_success(run: Path) -> None:
    path = cell(run)
    first = bool(read_records(path.with_suffix(".parquet"))["success"][0])
    change_records(path, "success", not first)


def dropped_record(run: Path) -> None:
    path = cell(run)
    records = read_records(path.with_suffix(".parquet"))
    write_records(path.with_suffix(".parquet"), records.iloc[:-1])
    seal(path)


def dropped_column(run: Path) -> None:
    path = cell(run)
    records = read_records(path.with_suffix(".parquet"))
    write_records(path.with_suffix(".parquet"), records.drop(columns="clean_confidence"))
    seal(path)


def torn_records(run: Path) -> None:
    path = cell(run).with_suffix(".parquet")
    path.write_bytes(path.read_bytes()[:64])


def changed_probe(run: Path) -> None:
    fit = model(run, "undefended").stem
    documents = (run / "probes").glob("*.json")
    path = next(p for p in documents if read_json(p)["key"]["model"]["fit"] == fit)
    change_records(path, "max_logit", 99.0)


def changed_suspicion(run: Path) -> None:
    """What the harness suspects of a model is made something else."""
    for path in (run / "probes").glob("*.json"):
        edit(path, lambda document: document["suspicion"].update(no_answer=0.5))


def changed_number(run: Path) -> None:
    edit(run / "results.json", lambda rows: rows[1].update(accuracy=1.0))


def resealed_number(run: Path) -> None:
    changed_number(run)
    seal_results(run)


def dropped_flag(run: Path) -> None:
    edit(run / "results.json", lambda rows: rows[0].update(flags=[]))
    seal_results(run)


def dropped_row(run: Path) -> None:
    edit(run / "results.json", lambda rows: rows.pop())
    seal_results(run)


def changed_page(run: Path) -> None:
    page = run / "leaderboard.md"
    page.write_text(page.read_text().replace("undefended", "unbeatable", 1))


def changed_html(run: Path) -> None:
    page = run / "index.html"
    text = page.read_text()
    place = text.index('data-v="0.') + len('data-v="0.')
    page.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def no_html(run: Path) -> None:
    (run / "index.html").unlink()


def changed_map(run: Path) -> None:
    def change(rows: list) -> None:
        reach = rows[0]["reach"][0]
        reach["breaks"] = reach["breaks"].translate(str.maketrans("0.", ".0"))

    edit(run / "sources.json", change)
    seal_results(run)


def changed_picture(run: Path) -> None:
    def change(rows: list) -> None:
        example = next(row["examples"][0] for row in rows if row["examples"])
        example["adversarial"] = "AAAA" + example["adversarial"][4:]

    edit(run / "sources.json", change)
    seal_results(run)


def swapped_weights(run: Path) -> None:
    first = model(run, "undefended").with_suffix(".safetensors")
    tensors = read_tensors(first)
    write_tensors(first, {name: -value for name, value in tensors.items()})


def resealed_weights(run: Path) -> None:
    swapped_weights(run)
    seal(model(run, "undefended"))


def missing_model(run: Path) -> None:
    model(run, "undefended").unlink()


def model(run: Path, defense: str) -> Path:
    documents = sorted((run / "models").glob("*.json"))
    return next(
        p for p in documents if read_json(p)["key"]["document"]["defense"]["name"] == defense
    )


def changed_key(run: Path) -> None:
    edit(cell(run), lambda document: document["key"]["samples"].update(count=100))


def resealed_key(run: Path) -> None:
    changed_key(run)
    seal(cell(run))


def resealed_code(run: Path) -> None:
    edit(cell(run), lambda document: document["key"].update(harness_source="0" * 64))
    seal(cell(run))


def changed_fit_key(run: Path) -> None:
    edit(model(run, "undefended"), lambda document: document["key"].update(data="0" * 64))
    seal(model(run, "undefended"))


def changed_plan(run: Path) -> None:
    def change(plan: dict) -> None:
        node = next(node for node in plan["nodes"] if node["kind"] == "cell")
        node["document"]["sources"] = 100

    edit(run / "plan.json", change)


def dropped_cell(run: Path) -> None:
    name = cell(run).stem
    edit(
        run / "plan.json",
        lambda plan: plan.update(nodes=[node for node in plan["nodes"] if node["id"] != name]),
    )
    rows = [row for row in read_json(run / "results.json") if row["id"] != name]
    write_json(run / "results.json", rows)
    seal_results(run)


def other_matrix(run: Path) -> None:
    edit(run / "environment.json", lambda document: document["matrix"].update(sources=100))


def skipped_cell(run: Path) -> None:
    outcome = {"status": "skipped", "reason": "it would have looked bad"}

    def change(document: dict) -> None:
        document.update(outcome=outcome, document=document["key"]["document"])

    edit(cell(run), change)


def torn_document(run: Path) -> None:
    cell(run).write_text('{"id": ')


def torn_note(run: Path) -> None:
    (run / "results-key.json").write_text("{")


DAMAGE = [
    (flipped_input, "SHA-256 of"),
    (resealed_input, "l2 in 1 of 12 rows, first row 0"),
    (missing_input, "unreadable: No such file"),
    (fewer_inputs, "12 records and 11 inputs"),
    (flipped_success, "success in 1 of 12 rows, first row 0"),
    (lambda run: change_records(cell(run), "l2", 0.5), "l2 in 1 of 12 rows"),
    (lambda run: change_records(cell(run), "label", 3, 1), "label in"),
    (lambda run: change_records(cell(run), "sample_id", 7), "sample_id in 1"),
    (lambda run: change_records(cell(run), "clean_confidence", 0.5), "clean_confidence in 1"),
    (lambda run: change_records(cell(run), "input_hash", "0"), "input_hash in 1"),
    (lambda run: change_records(cell(run, attack="jsma"), "stop_reason", "bored"), "stop_reasons"),
    (dropped_record, "11 records and 12 inputs"),
    (dropped_column, "columns clean_confidence"),
    (torn_records, "cannot be read"),
    (changed_probe, "max_logit in 1 of 1647 rows"),
    (changed_suspicion, "suspicion: no_answer"),
    (changed_number, "results.json accuracy"),
    (resealed_number, "results.json accuracy"),
    (dropped_flag, "results.json flags"),
    (dropped_row, "results.json: ids"),
    (changed_page, "leaderboard.md: line"),
    (changed_html, "index.html: line"),
    (no_html, "index.html: page"),
    (changed_map, "sources.json reach"),
    (changed_picture, "sources.json examples"),
    (swapped_weights, "SHA-256 of"),
    (resealed_weights, "key: model.weights"),
    (missing_model, "not made again: no model"),
    (changed_key, "hash of the key document"),
    (resealed_key, "key: samples.count"),
    (resealed_code, "two versions in one run"),
    (changed_fit_key, "key: data"),
    (changed_plan, "plan id"),
    (dropped_cell, "plan.json: nodes"),
    (other_matrix, "environment.json: matrix"),
    (skipped_cell, "skipped: it would have looked bad"),
    (torn_document, "unreadable"),
    (torn_note, "results-key.json: document"),
]


def test_an_untouched_run_is_verified(finished, small, command) -> None:
    done = command("verify", finished, "--plugin", small / "noisy.py", "--offline")
    assert done.exit_code == 0, done.output
    assert "consistent with itself" in done.output
    # Of every model but the stochastic one, asked again; of what was seen, rows beside the 72.
    records = sum(len(read_records(path)) for path in (finished / "cells").glob("*.parquet"))
    assert records >= 72
    counts = f"1 rechecks, 2 models, 2 probes, 6 cells, {records} records, 12 rows (exact"
    assert counts in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_every_change_is_noticed(damage, message, copy, small, command) -> None:
    damage(copy)
    done = command("verify", copy, "--plugin", small / "noisy.py")
    assert done.exit_code == 1, done.output
    assert message in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("forge", [resealed_number, dropped_flag, dropped_row, dropped_cell])
def test_a_sealed_forgery_is_noticed_by_its_rows_alone(forge, copy, small, command) -> None:
    forge(copy)
    told = command("verify", copy, "--plugin", small / "noisy.py").output
    assert "results.json" in told or "plan.json" in told
    assert "SHA-256" not in told
    assert "leaderboard.md" not in told


def test_other_code_is_a_note(copy, small, command) -> None:
    for path in [*(copy / "cells").glob("*.json")]:
        edit(path, lambda document: document["key"].update(harness_source="0" * 64))
        seal(path)
    done = command("verify", copy, "--plugin", small / "noisy.py")
    assert done.exit_code == 0, done.output
    assert "made by other code than this: harness" in done.output


def elsewhere(run: Path) -> None:
    """Say that another processor made the run, and set its page anew."""
    edit(run / "environment.json", lambda document: document.update(device="Abacus 3000"))
    set_page(run)


def test_another_machine_is_given_its_tolerance(copy, small, command) -> None:
    elsewhere(copy)
    done = command("verify", copy, "--plugin", small / "noisy.py")
    assert done.exit_code == 0, done.output
    assert "confidences within 0.001, 0 predictions changed" in done.output
    flipped_success(copy)
    done = command("verify", copy, "--plugin", small / "noisy.py")
    assert done.exit_code == 1
    assert "success in 1 of 12" in done.output


def test_a_stored_attempt_that_no_source_explains_is_noticed_elsewhere(
    copy, small, command
) -> None:
    elsewhere(copy)
    change_records(cell(copy), "sample_id", 10_000)
    done = command("verify", copy, "--plugin", small / "noisy.py")
    assert done.exit_code == 1
    assert "fit no source" in done.output


def test_a_stochastic_model_is_judged_by_its_interval(copy, small, command) -> None:
    path = cell(copy, "noisy")
    records = read_records(path.with_suffix(".parquet"))
    attacked = records["status"] == "attacked"
    records["success"] = records["misclassified"] = attacked & ~records["success"].mode()[0]
    write_records(path.with_suffix(".parquet"), records)
    seal(path)
    done = command("verify", copy, "--plugin", small / "noisy.py")
    assert done.exit_code == 1
    assert "success_rate of a stochastic model" in done.output


MOODY = '''
"""A defense that draws once for all rows it is asked about together."""
from dataclasses import dataclass

import torch

import bench


class Moody(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) * (1.0 if self.training or torch.rand(()) < 0.7 else -1.0)


@bench.defense("moody")
@dataclass(frozen=True)
class OneDraw(bench.Defense):
    """Declared stochastic, and so it is, a batch at a time."""

    stochastic = True

    def build(self, context):
        return Moody(context.network())

    def fit(self, model, train, context):
        context.train(model, train.x, train.y)
'''


def test_a_model_that_draws_once_a_batch_is_no_forgery(tmp_path, small, command) -> None:
    matrix, plugin = tmp_path / "moody.toml", tmp_path / "moody.py"
    matrix.write_text(
        'name = "moody"\nrecipe = "smoke"\nsources = 30\n[[defense]]\nname = "moody"\n'
        '[[attack]]\nname = "fgsm"\neps = 0.2\n'
    )
    plugin.write_text(MOODY)
    where = ("--plugin", plugin, "--cache-dir", small / "cache", "--offline")
    run = tmp_path / "run"
    assert command("run", "--matrix", matrix, "--out", run, *where).exit_code == 0
    done = command("verify", run, *where)
    assert done.exit_code == 0, done.output


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"sample_id": [1, 2], **columns})


def test_on_other_hardware_near_ties_may_change_and_are_counted() -> None:
    stored = table(success=[True, False], adversarial_confidence=[0.5, 0.9], l2=[1.0, 2.0])
    made = table(success=[False, False], adversarial_confidence=[0.5005, 0.9], l2=[1.0, 2.0])
    found = compare("cell", stored, made, "tolerant", np.array([True, False]))
    assert (found.differences, found.changed) == ([], 1)
    firm = compare("cell", stored, made, "tolerant", np.array([False, False]))
    assert "success in 1 of 2 rows" in firm.differences[0].what
    exact = compare("cell", stored, made, "exact")
    assert len(exact.differences) == 2
    far = compare("cell", stored, made.assign(l2=[1.001, 2.0]), "tolerant", np.array([True, True]))
    assert "l2 in 1" in far.differences[0].what


def test_a_near_tie_is_relative_to_large_logits() -> None:
    logits = torch.tensor([[1.0, 1.00005, 0.0], [1.0, 1.1, 0.0], [900.0, 900.05, 0.0]])
    assert near_tie(logits).tolist() == [True, False, True]
    assert near_tie(torch.tensor([[5.0, 1.0, 1.0]]), ranks=3).tolist() == [True]


FAILING = """
from dataclasses import dataclass

import bench


@bench.defense("unlucky")
@dataclass(frozen=True)
class Unlucky(bench.Defense):
    def fit(self, model, train, context):
        raise RuntimeError("no luck")


@bench.defense("opaque")
@dataclass(frozen=True)
class Opaque(bench.Defense):
    differentiable = False


@bench.attack("crashing")
@dataclass(frozen=True)
class Crashing(bench.Attack):
    @property
    def access(self):
        return "scores"

    def threat(self, shape):
        return bench.ThreatModel("linf", 0.1)

    def perturb(self, model, x, y, target, context):
        raise RuntimeError("crashed")
"""


def test_failures_and_skips_are_verified_as_such(tmp_path: Path, small, command) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "m.toml").write_text(
        'name = "m"\nrecipe = "smoke"\nsources = 5\n'
        + "".join(f'[[defense]]\nname = "{n}"\n' for n in ("undefended", "unlucky", "opaque"))
        + "".join(f'[[attack]]\nname = "{n}"\n' for n in ("fgsm", "crashing"))
    )
    plugin = ("--plugin", tmp_path / "failing.py")
    where = ("--cache-dir", small / "cache", "--out", tmp_path / "run", "--device", "cpu")
    assert command("run", "--matrix", tmp_path / "m.toml", *plugin, *where).exit_code == 1
    done = command("verify", tmp_path / "run", *plugin)
    assert done.exit_code == 0, done.output
    assert "3 failed" in done.output  # the opaque one learns nothing: no source to crash on
    assert "1 skipped" in done.output
    assert "2 cells" in done.output
    skipped = cell(tmp_path / "run", "opaque")
    shown = command("explain", tmp_path / "run", skipped.stem)
    assert "skipped: the attack needs gradients" in shown.output


def no_folder(run: Path) -> None:
    shutil.rmtree(run)


def newer_schema(run: Path) -> None:
    edit(run / "plan.json", lambda plan: plan.update(schema=99))


def other_json(run: Path) -> None:
    write_json(run / "plan.json", {"nodes": [{"who": "knows"}], "matrix": {}})


def nobodys_attack(run: Path) -> None:
    def change(plan: dict) -> None:
        plan["nodes"] = [
            {**node, "document": {**node["document"], "attack": {"name": "nobody", "params": {}}}}
            if node["kind"] == "cell"
            else node
            for node in plan["nodes"]
        ]

    edit(run / "plan.json", change)


NO_RUN = [
    (no_folder, "is no finished run"),
    (lambda run: (run / "results.json").unlink(), "results.json cannot be read"),
    (lambda run: (run / "plan.json").write_text("{"), "plan.json cannot be read"),
    (lambda run: (run / "plan.json").write_bytes(b"\xff\xfe"), "plan.json cannot be read"),
    (lambda run: (run / "environment.json").write_text("[]"), "holds no JSON dict"),
    (lambda run: (run / "results.json").write_text("[1]"), "results.json holds a row without id"),
    (newer_schema, "schema version 99 and this Retort knows"),
    (other_json, "plan.json"),
    (nobodys_attack, "unknown attack 'nobody'"),
]


@pytest.mark.parametrize(("damage", "message"), NO_RUN)
def test_what_is_no_finished_run_is_said_to_be_none(damage, message, copy, small, command) -> None:
    damage(copy)
    done = command("verify", copy, "--plugin", small / "noisy.py")
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output


FINDINGS = """
name = "told"
recipe = "smoke"
sources = 6
probe_samples = 6
report = "findings"
[[defense]]
name = "undefended"
[[defense]]
name = "twin"
[[defense]]
name = "adversarial_training"
steps = 1
[[attack]]
name = "fgsm"
eps = [0.1, 0.2]
"""


def test_findings_are_made_kept_published_verified_and_removed(
    tmp_path: Path, small, command
) -> None:
    matrix, run = tmp_path / "told.toml", tmp_path / "run"
    matrix.write_text(FINDINGS)
    again = ("run", "--matrix", matrix, "--cache-dir", small / "cache", "--out", run, "--offline")
    done = command(*again)
    assert done.exit_code == 0, done.output
    further = [run / "logits.json", run / "pairs.json"]
    # A clean row and two attacked ones a model; each of two against the undefended network.
    assert [len(read_json(path)) for path in further] == [9, 2]
    page = (run / "findings.md").read_text()
    assert "## What adversarial training and distillation do to the logits" in page
    for path in ("cost.md", "figures/logits-distributions.png", "figures/confidence-panel.png"):
        assert (run / path).is_file(), path
    assert "](figures/confidence-panel.png)" in page

    before = {path: path.stat().st_mtime_ns for path in further}
    assert command(*again).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in further} == before
    assert (run / "findings.md").read_text() == page

    assert command("publish", run, "--to", tmp_path / "public").exit_code == 0
    for name in ("logits.json", "pairs.json", "findings.md", "figures/confidence-joint.pdf"):
        assert (tmp_path / "public" / "run" / name).read_bytes() == (run / name).read_bytes(), name

    assert command("verify", run).exit_code == 0
    shown = read_json(further[1])[0]["survival"][0]["delta"]
    edit(further[1], lambda rows: rows[0]["survival"][0].update(delta=shown + 0.5))
    done = command("verify", run)
    assert done.exit_code == 1
    assert "pairs.json survival.0.delta" in done.output
    further[1].unlink()
    assert "pairs.json: ids" in command("verify", run).output

    matrix.write_text(matrix.read_text().replace('report = "findings"\n', ""))
    assert command(*again).exit_code == 0
    assert not any(path.exists() for path in further)
    assert command("verify", run).exit_code == 0
    assert command("publish", run, "--to", tmp_path / "public").exit_code == 0
    assert not (tmp_path / "public" / "run" / "pairs.json").exists()
