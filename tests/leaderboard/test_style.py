"""Names are drawn as they are written."""

from pathlib import Path

from leaderboard.figures.style import new_figure, save


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    figure, axes = new_figure()
    axes.plot([1, 10], [1, 2], label=r"$\frac{$")
    axes.set_xscale("log")
    axes.set_title(r"$\nonsense{$")
    axes.legend()
    written = save({"a": figure}, tmp_path)
    assert all(path.stat().st_size for path in written)
