"""Hold the worst cases of a run beside those of AutoAttack on the same weights and sources.

Croce and Hein 2020, arXiv 2003.01690, the version "standard": APGD on the cross-entropy, APGD-T and
FAB-T towards nine classes, 100 steps each, and Square with 5,000 queries, each on what those before
it left. The parts are torchattacks'; its own ``AutoAttack`` takes 10 steps where the paper takes
100. An input counts where it keeps to box and budget and the model, asked again in batches of
another size, does not answer with the label. What stands in the JSON file already, for the same
weights and budget, is not attacked again.

Usage: autoattack.py RUN JSON [PAGE]; --device cuda on a GPU
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from bench.base.files import default_cache, read_json, write_json, write_text
from bench.base.rows import SeedRow
from bench.base.types import Document
from bench.evidence.cells import read_trials
from bench.evidence.finished_run import FinishedRun, read_run
from bench.measure.arithmetic import make_exact
from bench.measure.cell import Sources
from bench.measure.query import answer, ask, distances
from bench.measure.watch import Watch
from bench.plan.panel import Panel
from bench.plugins import discovery as doors
from bench.plugins.contracts import DataSettings
from bench.runner.rebuild import Rebuilder
from bench.runner.task import Settings
from bench.verdict.survivors import Subject
from leaderboard.pages.markdown import table
from leaderboard.tables.cells import labels

Member = Callable[[Tensor, Tensor], Tensor]

NORMS = {"linf": "Linf", "l2": "L2"}
BEGIN, END = "<!-- autoattack -->", "<!-- /autoattack -->"


def members(model: nn.Module, norm: str, eps: float, classes: int) -> dict[str, Member]:
    """Return the parts of AutoAttack, in their order."""
    from torchattacks import APGD, APGDT, FAB, Square

    common: dict[str, Any] = {"norm": NORMS[norm], "eps": eps, "seed": 0}
    every: dict[str, Any] = {**common, "n_classes": classes, "steps": 100}
    return {
        "apgd-ce": APGD(model, loss="ce", steps=100, **common),
        "apgd-t": APGDT(model, **every),
        "fab-t": FAB(model, multi_targeted=True, **every),
        "square": Square(model, n_queries=5000, **common),
    }


@dataclass(frozen=True)
class Case:
    """One fitted model at one budget of a panel; ``row``: what the run says of it there."""

    defense: str
    row: SeedRow
    budget: float
    subject: Subject
    sources: Sources


def cases(run: FinishedRun, models: Rebuilder) -> Iterator[Case]:
    """Yield every model at every budget under the norms that AutoAttack knows."""
    trials, cell = read_trials(run), run.plan.of("cell")[0]
    fits = run.fits()
    panels: dict[str, Panel] = {panel.norm: panel for panel in run.plan.matrix.panel}
    verdicts = run.results.verdicts
    for verdict, name in zip(verdicts, labels(verdicts, "defense"), strict=True):
        panel = panels[verdict["threat"]["norm"]]
        for row in verdict["seeds"] if panel.norm in NORMS else ():
            data = models.data(fits[row["model"]].document["dataset"])
            sources = models.sources(cell.document, data)
            ids = sources.ids.cpu().numpy()
            subject = Subject(panel, data.info, ids, trials[row["model"]])
            yield Case(name, row, verdict["at"], subject, sources)


def attack(models: Rebuilder, case: Case) -> Document:
    """Run AutoAttack on one case; return which sample ids each part broke, and its passes."""
    info, sources, fit = case.subject.info, case.sources, case.row["model"]
    threat = case.subject.threat(case.budget)
    model = models.load_model(fit)[1]

    def right(x: Tensor, y: Tensor) -> Tensor:
        return answer(ask(models.load_model(fit)[1], x, info.classes)) == y

    standing = right(sources.x, sources.y).nonzero().squeeze(1)
    broken, passes, start = {}, {}, time.perf_counter()
    parts = members(model, case.subject.panel.norm, case.budget, info.classes)
    for name, member in parts.items():
        if not len(standing):
            break
        x, y = sources.x[standing], sources.y[standing]
        watch = Watch(sources.x, sources.y, standing, threat, info.shape)
        with watch.counted(model):
            x_adv = member(x, y).detach()
        measured = distances(x, x_adv)
        kept = measured.in_box & measured.within(threat, info.shape)
        left = ~kept | right(x_adv, y)
        broken[name] = sources.ids[standing[~left]].tolist()
        passes[name] = watch.forwards + watch.backwards
        standing = standing[left]
    return {
        "survivors": sources.ids[standing].tolist(),
        "sources": len(sources.ids),
        "broken": broken,
        "passes": passes,
        "seconds": round(time.perf_counter() - start, 2),
    }


def compare(case: Case, found: Document) -> Document:
    """Return one row: W of ours and of AutoAttack, who broke what ours missed, passes a source."""
    n, own = found["sources"], case.subject.ids[case.subject.survivors(case.budget)].tolist()
    missed = set(own) - set(found["survivors"])
    return {
        "defense": case.defense,
        "seed": case.row["seed"],
        "norm": case.subject.panel.norm,
        "budget": case.budget,
        "sources": n,
        "ours": len(own) / n,
        "autoattack": len(found["survivors"]) / n,
        "difference": round((len(own) - len(found["survivors"])) / n, 6),
        "missed": {name: sorted(missed & set(broken)) for name, broken in found["broken"].items()},
        "passes": ((case.row["forwards"] or 0) + (case.row["backwards"] or 0)) / n,
        "autoattack_passes": sum(found["passes"].values()) / n,
    }


def summary(rows: list[Document]) -> pd.DataFrame:
    """Return one line a defense and norm: W and its difference over seeds and budgets, passes."""
    frame = pd.DataFrame(rows)
    lines = []
    groups = [*frame.groupby(["norm", "defense"], sort=False), (("all", "all"), frame)]
    for (norm, defense), part in groups:
        points = 100 * part["difference"]
        lines.append(
            {
                "defense": defense,
                "norm": norm,
                "pairs": len(part),
                "W, ours": f"{100 * part['ours'].mean():.1f} %",
                "W, AutoAttack": f"{100 * part['autoattack'].mean():.1f} %",
                "difference, points": (
                    f"{points.mean():+.2f} ({points.min():+.0f} to {points.max():+.0f})"
                ),
                "passes a source, ours": f"{part['passes'].mean():,.0f}",
                "AutoAttack": f"{part['autoattack_passes'].mean():,.0f}",
            }
        )
    return pd.DataFrame(lines)


def main(arguments: argparse.Namespace) -> None:
    doors.load_plugins(tuple(arguments.plugin))
    make_exact()
    torch.set_num_threads(1)
    root = arguments.run.absolute()
    run = read_run(root)
    settings = Settings(
        root, default_cache(), DataSettings(arguments.data_dir, default_cache()), arguments.device
    )
    models = Rebuilder(settings)
    kept: dict[str, Document] = {}
    if arguments.json.exists():
        kept = read_json(arguments.json)["autoattack"]
    rows = []
    for case in cases(run, models):
        weights = read_json(run.folder.model(case.row["model"]))["weights"]
        key = f"{weights[:16]} {case.subject.panel.norm} {case.budget:g}"
        if key not in kept:
            kept[key] = attack(models, case)
        rows.append(compare(case, kept[key]))
        sys.stderr.write(f"{rows[-1]}\n")
        libraries = {name: version(name) for name in ("torch", "torchattacks")}
        told = {"libraries": libraries, "rows": rows, "autoattack": kept}
        write_json(arguments.json, told)
    if arguments.page is not None:
        page = Path(arguments.page)
        text = page.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        write_text(page, f"{head}{BEGIN}\n\n{table(summary(rows))}\n\n{END}{rest.split(END)[1]}")
    sys.stderr.write(f"{summary(rows).to_string()}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--plugin", action="append", default=[])
    main(parser.parse_args())
