"""The page in a real browser: from a file, without a network, with and without its script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.audit.diff import RunComparison
from bench.base.rows import Results
from bench.evidence.finished_run import FinishedRun
from bench.evidence.folder import RunFolder
from leaderboard.site.diff_page import diff_page
from leaderboard.site.index_page import index_page
from leaderboard.site.run_page import run_page
from tests.leaderboard.site.conftest import Opened
from tests.leaderboard.site.examples import HOSTILE, environment, judged, sources
from tests.leaderboard.tables.test_verdicts import REFERENCE, verdict

PUBLISHED = Path(__file__).parents[3] / "leaderboard" / "published"
FULL = PUBLISHED / "full-digits" / "index.html"
LINF = "section.norm[data-norm='L∞']"

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("browser")]


def names(tab: Any, where: str = LINF) -> list[str]:
    """The defenses that are shown, from above."""
    bodies = tab.query_selector_all(f"{where} .verdicts > tbody")
    return [body.get_attribute("data-name") for body in bodies if body.is_visible()]


def values(tab: Any, column: int) -> list[float]:
    """What sorts the rows that are shown, from above."""
    rows = tab.query_selector_all(f"{LINF} .verdicts tr.b")
    shown = [row.query_selector_all("td")[column] for row in rows if row.is_visible()]
    return [float(cell.get_attribute("data-v")) for cell in shown]


def sort_by(tab: Any, key: str) -> None:
    tab.click(f"{LINF} .verdicts > thead th[data-key='{key}'] button")


def test_it_sorts_by_number_and_by_word(opened: Opened) -> None:
    tab = opened(FULL)
    before = names(tab)
    sort_by(tab, "naive")
    found = values(tab, 3)
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 5
    assert tab.get_attribute(f"{LINF} th[data-key='naive']", "aria-sort") == "descending"
    sort_by(tab, "naive")
    assert values(tab, 3) == sorted(found)
    sort_by(tab, "naive")
    assert names(tab) == before
    sort_by(tab, "defense")
    assert names(tab) == sorted(before, key=_natural)


def _natural(name: str) -> tuple[str, int]:
    word, _, value = name.partition("=")
    return word, int(value or 0)


def test_what_has_no_value_comes_last_either_way(opened: Opened) -> None:
    tab = opened(FULL)
    for _ in range(2):
        sort_by(tab, "delta")
        assert names(tab)[-1] == "undefended"


def test_it_filters_and_says_how_much_is_left(opened: Opened) -> None:
    tab = opened(FULL)
    tab.fill(".tools input[type=search]", "temperature=20")
    assert names(tab) == ["distillation temperature=20", "temperature_only temperature=20"]
    assert tab.inner_text(".tools [role=status]") == "4 rows"
    tab.fill(".tools input[type=search]", "")
    held = tab.locator(f"{LINF} tr.b[data-verdict=holds]:visible").count()
    tab.check(".tools label:has-text('holds') input")
    assert len(names(tab)) == held > 0
    tab.uncheck(".tools label:has-text('holds') input")
    tab.select_option(".tools select >> nth=0", "temperature_only")
    assert len(names(tab)) == 9
    tab.select_option(".tools select >> nth=1", "L0")
    assert names(tab) == []
    assert len(names(tab, "section.norm[data-norm='L0']")) == 9


def test_a_budget_changes_every_row_without_a_script_too(opened: Opened) -> None:
    for script in (True, False):
        tab = opened(FULL, java_script_enabled=script)
        body = f"{LINF} tbody[data-name=adversarial_training]"
        for place in (1, 0, 2):
            tab.click(f"{LINF} .budgets span >> nth={place}")
            (row,) = tab.locator(f"{body} tr.b:visible").all()
            assert f"b-{place}" in row.get_attribute("class")


def test_the_address_shows_what_its_sender_sees(opened: Opened) -> None:
    tab = opened(FULL)
    sort_by(tab, "worst")
    tab.fill(".tools input[type=search]", "training")
    tab.click(f"{LINF} .budgets span >> nth=2")
    tab.click(".tools summary")
    tab.uncheck(".tools label:has-text('rank') input")
    tab.click(".pin:visible >> nth=0")
    tab.click(f"{LINF} tr.more:visible summary >> nth=0")
    tab.wait_for_function("location.hash.includes('open=')")
    other = opened(FULL, tab.evaluate("location.hash"))
    for seen in (tab, other):
        assert names(seen) == ["adversarial_training"]
        assert seen.is_checked(f"{LINF} .pick-2")
        assert seen.get_attribute(f"{LINF} th[data-key='worst']", "aria-sort") == "descending"
        assert not seen.is_visible(f"{LINF} th[data-key='rank']")
        assert seen.locator(f"{LINF} .attacks:visible").count() == 1
        assert seen.is_visible("#compare")


def test_evidence_opens_by_keyboard(opened: Opened) -> None:
    tab = opened(FULL)
    body = f"{LINF} tbody[data-name=adversarial_training]"
    tab.focus(f"{body} summary")
    tab.keyboard.press("Enter")
    assert tab.is_visible(f"{body} .attacks")
    assert tab.locator(f"{body} .strip").count() > 5
    assert tab.locator(f"{body} .example img").count() >= 3
    sizes = tab.eval_on_selector_all(f"{body} .example img", "all => all.map(i => i.naturalWidth)")
    assert set(sizes) == {8}
    box = tab.locator(f"{body} .strip").first.bounding_box()
    tab.mouse.move(box["x"] + 1, box["y"] + 5)
    assert tab.inner_text(f"{body} .pointed").startswith("source ")


def test_it_compares_up_to_four(opened: Opened) -> None:
    tab = opened(FULL)
    for number in range(5):
        tab.locator(f"{LINF} .verdicts > tbody").nth(number).locator(".pin:visible").click()
    heads = tab.locator("#compare thead th")
    assert heads.count() == 1 + 4
    assert "undefended" not in heads.all_inner_texts()[1]
    assert "broken by" in tab.inner_text("#compare")
    tab.click("#compare button")
    assert not tab.is_visible("#compare")


def test_it_copies_csv_latex_and_bibtex(opened: Opened) -> None:
    tab = opened(FULL)
    tab.evaluate("""() => {
        window.told = [];
        navigator.clipboard.writeText = async (text) => { window.told.push(text); };
    }""")
    tab.check(".tools label:has-text('holds') input")
    tab.click(f"{LINF} .copy button >> nth=0")
    tab.click(f"{LINF} .copy button >> nth=1")
    tab.click("#references summary")
    tab.click("#references .copy button")
    csv, latex, bibtex = tab.evaluate("window.told")
    head, line = csv.splitlines()
    assert head.startswith("defense,verdict,worst case,")
    assert line.startswith("adversarial_training,holds")
    assert latex.splitlines()[1].startswith("\\begin{tabular}{lr")
    assert "  adversarial\\_training & holds" in latex
    assert "\\%" in latex
    assert "\\bottomrule" in latex
    assert "@inproceedings{madry2018," in bibtex


def test_where_the_clipboard_is_closed_the_text_is_shown(opened: Opened) -> None:
    tab = opened(FULL)
    tab.evaluate("() => { navigator.clipboard.writeText = async () => { throw new Error(); }; }")
    tab.click(f"{LINF} .copy button >> nth=0")
    assert tab.input_value("dialog textarea").startswith("defense,verdict")
    tab.click("dialog button")
    assert tab.locator("dialog").count() == 0


def test_without_a_script_everything_is_there(opened: Opened) -> None:
    tab = opened(FULL, java_script_enabled=False)
    assert tab.locator(".tools").count() == 0
    assert tab.locator(f"{LINF} .verdicts > tbody").count() == 24
    tab.click(f"{LINF} tbody[data-name=twin] summary")
    assert tab.is_visible(f"{LINF} tbody[data-name=twin] .attacks")
    assert tab.is_visible("#sweeps svg")


@pytest.mark.parametrize("width", [1440, 768, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_and_no_scheme_breaks_it(opened: Opened, width: int, scheme: str) -> None:
    tab = opened(FULL, viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.click(f"{LINF} tbody[data-name=twin] summary")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 26)"
    assert dark == (scheme == "dark")
    _has_no_serious_finding(tab)


def _has_no_serious_finding(tab: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab).response["violations"]
    serious = [f"{one['id']}: {one['nodes'][0]['html'][:200]}: "
               f"{one['nodes'][0].get('failureSummary')}"
               for one in found if one["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == []


def test_it_prints(opened: Opened) -> None:
    tab = opened(FULL, color_scheme="dark")
    tab.emulate_media(media="print")
    assert not tab.is_visible(".tools")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf(format="A4", landscape=True).startswith(b"%PDF")


def test_hostile_names_are_only_names(opened: Opened) -> None:
    page = run_page(judged(list(HOSTILE)), environment(description=HOSTILE[0], name=HOSTILE[1]))
    tab = opened(page, viewport={"width": 360, "height": 800})
    assert tab.locator(".verdicts > tbody").count() == len(HOSTILE) + 1
    assert tab.locator("script").count() == 1
    assert tab.locator("a[href^=javascript]").count() == 0
    assert tab.locator("img[onerror]").count() == 0
    assert "\u202e" not in tab.content()
    assert "49" not in names(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for box in tab.locator(".pin:visible").all()[:4]:
        box.click()
    assert tab.locator("#compare script").count() == 0


def test_a_hostile_address_is_only_a_state(opened: Opened) -> None:
    told = (
        "#q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&pin=nobody,main&sort.x=y&budget.main=9&open=x"
    )
    tab = opened(FULL, told)
    assert names(tab) == []
    assert tab.input_value(".tools input[type=search]").startswith("<img")


FAILED = {"status": "failed", "success_rate": None, "successes": None, "reason": "x", "round": 0}

INCOMPLETE = {
    "verdict": "inconclusive", "rule": 1, "why": "the panel is incomplete: pgd failed",
    "headline": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "results",
    [
        Results([], []),
        judged([]),
        Results(judged(["a"]).cells, []),
        Results([{**cell, **FAILED} for cell in judged(["a", "b"]).cells], []),
        Results([], [], [{**REFERENCE, "headline": False}, verdict("a", **INCOMPLETE)]),
    ],
    ids=["empty", "nothing judged", "no models", "all failed", "panel failed"],
)  # fmt: skip
def test_half_a_run_is_a_page_that_says_so(opened: Opened, results: Results) -> None:
    tab = opened(run_page(results, environment()))
    assert tab.inner_text("h1") == "m on mnist"
    _has_no_serious_finding(tab)


def test_two_hundred_defenses_and_a_thousand_classes(opened: Opened) -> None:
    many = judged([f"d{number}" for number in range(200)])
    wide = [{**row, "labels": [999, 998, 0, 1]} for row in many.sources]
    tab = opened(run_page(Results(many.cells, many.models, many.verdicts, sources=wide),
                          environment()))  # fmt: skip
    tab.fill(".tools input[type=search]", "d19")
    assert len(names(tab)) == 11


def test_rows_that_are_no_images_are_bars(opened: Opened) -> None:
    results = judged(["a"])
    flat = [sources(row, (6,)) for row in results.sources]
    tab = opened(run_page(Results(results.cells, results.models, results.verdicts, sources=flat),
                          environment()))  # fmt: skip
    tab.click("tbody[data-name=a] summary")
    assert tab.locator("tbody[data-name=a] .bars .up").count() == 1
    assert tab.locator("img").count() == 0


def test_the_index_and_the_comparison_are_pages_of_the_same_kind(opened: Opened) -> None:
    results = judged(["a", "b"])
    line = {"name": HOSTILE[0], "dataset": "d", "sources": 1, "seeds": 1, "shows": "s",
            "headline": "h", "pages": ["leaderboard.md"]}  # fmt: skip
    tab = opened(index_page([(line, results)]))
    tab.click("#t-verdicts th[data-key=defense] button")
    tab.fill(".tools input[type=search]", "b")
    assert tab.inner_text(".tools [role=status]").endswith("rows")
    _has_no_serious_finding(tab)
    before, after = (FinishedRun(RunFolder(Path(name)), None, results, {}) for name in HOSTILE[:2])  # type: ignore[arg-type]
    tab = opened(diff_page(before, after, RunComparison([], results.cells, [])))
    assert tab.locator("script").count() == 1
    _has_no_serious_finding(tab)
