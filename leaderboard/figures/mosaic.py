"""A panel of adversarial images, source class down and target class across, as in the paper.

Papernot et al. 2016, arXiv 1511.07528, figure 1. It is made of a run's stored inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.base.rows import Results
from bench.evidence.cells import Evidence
from bench.evidence.folder import RunFolder
from bench.plugins.data import Dataset
from leaderboard.figures.style import WIDTH, new_figure, styled
from leaderboard.tables.cells import Row
from leaderboard.tables.sweeps import PLAIN, SWEPT, jsma_cells, temperature_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = npt.NDArray[Any]

UP, DOWN = (0.835, 0.369, 0.0), (0.0, 0.447, 0.698)
"""Colours of a feature that was raised, and lowered (Okabe and Ito 2008)."""

GAP = 2
"""Pixels between two images."""


def panels(results: Results, folder: RunFolder, data: Dataset) -> dict[str, Figure]:
    """Return panels of the undefended and the hottest distilled network, by name.

    Under JSMA on log-odds, and on probabilities for the distilled one: the same weights twice.
    Only image data sets have any.
    """
    if len(data.info.shape) != 3:
        return {}
    seed = min((row["seed"] for row in results.cells), default=0)
    made = {}
    for output in ("log_odds", "probs"):
        rows = [
            row
            for row in jsma_cells(results.cells, output)
            if row["status"] == "done" and row["seed"] == seed
        ]
        plain = [row for row in rows if row["defense"] == PLAIN and output == "log_odds"]
        hot = [row for row in rows if row["defense"] == SWEPT]
        chosen = plain[:1] + sorted(hot, key=lambda row: temperature_of(row) or 0.0)[-1:]
        for row in chosen:
            heat = temperature_of(row)
            name = row["defense"] if heat is None else f"{row['defense']}-{heat:g}"
            made[f"panel-{name}-{output}"] = panel(*stored(row, folder, data), data.info.classes)
    return made


def stored(
    row: Row, folder: RunFolder, data: Dataset
) -> tuple[dict[int, Image], dict[tuple[int, int], tuple[Image, bool]]]:
    """Return the originals of a cell by class, and its (image, success) by source and target.

    One source a class: the first of it, in the order of the cell, that was attacked.
    """
    cell = Evidence(folder, "cell", row["id"])
    records, x_adv = cell.records(), cell.inputs()
    attacked = records[(records["status"] == "attacked").to_numpy()]
    first = attacked.groupby("label")["sample_id"].first()
    originals = {
        int(label): data.test.take(slice(int(i), int(i) + 1)).x[0].cpu().numpy()
        for label, i in zip(first.index.to_list(), first, strict=True)
    }
    mine = attacked[attacked["sample_id"].isin(first)]
    found = {
        (int(label), int(target)): (x_adv[int(place)].numpy(), bool(success))
        for place, label, target, success in zip(
            mine.index, mine["label"], mine["target"], mine["success"], strict=True
        )
    }
    return originals, found


@styled
def panel(
    originals: Mapping[int, Image],
    adversarial: Mapping[tuple[int, int], tuple[Image, bool]],
    classes: int,
) -> Figure:
    """Return the panel: originals on the diagonal, changed features in colour, failures crossed.

    ``originals``: (channels, height, width) in [0, 1] by class; ``adversarial``: such an image and
    whether the attempt succeeded, by source and target class. What is missing stays blank.
    """
    _, height, width = next(iter(originals.values())).shape
    tall, wide = height + GAP, width + GAP
    mosaic = np.ones((classes * tall - GAP, classes * wide - GAP, 3))
    figure, axes = new_figure(WIDTH, WIDTH)
    for source, clean in originals.items():
        for target in range(classes):
            image, success = adversarial.get((source, target), (clean, True))
            if target != source and (source, target) not in adversarial:
                continue
            top, left = source * tall, target * wide
            mosaic[top : top + height, left : left + width] = marked(clean, image)
            if not success:
                for color, size in (("black", 2.4), ("white", 1.0)):
                    axes.plot(left + 0.86 * width, top + 0.14 * height, marker="x", color=color,
                              markersize=3.5, markeredgewidth=size)  # fmt: skip
    axes.imshow(mosaic, interpolation="nearest")
    names = [str(label) for label in range(classes)]
    axes.set_xticks([wide * i + width / 2 for i in range(classes)], names)
    axes.set_yticks([tall * i + height / 2 for i in range(classes)], names)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("target class (× the attempt failed)")
    axes.set_ylabel("source class")
    return figure


def marked(clean: Image, adversarial: Image) -> Image:
    """Return ``adversarial`` as (height, width, 3) with each changed pixel in colour.

    Both (channels, height, width) in [0, 1]. The colour says whether the channels rose together.
    """
    shown = np.broadcast_to(adversarial, (3, *adversarial.shape[1:])).transpose(1, 2, 0).copy()
    change = (adversarial.astype(float) - clean.astype(float)).sum(axis=0)
    changed = (adversarial != clean).any(axis=0)
    shown[changed & (change >= 0)] = UP
    shown[changed & (change < 0)] = DOWN
    return shown
