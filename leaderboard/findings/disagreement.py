"""On which samples two models are sure: adversarially trained against standard, and a control.

Seguin et al. 2021, arXiv 2108.12001, show the samples of largest difference of confidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.base.rows import Results
from leaderboard.figures.material import Material
from leaderboard.figures.style import STYLES, WIDTH, new_grid, styled
from leaderboard.findings.finding import TRAINED, Finding, groups, told
from leaderboard.tables.cells import Row
from leaderboard.tables.numbers import each, percent, shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JOINT, PANEL = "confidence-joint", "confidence-panel"

FLOOR = 1e-10
"""Where a doubt is drawn that is smaller."""


def disagreement(results: Results) -> Finding | None:
    """Tell how often an adversarially trained and a standard network differ in confidence."""
    trained, control = held(results)
    if trained is None or control is None:
        return None
    caption = "Against the undefended network on clean test images, one value a seed."
    keys = ("confidence_correlation", "order_tau")
    return told(
        "disagreement",
        [(caption, table(results))],
        (JOINT, PANEL),
        apart=_shares(trained),
        twins=_shares(control),
        more=_more(trained, control),
        trained={key: _seeds(trained, key) for key in keys},
        control={key: _seeds(control, key) for key in keys},
    )


def held(results: Results) -> tuple[Row | None, Row | None]:
    """Return the pairs with the undefended network: of PGD training (else FGSM), and its twin."""
    pairs = [pair for pair in results.pairs if pair["why"] == "undefended" and _measured(pair)]
    trained = [pair for pair in pairs if pair["first"]["defense"] in TRAINED]
    trained.sort(key=lambda pair: pair["first"]["defense_params"].get("method") == "fgsm")
    twins = [pair for pair in pairs if pair["first"]["defense"] == "twin"]
    return trained[0] if trained else None, twins[0] if twins else None


def _measured(pair: Row) -> bool:
    return any("apart" in seed for seed in pair["seeds"])


def _more(trained: Row, control: Row) -> list[bool]:
    """Return of each seed that both have whether the first pair differs on more images."""
    shares = [{seed["seed"]: seed.get("apart") for seed in p["seeds"]} for p in (trained, control)]
    both = [(a, shares[1].get(seed)) for seed, a in shares[0].items()]
    return [a > b for a, b in both if a is not None and b is not None]


def _seeds(pair: Row, key: str) -> list[float | None]:
    return [seed.get(key) for seed in pair["seeds"]]


def _shares(pair: Row) -> list[float | None]:
    return _seeds(pair, "apart")


def table(results: Results) -> pd.DataFrame:
    """Return how each defense agrees with the undefended network on clean images."""
    pairs = [pair for pair in results.pairs if pair["why"] == "undefended" and _measured(pair)]
    named = groups({**pair["first"], "pair": pair} for pair in pairs)
    lines = []
    for group in named:
        pair = group.rows[0]["pair"]
        lines.append(
            {
                "defense": group.label,
                "same class": shares(_seeds(pair, "same_prediction")),
                "Δ top probability, points": each(
                    100 * v if v is not None else None
                    for v in _seeds(pair, "confidence_difference")
                ),
                "apart by ¼": shares(_shares(pair), 2),
                "rank correlation": each(_seeds(pair, "confidence_correlation"), 2),
                "τ of the incorrect": each(_seeds(pair, "order_tau"), 2),
            }
        )
    return pd.DataFrame(lines)


@styled
def draw_disagreement(results: Results, material: Material) -> dict[str, Figure]:
    """Draw the joint distribution of top probabilities, and the images that differ most."""
    pairs = held(results)
    if None in pairs:
        return {}
    figure, axes = new_grid(1, 2, 2 * WIDTH, WIDTH)
    names = ("adversarially trained", "another undefended network")
    for axis, pair, name, style in zip(axes, pairs, names, STYLES[1:], strict=False):
        assert pair is not None
        seed = _first(pair)
        first, second = (
            material.test_rows(seed[who])["confidence"].to_numpy() for who in ("first", "second")
        )
        axis.plot([FLOOR, 1], [FLOOR, 1], color="0.6", linewidth=0.7)
        x, y = (np.clip(1 - sure, FLOOR, 1) for sure in (second, first))
        axis.scatter(x, y, s=5, alpha=min(1.0, 0.3 + 100 / len(first)), linewidths=0,
                     color=style.color, rasterized=True)  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_axisbelow(True)
        axis.set_xlabel(f"1 − top probability, undefended (edge: {FLOOR:.0e} and less)")
        axis.set_ylabel(f"1 − top probability, {name}")
        axis.set_aspect("equal")
    made = {JOINT: figure}
    if len(material.data.info.shape) == 3:
        assert pairs[0] is not None
        made[PANEL] = _panel(_first(pairs[0]), material)
    return made


def _first(pair: Row) -> Row:
    """Return the first seed at which both were measured."""
    return next(seed for seed in pair["seeds"] if "apart" in seed)


def _panel(seed: Row, material: Material) -> Figure:
    """Return the images on which two models differ most, each way, with what both say.

    ``trained``: adversarially; ``plain``: the undefended network.
    """
    rows: list[tuple[str, list[Any]]] = [
        ("adversarially trained\nis surer", seed["first_surer"]),
        ("undefended\nis surer", seed["second_surer"]),
    ]
    width = max(1, *(len(samples) for _, samples in rows))
    figure, axes = new_grid(2, width, 2 * WIDTH, 0.62 * WIDTH)
    for number, axis in enumerate(axes):
        axis.set_axis_off()
        title, samples = rows[number // width]
        if number % width == 0:
            axis.set_axis_on()
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            axis.set_ylabel(title, fontsize=6)
            for spine in axis.spines.values():
                spine.set_visible(False)
        if number % width < len(samples):
            found = samples[number % width]
            axis.imshow(material.image(found["sample"]), cmap="gray", vmin=0, vmax=1,
                        interpolation="nearest")  # fmt: skip
            said = [
                f"{short} {found[who]['prediction']}: {percent(found[who]['confidence'])}"
                for short, who in (("trained", "first"), ("plain", "second"))
            ]
            axis.set_title(f"class {found['label']}\n" + "\n".join(said), fontsize=5)
    return figure
