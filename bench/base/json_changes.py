"""What differs between two JSON documents, leaf by leaf."""

from __future__ import annotations

from typing import Any


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of a JSON value by their dotted path; empty containers are leaves.

    >>> flatten({"a": {"b": 1}, "c": [2, {}]})
    {'a.b': 1, 'c.0': 2, 'c.1': {}}
    """
    if not isinstance(value, dict | list | tuple) or not value:
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    leaves: dict[str, Any] = {}
    for key, item in items:
        leaves.update(flatten(item, f"{path}.{key}" if path else str(key)))
    return leaves


def changes(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return the leaves in which two JSON values differ, by path; a missing one is ``absent``."""
    left, right = flatten(old), flatten(new)
    paths = [*left, *(path for path in right if path not in left)]
    pairs = {path: (left.get(path, ABSENT), right.get(path, ABSENT)) for path in paths}
    return {path: (a, b) for path, (a, b) in pairs.items() if not _same(a, b)}


ABSENT = "absent"


def _same(a: Any, b: Any) -> bool:
    # true == 1 in Python, not in JSON.
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
