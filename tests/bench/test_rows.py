"""The types of the rows say what the files hold, and the page says what the types do."""

import inspect
import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from bench.base.rows import FILES, PARTS
from leaderboard.tables.row_docs import files_page

ROOT = Path(__file__).parents[2]


def test_the_page_on_files_is_generated() -> None:
    """Write it with: python -m leaderboard.tables.row_docs > docs/files.md."""
    assert (ROOT / "docs" / "files.md").read_text(encoding="utf-8") == files_page()


def test_every_kind_of_object_says_what_it_is() -> None:
    for kind in (*FILES.values(), *PARTS):
        assert (inspect.getdoc(kind) or "").endswith("."), kind


@pytest.mark.parametrize("name", FILES)
def test_published_rows_are_what_their_types_say(name: str) -> None:
    adapter = TypeAdapter(list[FILES[name]])  # type: ignore[misc]
    found = list((ROOT / "leaderboard" / "published").glob(f"*/{name}"))
    assert found
    for path in found:
        rows = json.loads(path.read_text(encoding="utf-8"))
        adapter.validate_python(rows)
        assert all(set(row) <= set(FILES[name].__annotations__) for row in rows)
