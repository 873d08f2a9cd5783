"""Whether adversarial inputs carry over to other architectures and to networks of other data.

Szegedy et al. 2014, arXiv 1312.6199, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from bench.base.rows import Results
from bench.base.types import ThreatModel
from leaderboard.figures.material import Material
from leaderboard.figures.style import WIDTH, new_figure, styled
from leaderboard.findings.finding import Finding, told
from leaderboard.tables.cells import Row
from leaderboard.tables.numbers import UNDEFINED, fixed, shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN = ("undefended", "twin", "standard_training")
"""Defenses that are none: cross-entropy on clean images and hard labels."""

FIGURE = "transfer-networks"

HALVES, SEED, SHARED, ACROSS = "halves", "seed", "shared", "across"
KINDS = {
    SEED: "another seed on the same images",
    HALVES: "the other half of the training images",
    SHARED: "a half of the same training images",
    ACROSS: "another architecture",
}
"""What the source was, against the victim; all but the last have its architecture."""


@dataclass(frozen=True)
class Trained:
    """A network without a defense: its architecture, and what tells it from its namesakes.

    ``half``: of the training split, None for the whole.
    """

    network: str
    half: str | None
    twin: bool

    @property
    def label(self) -> str:
        """The architecture, and which of its networks it is."""
        which = f", {self.half} half" if self.half else ", another seed" if self.twin else ""
        return self.network + which


def network_name(row: Row) -> str:
    """Return the architecture of a row's model: the run's, or that of ``standard_training``."""
    return _architecture(row["defense_params"].get("network"), row["network"])


def _architecture(table: Row | None, own: str) -> str:
    if table is None:
        return own
    return " ".join([table["name"], *(f"{k}={v}" for k, v in table.items() if k != "name")])


def trained(defense: Row, own: str) -> Trained:
    """Return the network that a table, with ``name``, describes; ``own``: the run's network."""
    name = _architecture(defense.get("network"), own)
    return Trained(name, defense.get("half"), defense["name"] == "twin")


def kind(victim: Trained, source: Trained) -> str:
    """Return what ``source`` is to another network, ``victim``: a key of ``KINDS``."""
    if victim.network != source.network:
        return ACROSS
    halves = {victim.half, source.half}
    if len(halves) == 1:
        return SEED
    return SHARED if None in halves else HALVES


@dataclass(frozen=True)
class Crossing:
    """The inputs made on ``source`` against ``victim``, by seed; the noise met the same victim."""

    victim: Trained
    source: Trained
    rows: dict[int, Row]
    noise: dict[int, Row]

    @property
    def white_box(self) -> bool:
        """Whether they were made on the victim itself."""
        return self.victim == self.source

    @property
    def above_noise(self) -> bool | None:
        """Whether each interval lies above that of noise at its seed; None where none was met."""
        met = [(self.rows[s]["success_ci"], self.noise[s]["success_ci"]) for s in self._met]
        return all(mine[0] > other[1] for mine, other in met) if met else None

    @property
    def _met(self) -> list[int]:
        return [seed for seed in self.rows if seed in self.noise]


def crossings(results: Results) -> list[Crossing]:
    """Return every pair of networks without a defense that the transfer attack has met.

    Of one attack: the first of the run, where there are several.
    """
    cells = [row for row in results.cells if row["defense"] in PLAIN and row["success_ci"]]
    made = [row for row in cells if row["attack"] == "transfer" and _source(row)["name"] in PLAIN]
    made = [row for row in made if _inner(row) == _inner(made[0])]
    noise: dict[Trained, dict[int, Row]] = {}
    for row in cells:
        if row["attack"] == "noise" and made and row["threat"] == made[0]["threat"]:
            noise.setdefault(_victim(row), {}).setdefault(row["seed"], row)
    found: dict[tuple[Trained, Trained], dict[int, Row]] = {}
    for row in made:
        pair = _victim(row), trained(_source(row), row["network"])
        found.setdefault(pair, {}).setdefault(row["seed"], row)
    return [Crossing(v, s, rows, noise.get(v, {})) for (v, s), rows in found.items()]


def _victim(row: Row) -> Trained:
    return trained({"name": row["defense"], **row["defense_params"]}, row["network"])


def _inner(row: Row) -> Row:
    inner: Row = row["attack_params"]["attack"]
    return inner


def _source(row: Row) -> Row:
    source: Row = row["attack_params"]["source"]
    return source


def networks(results: Results) -> Finding | None:
    """Tell how much carries over to other data, and to other architectures."""
    found = crossings(results)
    if not any(kind(one.victim, one.source) in (HALVES, ACROSS) for one in _black(found)):
        return None
    row = next(iter(found[0].rows.values()))
    kinds = by_kind(found)
    across = kinds.get(ACROSS, [])
    ordered = sorted(across, key=lambda one: sum(means([one.rows])) / len(one.rows))
    caption = (
        "Success rate on the correctly classified sources of each victim (down), by the network "
        "that the inputs were made on (across), one value a seed; in brackets, on the diagonal, "
        "the two are the same network: white box."
    )
    return told(
        "networks",
        [
            (caption, table(found)),
            ("Means over the pairs of each kind, one value a seed.", kinds_table(found)),
        ],
        (FIGURE,),
        made=f"{_inner(row)['name'].upper()}, {ThreatModel(**row['threat'])}",
        names=KINDS,
        broken=_broken(found),
        judged={
            name: counts for name in (HALVES, ACROSS) if (counts := _above(kinds.get(name, ())))
        },
        within=_within(kinds),
        ends=[
            f"{one.source.label} to {one.victim.label} ({shares(means([one.rows]))})"
            for one in ordered[:1] + ordered[-1:]
        ],
    )


