"""A plugin to begin with: a file that already passes ``check``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from bench.base.text import nearest
from bench.base.types import UserError
from bench.plugins.registry import NAME

KINDS = ("attack", "learning-attack", "defense", "network", "dataset")


def write_skeleton(kind: str, name: str, folder: Path) -> Path:
    """Write a plugin of ``kind`` called ``name`` to a file in ``folder``, and return the file.

    Raises UserError for an unknown kind, a name that no plugin can have, and a file that is there.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind {kind!r} of plugin: {nearest(kind, KINDS)}")
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a plugin: lower-case letters and digits, in words joined by "
            "- or _"
        )
    words = name.replace("-", "_").split("_")
    path = folder / f"{'_'.join(words)}.py"
    text = (files("bench") / "skeletons" / f"{kind}.txt").read_text(encoding="utf-8")
    text = text.replace("NAME", name).replace("CLASS", "".join(w.capitalize() for w in words))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{path} is there already: choose another name") from error
    return path
