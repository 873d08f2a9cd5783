"""The index of what is published, from numbers alone."""

from pathlib import Path

from bench.base.rows import Results
from leaderboard.pages.publish import write_index
from leaderboard.tables.headline import headline
from tests.leaderboard.rows import sweep_results
from tests.leaderboard.tables.test_cells import row
from tests.leaderboard.tables.test_verdicts import REFERENCE, verdict

PUBLISHED = Path(__file__).parents[3] / "leaderboard" / "published"


def test_a_headline_counts_verdicts_and_names_what_holds() -> None:
    rows = [REFERENCE, verdict("a"), verdict("b", verdict="broken")]
    told = headline(Results([], [], rows))
    assert told == "L∞ budget 0.2: 1 × holds; 1 × broken (holds: a)"


def test_a_distilled_network_stands_beside_the_undefended() -> None:
    told = headline(sweep_results())
    assert told.startswith("JSMA on distillation at T = 100: 0.1 % on probabilities (undefended")


def test_the_rest_has_the_range_of_success() -> None:
    rows = [row("undefended", 0.5), row("a", 0.25), row("b", None, status="failed")]
    told = headline(Results(rows, []))
    assert told == "success 25.0 % to 50.0 %, on the undefended network 50.0 %; 2/3 cells"
    assert headline(Results(rows[2:], [])) == "no cell finished"


def test_the_published_index_is_made_of_what_is_published(tmp_path: Path) -> None:
    for folder in PUBLISHED.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    for name in ("README.md", "index.html"):
        (tmp_path / name).unlink()
    assert write_index(tmp_path).read_text() == (PUBLISHED / "README.md").read_text()
    assert (tmp_path / "index.html").read_text() == (PUBLISHED / "index.html").read_text()