def _black(found: Iterable[Crossing]) -> list[Crossing]:
    return [one for one in found if not one.white_box]


def by_kind(found: Sequence[Crossing]) -> dict[str, list[Crossing]]:
    """Return the pairs of different networks by kind, in the order of ``KINDS``."""
    pairs = _black(found)
    kinds = {name: [p for p in pairs if kind(p.victim, p.source) == name] for name in KINDS}
    return {name: members for name, members in kinds.items() if members}


def means(groups: Iterable[dict[int, Row]]) -> list[float]:
    """Return the mean success rate of some cells, one value a seed."""
    groups = list(groups)
    seeds = sorted({seed for rows in groups for seed in rows})
    each = [[rows[seed]["success_rate"] for rows in groups if seed in rows] for seed in seeds]
    return [sum(values) / len(values) for values in each]


def _noise(found: Sequence[Crossing]) -> list[dict[int, Row]]:
    return list({one.victim: one.noise for one in found if one.noise}.values())


def _broken(found: Sequence[Crossing]) -> dict[str, list[float]]:
    """Return what share of the sources the inputs of each kind of network break, by seed."""
    rates = {name: means(p.rows for p in of) for name, of in by_kind(found).items()}
    rates.pop(SHARED, None)
    if white := [one.rows for one in found if one.white_box]:
        rates["made on the victim itself"] = means(white)
    if noise := _noise(found):
        rates["noise of the same size breaks"] = means(noise)
    return rates


def _above(pairs: Iterable[Crossing]) -> tuple[int, int] | None:
    """Return how many pairs break more than noise, of how many that it stands beside."""
    judged = [one.above_noise for one in pairs if one.above_noise is not None]
    return (sum(judged), len(judged)) if judged else None


def _within(kinds: dict[str, list[Crossing]]) -> bool | None:
    """Return whether more carries over within an architecture than across, at every seed."""
    same = [one.rows for name in (SEED, HALVES, SHARED) for one in kinds.get(name, [])]
    if not same or ACROSS not in kinds:
        return None
    pairs = zip(means(same), means(one.rows for one in kinds[ACROSS]), strict=False)
    return all(a > b for a, b in pairs)


def table(found: Sequence[Crossing]) -> pd.DataFrame:
    """Return success rates: victims down, sources across, then noise."""
    lines: dict[Trained, dict[str, str]] = {}
    for one in found:
        line = lines.setdefault(one.victim, {"victim": one.victim.label})
        rates = shares(row["success_rate"] for row in one.rows.values())
        line[one.source.label] = f"[{rates}]" if one.white_box else rates
    for one in found:
        if one.noise:
            lines[one.victim]["noise"] = shares(r["success_rate"] for r in one.noise.values())
    return pd.DataFrame(list(lines.values())).fillna(UNDEFINED)


def kinds_table(found: Sequence[Crossing]) -> pd.DataFrame:
    """Return for each kind of pair how much carries over, and in how many pairs beyond noise."""
    lines = []
    for name, pairs in by_kind(found).items():
        rates = [mean for one in pairs for mean in means([one.rows])]
        judged = [one for one in pairs if one.above_noise is not None]
        above = sum(bool(one.above_noise) for one in judged)
        lines.append(
            {
                "made on": KINDS[name],
                "mean success": shares(means(one.rows for one in pairs)),
                "lowest": shares([min(rates)]),
                "highest": shares([max(rates)]),
                "pairs beyond noise": f"{above} of {len(judged)}" if judged else UNDEFINED,
            }
        )
    return pd.DataFrame(lines)


@styled
def draw_networks(results: Results, _: Material) -> dict[str, Figure]:
    """Draw how much of each network's inputs breaks each other, means over seeds."""
    found = crossings(results)
    if not any(kind(one.victim, one.source) in (HALVES, ACROSS) for one in _black(found)):
        return {}
    names = list(dict.fromkeys(one.victim for one in found))
    sources = list(dict.fromkeys(one.source for one in found))
    columns = [*(one.label for one in sources), *(["noise"] if _noise(found) else [])]
    grid: list[list[float]] = [[float("nan")] * len(columns) for _ in names]
    for one in found:
        line = grid[names.index(one.victim)]
        line[sources.index(one.source)] = _mean(one.rows)
        if one.noise:
            line[-1] = _mean(one.noise)
    figure, axis = new_figure(1.6 * WIDTH, 1.2 * WIDTH)
    axis.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for down, line in enumerate(grid):
        for over, value in enumerate(line):
            white = over < len(sources) and names[down] == sources[over]
            if not math.isnan(value):
                axis.text(over, down, fixed(value), ha="center", va="center", fontsize=6,
                          color="black" if value > 50 else "white",
                          weight="bold" if white else "normal")  # fmt: skip
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axis.set_yticks(range(len(names)), [one.label for one in names])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.set_xlabel("made on (bold: the victim itself, white box)")
    axis.set_ylabel("victim; success in %, mean over seeds")
    return {FIGURE: figure}


def _mean(rows: dict[int, Row]) -> float:
    each = [100 * row["success_rate"] for row in rows.values()]
    return float(sum(each) / len(each))
