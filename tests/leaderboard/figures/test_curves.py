"""Security curves from verdict rows: what is drawn, what is not, and the same bytes every time."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from leaderboard.figures.curves import TOGETHER, curves, write_curves
from leaderboard.figures.style import STYLES

AT = [0.0, 0.1, 0.2]


def row(defense: str, *lines: list[float] | None, norm: str = "linf", **changes: Any) -> Any:
    seeds = {str(seed): line for seed, line in enumerate(lines)}
    shown = [{"seed": n, "sources": 10, "naive": None} for n in range(len(lines))]
    plain = {key: [0.9, 0.2, 0.0] for key in seeds}
    base = {
        "dataset": "digits", "defense": defense, "defense_params": {}, "threat": {"norm": norm},
        "verdict": "broken", "headline": True, "at": AT[-1], "seeds": shown,
        "curve": {"at": AT, "worst_case": seeds, "undefended": plain},
    }  # fmt: skip
    return {**base, **changes}


def reference() -> Any:
    return row("undefended", [0.9, 0.2, 0.0], verdict="reference")


def drawn(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}  # type: ignore[arg-type]


def test_a_figure_a_norm_with_each_defense_beside_the_undefended_network() -> None:
    smaller = row("a", None, at=0.1, curve=None)
    rows = [reference(), smaller, row("a", [0.9, 0.7, 0.5]), row("b", [0.8, 0.4, 0.1], norm="l0")]
    made = curves(rows)
    assert sorted(made) == ["curve-digits-l0", "curve-digits-linf"]
    lines = drawn(made["curve-digits-linf"].axes[0])
    assert lines["undefended"] == pytest.approx([90, 20, 0])
    assert lines["a"] == pytest.approx([90, 70, 50])
    assert made["curve-digits-linf"].get_size_inches()[0] == pytest.approx(3.4)


def test_every_seed_is_a_line_and_a_series_is_named_once() -> None:
    (figure,) = curves([row("a", [0.9, 0.7, 0.5], [0.9, 0.6, 0.4])]).values()
    assert len(figure.axes[0].lines) == 4
    _, names = figure.axes[0].get_legend_handles_labels()
    assert names == ["undefended", "a"]


def test_nothing_is_drawn_between_the_budgets_that_were_attacked() -> None:
    # PGD spends its whole budget: just below one of the panel no attack was made.
    line = [0.9, 0.9, 0.1]
    (linf,) = curves([row("a", line)]).values()
    assert drawn(linf.axes[0])["a"] == pytest.approx([90, 10])
    both = [row("a", line, at=0.1, curve=None), row("a", line)]
    (linf,) = curves(both).values()
    assert drawn(linf.axes[0])["a"] == pytest.approx([90, 90, 10])
    (l0,) = curves([row("a", line, norm="l0")]).values()
    assert drawn(l0.axes[0])["a"] == pytest.approx([90, 10])


def test_an_incomplete_panel_has_no_line_and_says_so() -> None:
    few = curves([row("crash", None)])["curve-digits-linf"]
    assert drawn(few.axes[0])["crash: panel incomplete"] == []
    many = [row(f"d{i}", [0.9, 0.5, 0.1]) for i in range(TOGETHER)] + [row("crash", None)]
    (figure,) = curves(many).values()
    words = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert words[:TOGETHER] == [[]] * TOGETHER
    assert words[TOGETHER] == ["panel\nincomplete"]


def test_many_defenses_get_axes_of_their_own() -> None:
    rows = [reference(), *(row(f"d_{i}", [0.9, 0.5, 0.1]) for i in range(TOGETHER + 1))]
    (figure,) = curves(rows).values()
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == [f"d {i}\nbroken" for i in range(TOGETHER + 1)]
    assert all(len(axes.lines) == 2 for axes in shown)


def test_the_naive_attack_stands_beside_the_worst_case() -> None:
    naive = [{"seed": seed, "sources": 10, "naive": 0.8} for seed in range(2)]
    rows = [row(f"d{i}", [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]) for i in range(TOGETHER)]
    rows += [row("m", [0.9, 0.5, 0.1], [0.9, 0.5, 0.1], seeds=naive, at=at,
                 headline=at == 0.2, **({} if at == 0.2 else {"curve": None}))
             for at in (0.1, 0.2)]  # fmt: skip
    (figure,) = curves(rows).values()
    drawn_last = [list(line.get_ydata()) for line in figure.axes[TOGETHER].lines]  # type: ignore[arg-type]
    assert drawn_last.count([80.0, 80.0]) == 2
    assert "10 sources" in figure.get_supxlabel()


def test_no_two_series_share_colour_marker_or_line() -> None:
    rows = [row(f"d{i}", [0.9, 0.5, 0.1]) for i in range(TOGETHER)]
    (figure,) = curves(rows).values()
    lines = figure.axes[0].lines
    assert len(lines) == TOGETHER + 1
    for look in ("get_color", "get_marker"):
        assert len({getattr(line, look)() for line in lines}) == len(lines)
    assert len({str(style.line) for style in STYLES[: len(lines)]}) == len(lines)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [reference(), row("a", [0.9, 0.7, 0.5])]
    first = write_curves(rows, tmp_path / "a")
    second = write_curves(rows, tmp_path / "b")
    assert [path.name for path in first] == ["curve-digits-linf.pdf", "curve-digits-linf.png"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert write_curves([], tmp_path / "c") == []
