"""``distillation.md``: each figure of defensive distillation beside what the papers published.

Papernot et al. 2016, arXiv 1511.04508; Carlini and Wagner 2016 and 2017. Published figures come
from ``leaderboard.papers``; ours from a run's rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.base.rows import CellRow, ModelRow, Results
from leaderboard.pages.autopsy import sections
from leaderboard.pages.markdown import page
from leaderboard.tables.cells import (
    Row,
    defense_labels,
    difference,
    model_key,
    ordered,
    paired,
    success,
)
from leaderboard.tables.numbers import (
    UNDEFINED,
    fixed,
    given,
    interval,
    number,
    percent,
    points,
    ratio,
    spanned,
)
from leaderboard.tables.papers import Published, Quantity, papers, published
from leaderboard.tables.sweeps import OUTPUTS, PLAIN, SWEPT, jsma_cells, temperature_of

READINGS = {
    "rho_adv": "smallest over the targets, correct sources",
    "rho_adv_paper": "smallest over the targets, all sources",
    "features_all": "mean over attempts",
    "features_success": "mean over successes",
}
"""How a mean share of changed features can be read; in the first three a failed attempt counts as
the whole budget, in the second a misclassified source as 0."""


def distillation(results: Results, environment: dict[str, Any]) -> str:
    """Return the page; ``environment`` as ``environment.json`` holds it."""
    report = Report(results)
    return page(
        "distillation.md.j2",
        environment=environment,
        headline=report.headline(),
        blocks=[block for block in report.blocks() if not block[1].empty],
        autopsy=sections(results),
        papers=papers(),
        figures=published_table(report.dataset),
    )


class Report:
    """One run's models in order, each with its JSMA rows by output and its label."""

    def __init__(self, results: Results) -> None:
        self.models = ordered(results.models)
        self.names = defense_labels(self.models)
        self.dataset = str(self.models[0]["dataset"]) if self.models else ""
        self.minimum = [
            row
            for row in results.cells
            if row["threat"]["budget"] is None and row["threat"]["norm"] != "none"
        ]
        threats = [row["threat"] for output in OUTPUTS for row in jsma_cells(results.cells, output)]
        self.cells = {
            output: {
                model_key(row): row
                for row in jsma_cells(results.cells, output)
                if row["threat"] == threats[0]
            }
            for output in OUTPUTS
        }

    def cell(self, model: ModelRow, output: str) -> CellRow | None:
        """Return the model's JSMA row on ``output``, or None."""
        return self.cells[output].get(model_key(model))

    def plain(self, model: ModelRow) -> ModelRow | None:
        """Return the undefended model of the same seed, or None."""
        same = [m for m in self.models if m["defense"] == PLAIN and m["seed"] == model["seed"]]
        return same[0] if same else None

    def blocks(self) -> list[tuple[str, pd.DataFrame, list[str]]]:
        """Return title, table and sentences of every part of the page."""
        return [
            ("Success against temperature", self.success(), []),
            ("Accuracy and confidence", self.accuracy(), self.accuracy_change()),
            ("Robustness ρ_adv, in its readings", self.robustness(), self.fit()),
            ("Sensitivity", self.sensitivity(), []),
            ("Logits", self.logits(), []),
            ("Generalisation and calibration", self.generalisation(), []),
            ("Minimum-norm attacks", self.minimum_norm(), []),
        ]

    def frame(self, columns: Sequence[Mapping[str, str]]) -> pd.DataFrame:
        """Return one line a model; a column that is undefined everywhere is left out."""
        lines = [{"defense": n, **c} for n, c in zip(self.names, columns, strict=True)]
        return _known(pd.DataFrame(lines))

    def success(self) -> pd.DataFrame:
        """Return success rates by output beside the paper's, and the paired difference."""
        return self.frame(
            [
                {
                    **{name: _success(self.cell(m, output)) for output, name in OUTPUTS.items()},
                    "log-odds against undefended": difference(paired(self.cell(m, "log_odds"))),
                    "paper, probabilities": self.paper("success_rate", m, output="probs"),
                    "paper, logits / T": self.paper("success_rate", m, output="logits / T"),
                }
                for m in self.models
            ]
        )

    def headline(self) -> list[str]:
        """Return the two halves of the claim, for the hottest distilled network of each seed."""
        found = []
        for seed in dict.fromkeys(model["seed"] for model in self.models):
            hot = [m for m in self.models if m["defense"] == SWEPT and m["seed"] == seed]
            if hot:
                found += self._halves(max(hot, key=lambda model: temperature_of(model) or 0.0))
        return found

    def _halves(self, model: ModelRow) -> list[str]:
        plain, name = self.plain(model), f"{SWEPT} at T = {given(temperature_of(model))}"
        if len({row["seed"] for row in self.models}) > 1:
            name = f"{name}, seed {model['seed']},"
        found = []
        for output, words in OUTPUTS.items():
            here = self.cell(model, output)
            there = self.cell(plain, output) if plain else None
            if output == "logits" or here is None or there is None:
                continue
            beside = difference(paired(here))
            told = f": {beside}, paired over the same attempts" if beside != UNDEFINED else ""
            found.append(
                f"JSMA on {words}: {success(here)} of the attempts on {name} succeed, beside "
                f"{success(there)} on the undefended network{told}."
            )
        return found

    def accuracy(self) -> pd.DataFrame:
        """Return accuracy, its change against undefended, and confidence, beside the paper's."""
        return self.frame(
            [
                {
                    "accuracy": interval(_get(m, "accuracy"), _get(m, "accuracy_ci"), 2),
                    "against undefended": _change(self.change(m)),
                    "paper, accuracy": self.paper("accuracy", m),
                    "confidence": percent(_get(m, "confidence")),
                    "paper, confidence": self.paper("confidence", m),
                }
                for m in self.models
            ]
        )

    def change(self, model: ModelRow) -> float | None:
        """Return the accuracy of ``model`` minus that of the undefended one of its seed."""
        plain = self.plain(model)
        if plain is None or plain is model:
            return None
        here, there = _get(model, "accuracy"), _get(plain, "accuracy")
        return None if here is None or there is None else here - there

    def accuracy_change(self) -> list[str]:
        """Return the largest change over all temperatures, beside the paper's bound."""
        changes = [
            (abs(change), change, name)
            for model, name in zip(self.models, self.names, strict=True)
            if model["defense"] == SWEPT and (change := self.change(model)) is not None
        ]
        bounds = published("accuracy_change", dataset=self.dataset)
        if not changes:
            return []
        size, change, name = max(changes)
        told = f"The largest change of accuracy by distillation is {_change(change)} ({name})"
        if not bounds or bounds[0].scaled is None:
            return [f"{told}."]
        kept = "within" if size <= bounds[0].scaled else "beyond"
        return [f"{told}, {kept} the paper's {figure_text(bounds[0])}."]

    def robustness(self) -> pd.DataFrame:
        """Return every reading on probabilities beside the paper's figure, and log-odds'."""
        columns = []
        for model in self.models:
            row, other = self.cell(model, "probs"), self.cell(model, "log_odds")
            columns.append(
                {
                    **{READINGS[key]: percent(_get(row, key), 2) for key in READINGS},
                    "paper": self.paper("rho_adv", model, output="probs"),
                    "fits best": self.nearest(model) or UNDEFINED,
                    "on log-odds, correct sources": percent(_get(other, "rho_adv"), 2),
                }
            )
        return self.frame(columns)

    def distances(self, model: ModelRow) -> dict[str, float]:
        """Return by reading how far ours lies from the paper's figure; empty without one."""
        row, figures = self.cell(model, "probs"), self.figures("rho_adv", model, output="probs")
        if row is None or not figures or figures[0].scaled is None:
            return {}
        known = figures[0].scaled
        ours = {key: _get(row, key) for key in READINGS}
        return {key: abs(value - known) for key, value in ours.items() if value is not None}

    def nearest(self, model: ModelRow) -> str | None:
        """Return the reading that comes nearest to the paper's figure, or None without one."""
        found = self.distances(model)
        return READINGS[min(found, key=lambda key: found[key])] if found else None

    def fit(self) -> list[str]:
        """Return which reading fits the published figures, by the mean distance to all of them."""
        every = [found for model in self.models if (found := self.distances(model))]
        if not every:
            return []
        means = {
            key: sum(found[key] for found in every) / len(every)
            for key in READINGS
            if all(key in found for found in every)
        }
        ranked = sorted(means, key=lambda key: means[key])
        each = "; ".join(f"{READINGS[key]}: {fixed(100 * means[key], 2)} points" for key in ranked)
        told = (
            f"Mean distance from the {len(every)} published figures that this run has rows for: "
            f"{each}. What fits: {READINGS[ranked[0]]}."
        )
        return [told]

    def sensitivity(self) -> pd.DataFrame:
        """Return counts of large and vanishing gradients per 10,000 images beside the paper's."""
        columns = []
        for model in self.models:
            found = _get(model, "sensitivity") or {}
            total = found.get("samples")
            columns.append(
                {
                    "images": str(total or UNDEFINED),
                    **{
                        f"{words}, per 10,000": fixed(_scaled(found.get(key), total), 0)
                        for key, words in _AMPLITUDES.items()
                    },
                    "paper, above 1e-2": self.paper("sensitivity_large", model),
                    "paper, below 1e-40": self.paper("sensitivity_tiny", model),
                    "median, log10": fixed(found.get("median_log10")),
                    "Jacobian norm, median log10": fixed(found.get("jacobian_median_log10")),
                }
            )
        return self.frame(columns)

    def logits(self) -> pd.DataFrame:
        """Return the scale of the logits, and its ratio to the undefended network's."""
        columns = []
        for model in self.models:
            plain = self.plain(model)
            here, there = _get(model, "mean_abs_logit"), _get(plain, "mean_abs_logit")
            columns.append(
                {
                    "mean |logit|": number(here, 4),
                    "times undefended": ratio(here, there),
                    "paper, mean |logit|": self.paper("mean_abs_logit", model),
                    "max logit": spanned(_get(model, "max_logit"), _get(model, "max_logit_ci"), 4),
                    "logit gap": spanned(_get(model, "logit_gap"), _get(model, "logit_gap_ci"), 4),
                }
            )
        return self.frame(columns)

    def generalisation(self) -> pd.DataFrame:
        """Return train and test accuracy, their gap, and the expected calibration error."""
        return self.frame(
            [
                {
                    "train accuracy": percent(_get(m, "train_accuracy"), 2),
                    "test accuracy": percent(_get(m, "accuracy"), 2),
                    "gap": _change(_get(m, "generalisation_gap")),
                    "calibration error": percent(_get(m, "ece")),
                }
                for m in self.models
            ]
        )

    def minimum_norm(self) -> pd.DataFrame:
        """Return the mean sizes of minimum-norm successes, features and pixels kept apart."""
        rows = ordered(self.minimum)
        lines = []
        for name, row in zip(defense_labels(rows), rows, strict=True):
            attack = row["attack_params"].get("attack", row["attack"])
            loss = row["attack_params"].get("loss")
            lines.append(
                {
                    "defense": name,
                    "attack": attack if loss is None else f"{attack}, {loss}",
                    "minimised": _MINIMISED[row["threat"]["norm"]],
                    "logits / T, T": given(row["attack_params"].get("temperature")),
                    "success": _success(row),
                    **{
                        words: number(_get(row, key), 4) + self._size(key, row, attack)
                        for key, words in _SIZES.items()
                    },
                }
            )
        return _known(pd.DataFrame(lines))

    def _size(self, key: str, row: Row, attack: str) -> str:
        quantity = _PAPER_SIZES.get(key)
        if quantity is None or not quantity.startswith(row["threat"]["norm"]):
            return ""
        named = _PAPER_ATTACKS[quantity] if attack == "carlini_wagner" else attack
        told = self.paper(quantity, row, attack=named)
        return "" if told == UNDEFINED else f" (paper {told})"

    def figures(self, quantity: Quantity, row: Row, **wanted: object) -> list[Published]:
        """Return what the papers say of a row's model, nothing for a data set that none has."""
        return [
            figure
            for figure in published(
                quantity, defense=row["defense"], temperature=temperature_of(row), **wanted
            )
            if figure.dataset == self.dataset
            or (figure.dataset is None and self.dataset in PAPERS_DATA)
        ]

    def paper(self, quantity: Quantity, row: Row, **wanted: object) -> str:
        """Return what the papers say of a row's model, with certainty, or a dash."""
        found = [figure_text(figure) for figure in self.figures(quantity, row, **wanted)]
        return " / ".join(found) or UNDEFINED


