"""Somebody else's package under the name of one of ours, found before ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bench.base.types import UserError

BESIDE = ("attacks", "defenses", "leaderboard")
"""The packages that come with ``bench`` and lie beside it."""


def refuse_foreign() -> None:
    """Raise UserError, naming the folder, where one of ours would be imported from elsewhere."""
    home = Path(__file__).parents[2]
    for name in BESIDE:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
        if not places and spec is not None and spec.origin:
            places = [Path(spec.origin)]
        if home / name not in places:
            found = f"is another one, {places[0]}" if places else "cannot be found"
            raise UserError(
                f"Retort's package {name!r} {found}: it stands earlier on the path than "
                f"{home / name}; run `retort` from another folder, or rename it"
            )
