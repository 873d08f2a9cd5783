"""What the page is made of: pictures, maps, citations, sentences, its own hashes."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import re

import numpy as np
import pytest
from matplotlib.image import imread

from attacks import INDEX as ATTACKS
from bench.base.rows import Results
from defenses import INDEX as DEFENSES
from leaderboard.figures.svg import axes, strip
from leaderboard.site.citations import cited, references
from leaderboard.site.pictures import pictures, png
from leaderboard.site.run_page import run_page
from leaderboard.site.verdicts import norm_tables, sentence
from leaderboard.tables.verdicts import verdict_tables
from tests.leaderboard.site.examples import environment, judged, sources
from tests.leaderboard.tables.test_verdicts import REFERENCE, seed, verdict

NOT_A_SOURCE = {"1412.6980"}
"""Cited for a tool that the attack uses, as Adam."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(2, 3), (180, 180)])
def test_a_picture_is_a_png_that_others_read(channels: int, size: tuple[int, int]) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (*size, channels)).astype(np.uint8)
    read = np.rint(255 * imread(io.BytesIO(png(pixels)), format="png")).astype(np.uint8)
    assert (read.reshape(*size, -1)[..., :channels] == pixels).all()


def test_an_input_too_large_or_of_another_shape_has_no_picture() -> None:
    row = sources(REFERENCE)
    (large,) = pictures({**row, "examples": [{**row["examples"][0], "clean": None}]})
    assert (large.images, large.missing) == ((), "too large to be kept with the run's rows")
    (torn,) = pictures({**row, "shape": [3, 9, 9]})
    assert torn.images == ()
    assert "fit" in torn.missing


def test_a_map_has_a_run_for_each_stretch() -> None:
    drawn = str(strip([0, 0, None, 1, 0]))
    assert '<path class="s0" d="m0 0h2m2 0h1"/>' in drawn
    assert '<path class="s1" d="m3 0h1"/>' in drawn
    assert 'viewBox="0 -.5 5 1"' in drawn


def test_axes_of_nothing_are_nothing() -> None:
    assert axes("t", "a", [], "x") == ""


def test_attacks_are_counted_as_the_verdict_counts_them() -> None:
    (table,) = norm_tables(judged(["a"]))
    first, second = table.subjects[1].evidence.attacks
    assert (first.name, first.breaks, first.alone) == ("pgd", ["2", "2"], ["1", "1"])
    assert (second.name, second.breaks, second.alone) == ("square", ["1", "2"], ["0", "1"])
    assert table.subjects[1].evidence.order.startswith("7:1 3:0 9:1")
    assert table.subjects[1].evidence.standing == "11"


def test_without_the_sources_breaks_are_those_of_the_verdict() -> None:
    results = Results([], [], [REFERENCE, verdict("a")])
    (table,) = norm_tables(results)
    line = table.subjects[1].evidence.attacks[0]
    assert (line.name, line.breaks, line.alone, line.maps) == ("pgd log_odds", ["38"], ["2"], ())


def test_the_sentence_follows_the_rows() -> None:
    (table,) = verdict_tables([REFERENCE, verdict("a"), verdict("b", verdict="broken")])
    assert sentence(table) == "1 of 2 defenses holds: a (60.0 % [50.0, 70.0] left); 1 × broken."
    hidden = verdict("b", verdict="broken", seeds=[seed(naive=0.9, worst_case=0.1, drop=0.8)])
    (table,) = verdict_tables([REFERENCE, hidden])
    assert sentence(table) == (
        "none of 1 defenses holds; 1 × broken. On b the naive attack leaves 90.0 %, all attacks "
        "together 10.0 %."
    )
    (table,) = verdict_tables([REFERENCE])
    assert sentence(table) == "No defense was judged."


def test_the_same_rows_give_the_same_page_and_its_policy_fits() -> None:
    page = run_page(judged(["a"]), environment())
    assert page == run_page(judged(["a"]), environment())
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in page
    assert " style=" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)


@pytest.mark.parametrize("index", [ATTACKS, DEFENSES], ids=["attacks", "defenses"])
def test_what_a_docstring_cites_as_its_source_is_in_the_references(index: dict[str, str]) -> None:
    known = {one.fields["eprint"]: one for one in references() if "eprint" in one.fields}
    for name, place in index.items():
        module = importlib.import_module(place.partition(":")[0])
        for eprint in re.findall(r"arXiv\s+(\d{4}\.\d{5}|\d{4}\.\d{4})", module.__doc__ or ""):
            if eprint not in NOT_A_SOURCE:
                assert eprint in known, (name, eprint)
    for reference in references():
        assert set(reference.of) <= {*ATTACKS, *DEFENSES}


def test_a_run_cites_what_it_used_and_nothing_else() -> None:
    assert [reference.key for reference in cited(["trades", "mine"])] == ["zhang2019"]
    assert cited(["mine"]) == []
    (paper,) = cited(["sigma_zero"])
    assert paper.words.startswith("Cinà et al. (2025), σ-zero:")
    assert paper.bibtex.startswith("@inproceedings{cina2025,\n  author")
