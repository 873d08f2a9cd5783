"""Small figures of a page as SVG: text stays text, colours are the page's, the same rows the same.

Nothing is set by ``style``: a page that allows no inline style shows them all the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from leaderboard.tables.numbers import Bounds, given, percent

WIDE, TALL = 300, 170
"""Units of a pair of axes with their words."""

LEFT, RIGHT, TOP, BOTTOM = 34, 10, 10, 32
"""Room for the words around the axes."""

LEVELS = 4
"""Shades of a map: the darkest is what the smallest budget breaks."""

RUNS = 2000
"""Sources that a map can show."""


@dataclass(frozen=True)
class Series:
    """One line: ``kind`` names its style, ``points`` are x and a share."""

    kind: str
    name: str
    points: Sequence[tuple[float, float]]


def axes(
    title: str, about: str, series: Sequence[Series], across: str, *, logarithmic: bool = False
) -> Markup:
    """Return shares in per cent against x; every point says what it is.

    ``title`` and ``about`` are for who does not see it. The lines guide the eye: what lies between
    two points was not measured.
    """
    known = [point for line in series for point in line.points]
    if not known:
        return Markup("")
    ticks = sorted({x for x, _ in known})
    ends = [math.log(x) if logarithmic else x for x in (ticks[0], ticks[-1])]
    span = ends[1] - ends[0] or 1

    def place(x: float, share: float) -> tuple[str, str]:
        along = ((math.log(x) if logarithmic else x) - ends[0]) / span
        return (
            _n(LEFT + along * (WIDE - LEFT - RIGHT)),
            _n(TOP + (1 - share) * (TALL - TOP - BOTTOM)),
        )

    parts = []
    for share in (0.0, 0.5, 1.0):
        height = place(ticks[0], share)[1]
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                LEFT, WIDE - RIGHT, height, height
            )
        )
        parts.append(_word("end", LEFT - 4, float(height) + 3, f"{100 * share:g}"))
    parts += [
        _word("middle", float(place(x, 0)[0]), TALL - BOTTOM + 13, given(x))
        for x in _thinned(ticks)
    ]
    parts.append(_word("middle", (LEFT + WIDE - RIGHT) / 2, TALL - 4, across))
    for line in series:
        at = [place(*point) for point in line.points]
        path = " ".join(f"{left},{top}" for left, top in at)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(line.kind, path))
        for (left, top), point in zip(at, line.points, strict=True):
            told = f"{line.name}, {given(point[0])}: {percent(point[1])}"
            parts.append(_mark(line.kind, left, top, told))
    return Markup(
        '<svg class="axes" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDE, TALL, f"{title}. {about}", Markup("").join(parts))


def _word(kind: str, x: float, y: float, told: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, _n(x), _n(y), told)


def _mark(kind: str, x: str, y: str, told: str) -> Markup:
    if kind == "worst":
        shape = Markup('<circle class="{}" cx="{}" cy="{}" r="3.5">').format(kind, x, y)
        return shape + Markup("<title>{}</title></circle>").format(told)
    left, top = _n(float(x) - 3), _n(float(y) - 3)
    if kind == "naive":
        shape = Markup('<rect class="{}" x="{}" y="{}" width="6" height="6">').format(
            kind, left, top
        )
        return shape + Markup("<title>{}</title></rect>").format(told)
    return Markup('<path class="{} cross" d="M{} {}l6 6m-6 0l6-6"><title>{}</title></path>').format(
        kind, left, top, told
    )


def _thinned(ticks: Sequence[float]) -> list[float]:
    """Return at most six of the ticks, the ends among them."""
    step = -(-len(ticks) // 6)
    return [*ticks[:-1:step], ticks[-1]] if len(ticks) > 1 else list(ticks)


def intervals(
    seeds: Sequence[tuple[float | None, Bounds | None, float | None]],
) -> Markup:
    """Return worst case with interval and the naive attack's figure on a scale of 0 to 100 %.

    One line a seed. The numbers stand beside it: it says nothing to who does not see it.
    """
    parts = []
    for number, (worst, bounds, naive) in enumerate(seeds):
        y = 6 + 9 * number
        parts.append(Markup('<path class="scale" d="M4 {}h100"/>').format(y))
        if worst is not None and naive is not None and naive > worst:
            parts.append(Markup('<path class="gap" d="M{} {}H{}"/>').format(
                _n(4 + 100 * worst), y, _n(4 + 100 * naive)))  # fmt: skip
        if bounds is not None:
            parts.append(Markup('<path class="bounds" d="M{} {}H{}"/>').format(
                _n(4 + 100 * bounds[0]), y, _n(4 + 100 * bounds[1])))  # fmt: skip
        if naive is not None:
            parts.append(Markup('<rect class="naive" x="{}" y="{}" width="5" height="5"/>').format(
                _n(1.5 + 100 * naive), _n(y - 2.5)))  # fmt: skip
        if worst is not None:
            parts.append(Markup('<circle class="worst" cx="{}" cy="{}" r="3"/>').format(
                _n(4 + 100 * worst), y))  # fmt: skip
    return Markup(
        '<svg class="interval" width="108" height="{}" aria-hidden="true">{}</svg>'
    ).format(12 + 9 * (len(seeds) - 1), Markup("").join(parts))


def strip(levels: Sequence[int | None]) -> Markup:
    """Return one row of a map, a cell a source: its shade of ``LEVELS``, None for an empty one.

    A path a shade: ``m2 0h5`` leaves two cells and fills five, by a line as wide as the row.
    """
    paths: dict[int, list[str]] = {}
    ends: dict[int, int] = {}
    start = 0
    for level, cells in itertools.groupby(levels):
        count = len(list(cells))
        if level is not None:
            paths.setdefault(level, []).append(f"m{start - ends.get(level, 0)} 0h{count}")
            ends[level] = start + count
        start += count
    drawn = Markup("").join(
        Markup('<path class="s{}" d="{}"/>').format(level, "".join(found))
        for level, found in sorted(paths.items())
    )
    return Markup(
        '<svg class="strip" viewBox="0 -.5 {} 1" preserveAspectRatio="none" aria-hidden="true">'
        "{}</svg>"
    ).format(max(1, len(levels)), drawn)


def bars(clean: Sequence[float], adversarial: Sequence[float], title: str) -> Markup:
    """Return an input that is no picture: a bar a feature, from its clean value to the changed."""
    parts = []
    for place, (before, after) in enumerate(zip(clean, adversarial, strict=True)):
        if before == after:
            parts.append(f'<path class="same" d="M{place} {_n(99 - 98 * before)}h1"/>')
        else:
            kind = "up" if after > before else "down"
            top = 99 - 98 * max(before, after)
            parts.append(
                f'<rect class="{kind}" x="{place}" y="{_n(top)}" width="1" '
                f'height="{_n(max(1.5, 98 * abs(after - before)))}"><title>feature {place}: '
                f"{_n(before)} → {_n(after)}</title></rect>"
            )
    return Markup(
        '<svg class="bars" viewBox="0 0 {} 100" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg>'
    ).format(max(1, len(clean)), title, Markup("".join(parts)))  # noqa: S704 (numbers alone)


def legend(entries: Mapping[str, str]) -> Markup:
    """Return what the styles of ``axes`` mean, in words beside a mark."""
    return Markup(" ").join(
        Markup('<span class="key"><svg width="22" height="10" aria-hidden="true">'
               '<path class="{}" d="M0 5h22"/>{}</svg> {}</span>').format(
            kind, _mark(kind, "11", "5", name), escape(name))
        for kind, name in entries.items()
    )  # fmt: skip


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