PAPERS_DATA = ("mnist", "cifar10")

_AMPLITUDES = {"large": "above 1e-2", "tiny": "below 1e-40", "float32_zero": "zero in float32"}

_SIZES = {
    "features_mean": "features changed, mean",
    "pixels_mean": "pixels changed, mean",
    "l2_mean": "L2, mean",
    "linf_mean": "L∞, mean",
}

_MINIMISED = {"l0": "L0", "l2": "L2", "linf": "L∞"}

_PAPER_SIZES: dict[str, Quantity] = {
    "pixels_mean": "l0_mean",
    "l2_mean": "l2_mean",
    "linf_mean": "linf_mean",
}


_PAPER_ATTACKS: dict[Quantity, str] = {
    "l0_mean": "CarliniL0Method",
    "l2_mean": "CarliniL2Method",
    "linf_mean": "CarliniLInfMethod",
}
"""Which of Carlini and Wagner's attacks a figure is of: ours is one with three norms."""


def published_table(dataset: str) -> pd.DataFrame:
    """Return every published figure on ``dataset``, or on none that is named, with its source."""
    return pd.DataFrame(
        {
            "figure": figure.quantity,
            "of": subject_text(figure),
            "published": figure_text(figure),
            "source": f"{figure.paper}, arXiv {figure.arxiv}",
            "note": figure.note or UNDEFINED,
        }
        for paper in papers()
        for figure in paper.figures
        if figure.dataset in (dataset, None)
    )


