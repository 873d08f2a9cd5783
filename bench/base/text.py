"""Words for people: text from plugins and files made fit to print, and the nearest valid name."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

HARMFUL = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: controls, invisible formats (bidi too), surrogates, separators."""


def plain(text: str) -> str:
    r"""Return ``text`` with everything that a terminal obeys or hides written as an escape.

    >>> plain("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def one_line(text: str) -> str:
    """Return ``text`` plain and on one line, as a cell of a table must be."""
    return plain(" ".join(text.split()))


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in HARMFUL:
        return character
    return character.encode("unicode_escape").decode("ascii")


def nearest(given: str, valid: Iterable[str]) -> str:
    """Return ``valid`` as a sentence, led by the name nearest to ``given`` where one is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names) or 'none'}"
