"""One HTML file that asks nobody for anything: templates, style, script, and their hashes."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench.base.text import one_line
from leaderboard.tables.numbers import percent

LONGEST = 120
"""Characters of a name that are shown; the whole of it is in its tooltip."""


def document(template: str, **values: Any) -> str:
    """Return the file that ``template`` makes of ``values``.

    Style and script stand in it, allowed by their hashes; nothing else is allowed but pictures that
    stand in it too. Every value is escaped but what is ``Markup`` already.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    jinja = Environment(
        loader=PackageLoader("leaderboard", "site/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    jinja.filters.update(percent=percent, short=short, line=one_line)
    # The hashes are of these very bytes: nothing may escape them.
    trusted = {"style": Markup(style), "script": Markup(script)}  # noqa: S704 (our own files)
    made = jinja.get_template(template).render(policy=policy, **trusted, **values)
    return "\n".join(line for line in made.splitlines() if line.strip()) + "\n"


def short(text: str) -> str:
    """Return a name on one line, cut where it would push everything else aside."""
    plain = one_line(text)
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}…"


def _asset(name: str) -> str:
    text = (files("leaderboard.site") / "assets" / name).read_text(encoding="utf-8")
    # Empty lines are dropped from the page, and the hash is of what stands there.
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