def subject_text(figure: Published) -> str:
    """Return what a published figure is of: defense, temperature, attack, output, budget."""
    parts = (
        figure.defense,
        None if figure.temperature is None else f"T = {given(figure.temperature)}",
        figure.attack,
        None if figure.output is None else f"on {figure.output}",
        None if figure.eps is None else f"ε = {given(figure.eps)}",
    )
    return ", ".join(part for part in parts if part) or UNDEFINED


def figure_text(figure: Published) -> str:
    """Return a published figure with how sure it is and where it stands."""
    if figure.value is None:
        return figure.certainty
    unit = {"percent": " %", "points": " points"}.get(figure.unit, "")
    more = f", {figure.place}" if figure.place else ""
    return f"{given(figure.value)}{unit} ({figure.certainty}{more})"


def _known(frame: pd.DataFrame) -> pd.DataFrame:
    known = frame.drop(columns=[name for name in frame if (frame[name] == UNDEFINED).all()])
    return known if len(known.columns) > 1 else pd.DataFrame()


def _get(row: Row | None, key: str) -> Any:
    return None if row is None else row.get(key)


def _success(row: CellRow | None) -> str:
    return UNDEFINED if row is None else success(row)


def _change(value: float | None) -> str:
    return points(value, digits=2, unit=" points")


def _scaled(count: int | None, total: int | None) -> float | None:
    return None if count is None or not total else 1e4 * count / total
