"""Text from plugins, matrices and files, made fit to print: a name must not drive a terminal."""

from __future__ import annotations

import unicodedata

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
