"""What the terminal shows: one screen, plain where it must be."""

from pathlib import Path

import pandas as pd
import pytest
import typer

from bench.base.rows import Results
from bench.base.types import UserError
from leaderboard.tables.summary import MANY
from leaderboard.terminal.inspection import named_cell, show_verdict_changes
from leaderboard.terminal.results import show_results, show_table
from leaderboard.terminal.say import NARROWEST, WIDTH, grid, say
from tests.leaderboard.tables.test_cells import ENVIRONMENT, row
from tests.leaderboard.tables.test_verdicts import REFERENCE, seed, verdict


@pytest.fixture
def run() -> Results:
    flag = {"id": "naive-beaten", "severity": "warning", "advice": "do not trust it " * 9}
    long = "a_defense_with_a_very_long_name_of_many_letters"
    rows = [REFERENCE]
    rows += [
        verdict(long, defense_params={"temperature": float(t)}, seeds=[seed(flags=[flag])],
                verdict="inconclusive", why="too few sources " * 9)
        for t in range(MANY + 10)
    ]  # fmt: skip
    cells = [row(long, 0.5), row(long, None, attack="pgd", status="failed", reason="x" * 200)]
    return Results(cells, [], rows)


def test_the_end_of_a_run_is_one_screen(
    run: Results,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("findings.md", "figures/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    show_results(run, ENVIRONMENT, tmp_path)
    shown = capsys.readouterr().out.replace(str(tmp_path), "RUN")
    words = " ".join(shown.split())
    assert max(len(line) for line in shown.splitlines()) <= WIDTH
    assert len(shown.splitlines()) <= 40
    assert "T=0..19" in shown
    assert "1 of 2 cells failed" in shown
    assert "WARNING naive-beaten" in shown
    for name in ("leaderboard.md", "findings.md", "1 figures", "--table verdicts"):
        assert name in words


def test_without_a_panel_there_is_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [row(f"d{number}", 0.5) for number in range(40)]
    show_results(Results(cells, []), ENVIRONMENT, tmp_path)
    shown = capsys.readouterr().out
    assert "d23 " in shown
    assert "d24 " not in shown
    assert "and 16 more lines" in shown
    assert "holds" not in shown


@pytest.mark.parametrize("name", ["verdicts", "budgets", "attacks", "models", "flags"])
def test_every_table_is_shown_whole(
    run: Results, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_table(run, name)
    assert "very_long_name" in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_a_table_that_is_none_is_named(run: Results) -> None:
    with pytest.raises(UserError, match="did you mean 'verdicts'"):
        show_table(run, "verdict")


def test_no_colour_is_no_escape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    # Even without a style it ends in an escape.
    monkeypatch.setattr(typer, "secho", lambda *_, **__: pytest.fail("styled"))
    say("warned", fg="yellow", bold=True)
    assert capsys.readouterr().out == "warned\n"


def test_a_wide_table_is_wrapped_and_an_empty_one_is_its_header() -> None:
    frame = pd.DataFrame([{"a": "word " * 40, "b": "x" * 60, "c": "1"}])
    text = grid(frame, 60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert text.replace("\n", " ").count("word") == 40
    assert max(map(len, grid(frame).splitlines())) > 200
    assert "a" in grid(frame.head(0), 60)
    narrow = grid(pd.DataFrame([{"a": "x" * 20, "b": "y" * 20}]), 4)
    assert max(len(line) for line in narrow.splitlines()) == 2 * NARROWEST + 2


def test_a_cell_is_found_by_the_names_in_the_tables() -> None:
    def at(temperature: float, **changes: object) -> dict[str, object]:
        return row("d", 0.5, defense_params={"temperature": temperature}, **changes)

    rows = [at(5.0, id="x"), at(20.0, id="y"), at(20.0, id="z", attack="pgd")]
    rows.append(row("u", 0.5, id="w"))
    assert named_cell(rows, "d temperature=20", "pgd") == "z"
    assert named_cell(rows, "u", "jsma") == "w"
    with pytest.raises(UserError, match=r"2 cells are 'd' under 'jsma':\n  x  d temperature=5"):
        named_cell(rows, "d", "jsma")
    with pytest.raises(UserError, match="did you mean 'u'"):
        named_cell(rows, "uu", "jsma")


def test_a_verdict_that_changed_is_told_with_both_reasons(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = [verdict("a"), verdict("b")]
    second = [verdict("a", verdict="broken", why="Δ = 0"), verdict("b")]
    show_verdict_changes(first, second)
    shown = capsys.readouterr().out
    assert "verdict: holds → broken" in shown
    assert "Δ = 58 [50, 66] points → Δ = 0" in shown
    assert "b, L∞" not in shown
