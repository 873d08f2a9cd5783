"""``docs/files.md``: what the JSON files of a run hold, made from the types of their rows.

``python -m leaderboard.tables.row_docs > docs/files.md`` writes it again.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NotRequired

from typing_extensions import get_type_hints

from bench.base.rows import FILES, PARTS

TITLE = """# The files of a run

Every run leaves `results.json`, `models.json`, `verdicts.json` and, where a cell is done,
`sources.json`, each a list of objects; `logits.json` and `pairs.json` stand beside them where the
report of the matrix is `findings`. Rates are fractions. `null` stands for what is undefined or
not known, never 0. An interval is
`[low, high]`, of 95 % where nothing else is said. A key marked *may be missing* is there wherever
something was measured."""


def files_page() -> str:
    """Return the page: a section a file, then one for each object that they hold in turn."""
    sections = [_section(f"`{name}`", row) for name, row in FILES.items()]
    sections += [_section(_name(part), part) for part in PARTS]
    return "\n\n".join([TITLE, *sections]) + "\n"


def _section(title: str, row: type) -> str:
    about = " ".join((inspect.getdoc(row) or "").split())
    return "\n".join([f"## {title}", "", about, "", *_keys(row)])


def _keys(row: type) -> Iterator[str]:
    for key, hint in get_type_hints(row, include_extras=True).items():
        optional = getattr(hint, "__origin__", None) is NotRequired
        kind, *notes = typing.get_args(typing.get_args(hint)[0] if optional else hint)
        missing = " *(may be missing)*" if optional else ""
        yield f"- `{key}`: {_type(kind)}: {notes[-1]}{missing}"


def _name(part: type) -> str:
    return part.__name__.removesuffix("Row").lower()


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything",
         type(None): "null"}  # fmt: skip


def _type(kind: Any) -> str:
    """Return a type in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(item) for item in inner)
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in inner)
    if origin is tuple:
        return f"[{', '.join(_type(item) for item in inner)}]"
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"object of {_type(inner[1])}"
    return WORDS[kind] if kind in WORDS else f"[{_name(kind)}](#{_name(kind)})"


if __name__ == "__main__":
    import sys

    sys.stdout.write(files_page())
