"""Words for people: text from plugins and files made fit to print, and the nearest valid name."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

HARMFUL = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
"""Unicode categories: controls, invisible formats (bidi too), private, surrogates, separators."""

FILLERS = "\u115f\u1160\u3164\uffa0"
"""Letters of Hangul that show nothing."""


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


LONGEST = 1000
"""Characters of a reason that are kept."""


def reason_of(error: BaseException) -> str:
    """Return an error of other people's code as one line that can be stored and shown.

    Its type and its message, plain and cut; the type alone where the message cannot be had.
    """
    kind = type(error).__name__
    try:
        message = one_line(str(error))
    except BaseException:  # noqa: BLE001 (a message that raises)
        message = "(its message cannot be shown)"
    return cut(f"{kind}: {message}" if message else kind)


def cut(text: str, longest: int = LONGEST) -> str:
    """Return ``text``, or its beginning where it is longer than ``longest`` characters."""
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text)} characters)"


def _shown(character: str) -> str:
    harmful = unicodedata.category(character) in HARMFUL or character in FILLERS
    if character in "\n\t" or not harmful:
        return character
    return character.encode("unicode_escape").decode("ascii")


def nearest(given: str, valid: Iterable[str]) -> str:
    """Return ``valid`` as a sentence, led by the name nearest to ``given`` where one is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names) or 'none'}"
