"""Measure every flag on networks of known truth, and write the tables of docs/verdict.md.

``python tests/calibration/calibrate.py --seeds 0,1,2,3,4`` from the repository's root (``make
calibrate``) adds what is missing to docs/calibration.json, a line a figure, and writes the page
from it; ``--page`` only writes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench.base.files import write_text  # noqa: E402 (found by the line above)
from bench.base.types import Norm, Spec  # noqa: E402
from bench.measure.cell import Sources  # noqa: E402
from bench.plugins import registry  # noqa: E402
from bench.plugins.contracts import DataSettings, Defense  # noqa: E402
from bench.training.fit import build  # noqa: E402
from bench.verdict.paired import agresti_min, pairs  # noqa: E402
from tests.calibration.measure import Case, Figure, of_model, of_panel  # noqa: E402
from tests.calibration.page import TWINS, insert, tables  # noqa: E402
from tests.calibration.population import (  # noqa: E402
    DISHONEST_SEEDS,
    PANEL_SEEDS,
    SEEDS,
    Kind,
    population,
)
from tests.calibration.power import power_table  # noqa: E402
from tests.cheats.truth import Fits, forget  # noqa: E402

PAGE, FIGURES = ROOT / "docs" / "verdict.md", ROOT / "docs" / "calibration.json"


def case(fits: Fits, kind: Kind, sources: int) -> Case:
    """Return a fitted model as a run would have it."""
    defense = registry.DEFENSES.make(Spec(kind.name, kind.params))

    def fitted(need: Defense | Spec) -> nn.Module:
        made = registry.DEFENSES.make(need) if isinstance(need, Spec) else need
        return fits(made, registry.DEFENSES.name_of(made))

    weights = fits(defense, kind.name).state_dict()
    needs = {role: fitted(need) for role, need in defense.requires().items()}

    def anew() -> nn.Module:
        model = build(defense, fits.network, fits.data.info, needs, torch.device("cpu"))
        model.load_state_dict(weights)
        return model.requires_grad_(False)

    ids = fits.data.sources(sources, 0)
    test = fits.data.test
    return Case(defense, anew, fitted, fits.data, Sources(ids, test.x[ids], test.y[ids], 0))


def measure(
    fits: Fits, kind: Kind, sources: int, due: Collection[Norm | None], undefended: dict[str, Any]
) -> Iterable[Figure]:
    """Yield the figures of one kind at one seed.

    ``due``: the norms whose panels are run, and None for the model itself; ``undefended``: what
    survives on the undefended network, by norm.
    """
    forget()
    torch.manual_seed(fits.seed)
    subject = case(fits, kind, sources)
    if None in due:
        yield from of_model(subject)
    for norm in [norm for norm in kind.norms if norm in due]:
        figures, survivors = of_panel(subject, norm)
        yield from figures
        if kind.name == "undefended":
            undefended[norm] = survivors
        if kind.name == "twin" and norm in undefended:
            low, _ = agresti_min(pairs(survivors, undefended[norm]))
            yield Figure(TWINS, norm, low, None)


def published_twins() -> list[float]:
    """Return the lower ends of Δ of the twin in the published run ``verdict``, closers and all."""
    rows = json.loads((ROOT / "leaderboard/published/verdict-digits/verdicts.json").read_text())
    seeds = [seed for row in rows if row["defense"] == "twin" for seed in row["seeds"]]
    return [seed["delta_ci"][0] for seed in seeds if seed["delta_ci"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--sources", type=int, default=60)
    parser.add_argument("--only", default="", help="part of a kind's label")
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    parser.add_argument("--models", action="store_true", help="no panels")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stored: Path = options.figures
    rows: list[dict[str, Any]] = json.loads(stored.read_text()) if stored.exists() else []
    kinds = population()
    data = registry.DATASETS.make(Spec("digits", {})).load(DataSettings())
    for seed in [] if options.page else [int(text) for text in options.seeds.split(",")]:
        fits, undefended = Fits(data, seed), {}
        for kind in kinds:
            known = {r["norm"] for r in rows if (r["kind"], r["seed"]) == (kind.label, seed)}
            planned = seed < (SEEDS if kind.honest else DISHONEST_SEEDS)
            panels = kind.norms if seed < PANEL_SEEDS and not options.models else ()
            due = {None, *panels} - known
            if not planned or not due or options.only not in kind.label:
                continue
            start = time.perf_counter()
            found = list(measure(fits, kind, options.sources, due, undefended))
            rows += [{"kind": kind.label, "seed": seed, **asdict(figure)} for figure in found]
            lines = ",\n".join(json.dumps(row) for row in rows)
            write_text(stored, f"[\n{lines}\n]\n")
            raised = sorted({figure.flag for figure in found if figure.raised})
            looked = {figure.flag for figure in found}
            missed = sorted(looked & set(kind.own) - set(raised))
            told = f"raised {raised}" + (f", MISSED {missed}" if missed else "")
            print(f"{seed} {kind.label}: {told}, {time.perf_counter() - start:.0f} s", flush=True)  # noqa: T201
    if stored == FIGURES:
        made = tables(rows, kinds, published_twins())
        page = insert(PAGE.read_text(encoding="utf-8"), "calibration", made)
        write_text(PAGE, insert(page, "power", power_table()))


if __name__ == "__main__":
    main()
