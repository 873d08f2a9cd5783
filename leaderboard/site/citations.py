"""The papers behind what a run used, as BibTeX."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

SHOWN = ("author", "title", "booktitle", "journal", "year", "eprint", "url")


@dataclass(frozen=True)
class Reference:
    """One paper; ``of``: the attacks and defenses that it is the source of."""

    key: str
    fields: dict[str, Any]
    of: tuple[str, ...]

    @property
    def bibtex(self) -> str:
        """The entry."""
        kind = next((word for name, word in (("booktitle", "inproceedings"), ("journal", "article"))
                     if name in self.fields), "misc")  # fmt: skip
        lines = [
            f"  {name:<13} = {{{self.fields[name]}}}," for name in SHOWN if name in self.fields
        ]
        if "eprint" in self.fields:
            lines.append(f"  {'archiveprefix':<13} = {{arXiv}}")
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])

    @property
    def words(self) -> str:
        """The paper in a line of prose."""
        names = [name.split(",")[0] for name in self.fields["author"].split(" and ")]
        for code, letter in (("{\\`a}", "à"), ("{\\`e}", "è"), ('{\\"o}', "ö")):
            names = [name.replace(code, letter) for name in names]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        title = self.fields["title"].replace("{$\\sigma$}", "σ").replace("{$\\ell_0$}", "ℓ0")
        eprint = self.fields.get("eprint")
        place = self.fields["url"] if eprint is None else f"arXiv {eprint}"
        return f"{who} ({self.fields['year']}), {title}, {place}"


@cache
def references() -> tuple[Reference, ...]:
    """Return every paper that is known."""
    text = (files("leaderboard.site") / "references.toml").read_text(encoding="utf-8")
    return tuple(
        Reference(key, {name: value for name, value in entry.items() if name != "of"},
                  tuple(entry["of"]))
        for key, entry in tomllib.loads(text).items()
    )  # fmt: skip


def cited(names: Iterable[str]) -> list[Reference]:
    """Return the papers behind attacks and defenses of these names."""
    wanted = set(names)
    return [reference for reference in references() if wanted & set(reference.of)]
