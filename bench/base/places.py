"""Where a relative path starts: at the matrix that names it, so that matrix and files travel."""

from __future__ import annotations

import os
from pathlib import Path

_base: list[Path] = []


def start_at(folder: Path | None) -> None:
    """Let relative paths of this process start at ``folder``; None: where it stands."""
    _base[:] = [] if folder is None else [folder.absolute()]


def base() -> Path:
    """Return where relative paths start."""
    return _base[0] if _base else Path.cwd()


def placed(path: str | Path) -> Path:
    """Return ``path`` as a file that can be opened from wherever this process stands."""
    # Without its "..", which would want folders on the way to exist before the run makes them.
    return Path(os.path.normpath(base() / path))
