"""How every figure looks, and how it is saved."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from bench.base.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH, HEIGHT = 3.4, 2.5
"""Inches: a column of a two-column page."""

SETTINGS: dict[str, Any] = {
    "font.size": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 6,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "savefig.dpi": 300,
}

NOTE = 80
"""Letters in a line of a note."""

METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
}


class Style(NamedTuple):
    """How one series is drawn."""

    color: str
    marker: str
    line: Any


STYLES = (
    Style("#000000", "o", "-"),
    Style("#E69F00", "s", "--"),
    Style("#0072B2", "^", "-."),
    Style("#009E73", "v", ":"),
    Style("#CC79A7", "D", (0, (5, 1, 1, 1))),
    Style("#56B4E9", "P", (0, (3, 1))),
    Style("#F0E442", "*", (0, (1, 2))),
)

PUBLISHED: dict[str, Any] = {
    "marker": "x",
    "color": "#D55E00",
    "linestyle": "none",
    "markersize": 6,
    "markeredgewidth": 1.3,
    "zorder": 5,
}

Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(function: Drawing) -> Drawing:
    """Let ``function`` draw with our settings, and leave the caller's as they were."""

    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        from matplotlib import rc_context

        with rc_context(cast("Any", SETTINGS)):
            return function(*args, **kwargs)

    return cast("Drawing", inside)


@styled
def save(figures: Mapping[str, Figure], folder: Path, note: str = "") -> list[Path]:
    """Write each figure to ``folder`` as PDF and as PNG; return the files.

    ``note``: what it was measured on, for whoever meets the image alone; a figure that says so
    itself below its axes keeps its words.
    """
    written = []
    for name, figure in figures.items():
        if note and not figure.get_supxlabel():
            figure.supxlabel(textwrap.fill(note, NOTE), size=5, color="0.35", x=0.99, ha="right")
        _take_words_as_they_are(figure)
        for kind, metadata in METADATA.items():
            written.append(folder / f"{name}.{kind}")
            with atomic(written[-1]) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)
    return written


def _take_words_as_they_are(figure: Figure) -> None:
    """Let a dollar in a name be one: only the ticks of logarithmic axes are formulas."""
    from matplotlib.text import Text

    ticks = {
        id(text)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if axis.get_scale() == "log"
        for text in axis.findobj(Text)
    }
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if id(text) not in ticks:
            text.set_parse_math(False)


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure of that many inches, and its axes."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure((width, height), layout="constrained")
    return figure, figure.add_subplot()


def new_grid(
    rows: int, columns: int, width: float = WIDTH, height: float = HEIGHT
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of that many inches, and its axes row by row."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure((width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def legend(figure: Figure, columns: int = 3) -> None:
    """Put the names of the series of all axes above them, the published figures last."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = [handle for some, _ in found for handle in some]
    names = [name for _, some in found for name in some]
    unique = dict(zip(reversed(names), reversed(handles), strict=True))
    order = sorted(dict.fromkeys(names), key=lambda name: name.startswith("published"))
    figure.legend([unique[name] for name in order], order, loc="outside upper center",
                  ncols=columns, handlelength=2.6, columnspacing=1.2)  # fmt: skip
