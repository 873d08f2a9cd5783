"""Success against the scale of the logits over several runs.

``python -m leaderboard.figures.study OUT RUN…``: each RUN is a results folder
or a published one; ``scale.pdf`` and ``scale.png`` go to OUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.base.files import read_json
from bench.base.types import UserError
from bench.evidence.finished_run import read_results
from leaderboard.figures.style import save
from leaderboard.figures.temperature import scale


def study(out: Path, runs: Sequence[Path]) -> None:
    """Draw the figure of ``runs``, each under its recipe; UserError where nothing can be drawn."""
    recipes = [str(read_json(run / "environment.json")["recipe"]) for run in runs]
    found = dict(zip(recipes, (read_results(run) for run in runs), strict=True))
    figure = scale(found)
    if figure is None:
        raise UserError("no run holds JSMA on probabilities or on log-odds: nothing to draw")
    save({"scale": figure}, out)


if __name__ == "__main__":
    study(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
