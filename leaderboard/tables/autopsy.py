"""The autopsy: one attack on the same weights, differentiated in several ways, and what follows.

In exact arithmetic JSMA on probabilities and on log-odds is one attack, for dF_t = F_t (1 - F_t)
dlog-odds_t and the factor is positive; so is the fast gradient's sign on the cross-entropy, for
dlog F_y = (1 - F_y) dlog-odds_y. Success that only log-odds finds was therefore hidden by
floating point. (Logits are another attack, and logits divided by a number are too.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.base.rows import CellRow, ModelRow, Results
from bench.base.types import ThreatModel
from bench.verdict.panel_flags import NET
from bench.verdict.rule import MARGIN
from leaderboard.tables.cells import defense_labels, model_key, ordered, paired
from leaderboard.tables.sweeps import View, view_of

ATTACKS = {"jsma": "probs", "fgsm": "deployed"}
"""The attacks that can be opened up, and what each differentiates in a deployed model."""

HIDDEN = NET
"""Points that log-odds must gain before they count as hidden: honest networks lose at most 7 to
the choice of the gradient attack (docs/verdict.md)."""

BENEATH = MARGIN
"""Points below the undefended network that count as robustness: two networks that differ in their
seed alone lie up to 7 points apart (docs/verdict.md)."""

MOST = 0.5
"""Share of the failed attempts, or of the gradients, from which a cause is called the cause."""

ALIGNED = 0.9
"""Median cosine with the exact gradient below which a gradient points elsewhere
(docs/verdict.md)."""

Finding = Literal[
    "underflow", "cancellation", "unexplained", "partly", "open", "nothing hidden", "few attempts",
    "not enough cells",
]  # fmt: skip

Remainder = Literal["equal", "close", "above", "below", "wide"]


@dataclass(frozen=True)
class Autopsy:
    """One model under one attack and threat model, by what the attack differentiates.

    ``views``: the rows by (output, precision, temperature); ``model``: its row of ``models.json``,
    None where there is none; ``label``: the defense by what tells it from the others.
    """

    label: str
    views: dict[View, CellRow]
    model: ModelRow | None

    @property
    def row(self) -> CellRow:
        """A row of the group: who met whom."""
        return next(iter(self.views.values()))

    @property
    def title(self) -> str:
        """The attack and its threat model in words."""
        return f"{self.row['attack']}, {ThreatModel(**self.row['threat'])}"

    @property
    def targeted(self) -> bool:
        """Whether the attack has targets."""
        return bool(self.row["attack_params"].get("targets", "all") != "untargeted")

    @property
    def deployed(self) -> CellRow | None:
        """The naive attack: on what is deployed, in float32."""
        return self.views.get((ATTACKS[self.row["attack"]], "float32", 1.0))

    @property
    def double(self) -> CellRow | None:
        """The naive attack in float64."""
        return self.views.get((ATTACKS[self.row["attack"]], "float64", 1.0))

    @property
    def log_odds(self) -> CellRow | None:
        """The attack on log-odds."""
        return self.views.get(("log_odds", "float32", 1.0))

    @property
    def logits(self) -> CellRow | None:
        """The attack on logits."""
        return self.views.get(("logits", "float32", 1.0))

    @property
    def divided(self) -> dict[float, CellRow]:
        """The naive attack by the number that divides the logits, ascending, 1 included."""
        naive = ATTACKS[self.row["attack"]]
        found = {
            temperature: row
            for (output, precision, temperature), row in self.views.items()
            if output == naive and precision == "float32"
        }
        return dict(sorted(found.items()))

    @property
    def hidden(self) -> float | None:
        """Success on log-odds minus that of the naive attack: both are one attack on paper."""
        naive, exact = rate(self.deployed), rate(self.log_odds)
        return None if naive is None or exact is None else exact - naive

    @property
    def stuck(self) -> float | None:
        """Share of the naive attempts that ended with no admissible pair."""
        return share_stuck(self.deployed)

    @property
    def zeros(self) -> float | None:
        """Share of the naive attack's gradients that were exactly zero everywhere.

        That of the attack's own steps where it counts them; otherwise of the loss on the sources.
        """
        own = None if self.deployed is None else self.deployed.get("zero_gradient_share")
        return own if own is not None or self.targeted else _gradients(self).get("zero_share")

    @property
    def beneath(self) -> tuple[float, float, float] | None:
        """Success on log-odds minus the undefended network's, paired, with its 95 % interval."""
        return paired(self.log_odds)

    @property
    def remainder(self) -> Remainder | None:
        """Where success on log-odds lies against the undefended network; None without one.

        By the paired 95 % interval: ``below``: all of it under -``BENEATH``; ``wide``: on both
        sides of that; ``above``: over 0; ``equal``: on both sides of 0; ``close``: between.
        """
        if self.beneath is None:
            return None
        _, low, high = self.beneath
        if low < -BENEATH:
            return "below" if high < -BENEATH else "wide"
        if low > 0:
            return "above"
        return "equal" if high >= 0 else "close"

    @property
    def finding(self) -> Finding:
        """What the numbers support; see ``find``."""
        return find(self)


