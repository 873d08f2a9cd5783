"""Draw the cost of JSMA against d and batch: plot.py RESULTS.json OUT.png."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

STYLES = {"log_odds": ("o", "-", "0.0"), "logits": ("s", "--", "0.45")}
PANELS = (
    ("d", "features d (64 rows)", "test_cost_against_d["),
    ("batch", "rows (d = 784)", "test_cost_against_batch["),
)


def draw(results: dict[str, Any], out: Path) -> None:
    """Draw one log-log panel for each axis."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True, layout="constrained")
    for axis, (key, label, prefix) in zip(axes, PANELS, strict=True):
        rows = [b["extra_info"] for b in results["benchmarks"] if b["name"].startswith(prefix)]
        for output, (marker, line, colour) in STYLES.items():
            points = sorted(
                (r[key], r["microseconds_a_row_and_step"]) for r in rows if r["output"] == output
            )
            axis.loglog(
                *zip(*points, strict=True),
                marker=marker,
                linestyle=line,
                color=colour,
                label=output,
            )
        axis.set_xlabel(label)
        axis.grid(visible=True, which="major", linewidth=0.3)
    axes[0].set_ylabel("µs a row and step")
    axes[0].legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
