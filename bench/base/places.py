"""Where a relative path starts: at the matrix that names it, so that matrix and files travel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_base: list[Path] = []
_root: list[Path] = []


def start_at(folder: Path | None, root: Path | None = None) -> None:
    """Let relative paths of this process start at ``folder``; None: where it stands.

    ``root``: below which the files of another machine lie, by their whole paths on it: every
    path is then one of that machine.
    """
    _base[:] = [] if folder is None else [folder if root else folder.absolute()]
    _root[:] = [] if root is None else [root]


def base() -> Path:
    """Return where relative paths start."""
    return _base[0] if _base else Path.cwd()


def placed(path: str | Path) -> Path:
    """Return ``path`` as a file that can be opened from wherever this process stands."""
    # Without its "..", which would want folders on the way to exist before the run makes them.
    whole = Path(os.path.normpath(base() / path))
    return below(_root[0], whole) if _root else whole


def below(root: Path, path: Path) -> Path:
    """Return where the file at the whole ``path`` of another machine lies below ``root``."""
    return root / path.relative_to(path.anchor)


def named(document: Any) -> Iterator[Path]:
    """Yield what lies at the relative paths that a JSON ``document`` names, as in a plan's nodes.

    A path may be followed by a colon and a name of something inside of the file.
    """
    if isinstance(document, Mapping):
        document = list(document.values())
    if isinstance(document, list):
        for item in document:
            yield from named(item)
    elif isinstance(document, str) and {".", "/"} & set(document):
        path = document.partition(":")[0]
        if path and not Path(path).is_absolute() and placed(path).exists():
            yield placed(path)