def find(autopsy: Autopsy) -> Finding:
    """Return the finding, by rules in this order.

    1. ``not enough cells``: no success rate of the naive attack or of log-odds.
    2. ``nothing hidden``: log-odds gains less than ``HIDDEN``.
    3. ``few attempts``: it gains more and the two 95 % intervals meet.
    4. ``partly``: what log-odds finds is ``below`` the undefended network's (``remainder``).
    5. ``open``: it is held against no undefended network, or the interval is too ``wide``.
    6. No robustness beneath: ``underflow`` or ``cancellation`` by ``cause``, or ``unexplained``.
    """
    naive, exact, hidden = autopsy.deployed, autopsy.log_odds, autopsy.hidden
    if naive is None or exact is None or hidden is None:
        return "not enough cells"
    if hidden < HIDDEN:
        return "nothing hidden"
    assert naive["success_ci"] is not None  # the rates are known, hidden says
    assert exact["success_ci"] is not None
    if naive["success_ci"][1] >= exact["success_ci"][0]:
        return "few attempts"
    if autopsy.remainder == "below":
        return "partly"
    return "open" if autopsy.remainder in (None, "wide") else cause(autopsy)


def cause(autopsy: Autopsy) -> Literal["underflow", "cancellation", "unexplained"]:
    """Return why a naive attack fails where the same attack on log-odds succeeds.

    ``underflow``, for an attack with targets: at least ``MOST`` of its failures ended with no
    admissible pair, or of its gradients were exactly zero: F_t itself is zero. ``cancellation``,
    for one without: its gradient is zero or points elsewhere than the exact one (median cosine
    below ``ALIGNED``): 1 - F_y is lost.
    """
    zeros = autopsy.zeros or 0.0
    if autopsy.targeted:
        stuck = share_stuck(autopsy.deployed, of_failed=True) or 0.0
        return "underflow" if max(stuck, zeros) >= MOST else "unexplained"
    cosine = _gradients(autopsy).get("cosine_median")
    elsewhere = cosine is not None and cosine < ALIGNED
    return "cancellation" if elsewhere or zeros >= MOST else "unexplained"


def _gradients(autopsy: Autopsy) -> Mapping[str, Any]:
    return (autopsy.model and autopsy.model.get("gradients")) or {}


def rate(row: CellRow | None) -> float | None:
    """Return the success rate of a cell, None where there is none."""
    return None if row is None else row["success_rate"]


def share_stuck(row: CellRow | None, *, of_failed: bool = False) -> float | None:
    """Return the share of a cell's attempts, or failed ones, with no admissible pair at the end."""
    if not row or not row["stop_reasons"] or not row["attempts"]:
        return None
    reasons, attempts = row["stop_reasons"], row["attempts"]
    total = attempts - (row["successes"] or 0) if of_failed else attempts
    return reasons.get("no_admissible_pair", 0) / total if total else None


def autopsies(results: Results) -> list[Autopsy]:
    """Return one for every model, attack and threat model that has the cells it takes.

    Those are the naive attack and the one on log-odds; rows of other attacks are passed over.
    """
    rows = ordered([row for row in results.cells if row["attack"] in ATTACKS])
    models = {model_key(row): row for row in results.models}
    groups: dict[str, dict[View, CellRow]] = {}
    names: dict[str, str] = {}
    for row, label in zip(rows, defense_labels(rows), strict=True):
        key = repr((model_key(row), row["attack"], row["threat"], _rest(row)))
        groups.setdefault(key, {})[view_of(row)] = row
        names[key] = label
    found = [
        Autopsy(names[key], views, models.get(model_key(next(iter(views.values())))))
        for key, views in groups.items()
    ]
    return [item for item in found if item.deployed is not None and item.log_odds is not None]


def _rest(row: CellRow) -> list[tuple[str, str]]:
    views = ("output", "precision", "temperature")
    return sorted((k, repr(v)) for k, v in row["attack_params"].items() if k not in views)
