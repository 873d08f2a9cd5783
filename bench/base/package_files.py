"""Files that come with the package and can be named, as ``--matrix full`` names one."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.base.text import nearest
from bench.base.types import UserError


def packaged_names(folder: str) -> list[str]:
    """Return the names of the TOML files in a ``folder`` of the package."""
    found = (item.name for item in (files("bench") / folder).iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def read_table(kind: str, folder: str, given: str | Path) -> tuple[dict[str, Any], str]:
    """Return the TOML table that ``given`` names, and what to call it in errors.

    A name is looked up in the package's ``folder``; what ends in ``.toml`` or holds a slash is a
    file. ``kind`` is the word used in messages. Raises UserError where there is none, or where it
    is no TOML.
    """
    name = str(given)
    if name.endswith(".toml") or "/" in name:
        text, origin = _read_file(kind, name), name
    else:
        known = packaged_names(folder)
        if name not in known:
            raise UserError(
                f"unknown {kind} {name!r}: {nearest(name, known)}; or give a .toml file"
            )
        text = (files("bench") / folder / f"{name}.toml").read_text(encoding="utf-8")
        origin = f"{kind} {name!r}"
    return parse_toml(text, origin), origin


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Return TOML as a table; raises UserError where it is none, or nested beyond reason."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"{origin}: not valid TOML: nested too deeply") from error
    except ValueError as error:  # tomllib's own, and an integer of thousands of digits
        raise UserError(f"{origin}: not valid TOML: {error}") from error


def _read_file(kind: str, name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no UTF-8, or a NUL in its name
        raise UserError(f"{kind} file {name!r} cannot be read: {error}") from error
