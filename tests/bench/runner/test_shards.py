"""Cells that are split into blocks: the same bytes however the blocks are handed out."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from bench.base.files import read_json, read_records, read_tensors
from bench.compose import run_matrix
from bench.measure.cell import BLOCK, blocks
from bench.plan.options import RunOptions
from bench.plugins import discovery, registry
from tests.bench.conftest import in_process

SPLIT = [
    {"name": "jsma", "gamma": 0.05, "targets": "random"},
    {"name": "fgsm", "eps": 0.2},
    {"name": "pgd", "eps": 0.2, "steps": 3, "restarts": 2},
    {"name": "apgd", "eps": 0.2, "steps": 5},
    {"name": "fmn", "eps": 0.5, "norm": "l2", "steps": 5},
    {"name": "noise", "eps": 0.2, "draws": 5},
    {"name": "sigma_zero", "max_features": 6, "steps": 5},
    {"name": "sparse_rs", "gamma": 0.1, "queries": 20},
    {"name": "square", "eps": 0.2, "queries": 20},
    {"name": "rays", "eps": 0.2, "queries": 20},
    {"name": "fooling", "steps": 5, "targets": "random"},
    {"name": "carlini_wagner", "steps": 4, "searches": 2},
    {"name": "transfer", "source": {"name": "undefended"}, "attack": {"name": "pgd", "eps": 0.2}},
]
WHOLE = [
    {"name": "surrogate", "draws": 2, "attack": {"name": "pgd", "eps": 0.2, "steps": 2}},
    {"name": "quantised", "attack": {"name": "pgd", "eps": 0.2, "steps": 2}},
    {"name": "advgan", "eps": 0.2, "steps": 2},
    {"name": "universal", "eps": 0.2, "steps": 2},
    {"name": "patch", "side": 2, "steps": 2},
]
SOURCES = 20


def carry_out(folder: Path, name: str, attacks: list[Any], shards: int | None) -> Path:
    matrix = {
        "name": "split", "recipe": "smoke", "sources": SOURCES,
        "defense": [{"name": "undefended"}], "attack": attacks,
    }  # fmt: skip
    options = RunOptions(
        out=folder / name, cache_dir=folder / "cache", device="cpu", offline=True, shards=shards
    )
    result = run_matrix(matrix, options)
    assert {row["status"] for row in result.rows} == {"done"}, [r["reason"] for r in result.rows]
    return folder / name


def sums(run: Path) -> dict[str, str]:
    paths = [*run.rglob("cells/*"), run / "results.json"]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.cell.BLOCK", 3)


@pytest.mark.usefixtures("small_blocks")
def test_one_two_and_seven_shards_leave_the_same_bytes(tmp_path: Path) -> None:
    with in_process():
        found = {n: sums(carry_out(tmp_path, f"{n}", SPLIT, n)) for n in (1, 2, 7, None)}
    assert found[1] == found[2] == found[7] == found[None]
    assert len(found[1]) == 3 * len(SPLIT) + 1  # and no block is left behind


def test_a_split_cell_says_what_the_whole_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process():
        whole = carry_out(tmp_path, "whole", SPLIT, None)
        monkeypatch.setattr("bench.measure.cell.BLOCK", 3)
        split = carry_out(tmp_path, "split", SPLIT, None)
    assert len(list(whole.glob("cells/*.json"))) == len(SPLIT)
    for path in whole.glob("cells/*.json"):
        there = split / "cells" / path.name
        name = read_json(path)["key"]["document"]["attack"]["name"]
        first, second = (
            read_records(item.with_suffix(".parquet")).query("status != 'seen'")
            for item in (path, there)
        )
        assert first[["sample_id", "target", "label"]].equals(
            second[["sample_id", "target", "label"]]
        ), name
        assert (first["success"] != second["success"]).mean() < 0.05, name
        near = (first["linf"] - second["linf"]).abs() < 1e-3
        assert near.mean() > 0.9, name
        rows = len(read_records(there.with_suffix(".parquet")))
        assert len(read_tensors(there.with_suffix(".safetensors"))["x_adv"]) == rows


@pytest.mark.usefixtures("small_blocks")
def test_an_attack_that_looks_at_all_rows_is_not_split(tmp_path: Path) -> None:
    with in_process():
        one, several = (sums(carry_out(tmp_path, f"{n}", WHOLE, n)) for n in (1, 7))
    assert one == several


@pytest.mark.usefixtures("small_blocks")
def test_what_is_left_of_a_split_cell_is_used(tmp_path: Path) -> None:
    with in_process():
        run = carry_out(tmp_path, "run", SPLIT[2:3], None)
        before = sums(run)
        (path,) = run.glob("cells/*.json")
        again = carry_out(tmp_path, "run", SPLIT[2:3], None)
        assert path.exists()
    assert sums(again) == before


def test_the_number_of_blocks_follows_the_sources_and_the_attack() -> None:
    discovery.load_plugins()
    pgd, surrogate = (registry.ATTACKS.get(name)() for name in ("pgd", "surrogate"))
    assert [blocks(n, pgd) for n in (0, 1, BLOCK, BLOCK + 1, 20 * BLOCK)] == [1, 1, 1, 2, 20]
    assert blocks(20 * BLOCK, surrogate) == 1


def test_every_attack_of_ours_is_split_or_says_that_it_is_not() -> None:
    discovery.load_plugins()
    tried = {spec["name"] for spec in (*SPLIT, *WHOLE)}
    every = {name: registry.ATTACKS.get(name).__module__ for name in registry.ATTACKS.names()}
    ours = {
        name
        for name, module in every.items()
        if module.startswith("attacks.") and not module.startswith("attacks.peers.")
    }
    assert ours - tried == {"submission", "jsma_reference"}, ours - tried
