"""What attacks of one panel on one model say of one another: the flags that need siblings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.base.types import Flag, Measured, Norm, Suspicions
from bench.evidence.records import Ids, Mask
from bench.plan.panel import Role
from bench.verdict.paired import mcnemar, pairs

NET = 0.1
P_VALUE = 0.001
"""By how many sources, net, and how surely one attack must beat another.

Two attacks of one kind differ by a few points on honest networks: see ``calibration.json``.
"""

BLACK_BOX_NET = 0.3
"""NET for a black box under L0: on honest networks it beats a greedy JSMA, and σ-zero with few
steps, by more than NET at some budgets (by 0.28 at two features of a PGD-trained network)."""

UNBOUNDED_LEFT = 0.05
"""What an attack may leave that may change everything."""


@dataclass(frozen=True)
class Sibling:
    """What one attack of the panel did to one model within the budget.

    ``broken``: (sources,) bool, the correctly classified sources that it broke, None where the
    cell is not done; ``gradients``: whether it follows the model's gradients.
    """

    role: Role
    name: str
    broken: Mask | None
    gradients: bool


@dataclass(frozen=True)
class Siblings:
    """The panel on one model at one budget. ``ids``, ``correct``: (sources,), in one order."""

    norm: Norm
    ids: Ids
    correct: Mask
    members: Sequence[Sibling]

    def of(self, *roles: Role) -> list[Sibling]:
        """Return the members that are done and have one of ``roles``."""
        return [m for m in self.members if m.role in roles and m.broken is not None]


def panel_flags(panel: Siblings, missing: Sequence[str]) -> Suspicions:
    """Return what the siblings say of one another.

    ``missing``: the panel's cells that failed, were skipped or changed nothing, in words. Under
    L0 JSMA's two outputs are compared, and a black box with the best gradient attack, for there
    greedy attacks are beaten on honest networks too; elsewhere the naive attack with all others,
    and the black box with the best gradient attack by the smaller margin.
    """
    checks = (
        [_log_odds_beats_probs(panel), _black_box(panel)]
        if panel.norm == "l0"
        else [_naive_beaten(panel), _black_box(panel), _unbounded(panel)]
    )
    found = sum(checks, Suspicions())
    if not missing:
        return found
    flag = Flag(
        "panel-incomplete", "warning", len(missing), 0, "; ".join(missing),
        "mend or replace what failed and run again: the same command resumes",
    )  # fmt: skip
    return found + Suspicions((flag,))


def _naive_beaten(panel: Siblings) -> Suspicions:
    # Not the attacks with another loss, nor the black box, which is held against the best gradient
    # below: on honest networks either gains up to eleven points over the cross-entropy.
    others = panel.of("log-odds", "transfer", "noise")
    return _beaten("naive-beaten", panel, panel.of("naive"), others)


def _log_odds_beats_probs(panel: Siblings) -> Suspicions:
    return _beaten("log-odds-beats-probs", panel, panel.of("naive"), panel.of("log-odds"))


def _beaten(
    name: str, panel: Siblings, naive: Sequence[Sibling], others: Sequence[Sibling]
) -> Suspicions:
    """Return a flag where one of ``others`` beats the naive attack: p and net, both."""
    if not naive or not others:
        return _absent(name, "needs the naive attack and another of the panel, done")
    first = naive[0]
    gains = [(_net(other, first), _p_value(other, first)) for other in others]
    significant = [
        other for other, (net, p) in zip(others, gains, strict=True) if net >= NET and p < P_VALUE
    ]
    most, p = max(gains)
    measured = (Measured(name, most, bool(significant), p),)
    if not significant:
        return Suspicions(measured=measured)
    best = max(significant, key=lambda other: _net(other, first))
    net = _net(best, first)
    flag = Flag(
            name, "warning", net, NET,
            f"{best.name} breaks {net:.0%} of the sources more than {first.name} does "
            f"(one-sided McNemar p = {_p_value(best, first):.1g})",
            "do not trust the naive figure: the gradient of the deployed output is masked",
            _only(panel, best, first),
    )  # fmt: skip
    return Suspicions((flag,), measured=measured)


def _black_box(panel: Siblings) -> Suspicions:
    name = "black-box-beats-gradient"
    boxes = panel.of("black-box")
    followers = [m for m in panel.of("naive", "log-odds", "strong") if m.gradients]
    if not boxes or not followers:
        return _absent(name, "needs a black box and a gradient attack of the panel, done")
    best = max(followers, key=lambda member: int(_broken(member).sum()))
    box = max(boxes, key=lambda member: int(_broken(member).sum()))
    net = _net(box, best)
    least = BLACK_BOX_NET if panel.norm == "l0" else NET
    measured = (Measured(name, net, net >= least, _p_value(box, best)),)
    if net < least:
        return Suspicions(measured=measured)
    flag = Flag(
            name, "warning", net, least,
            f"{box.name}, which sees no gradient, breaks {net:.0%} of the sources more than "
            f"{best.name} does",
            "look for what stops the gradient, and attack a surrogate without it",
            _only(panel, box, best),
    )  # fmt: skip
    return Suspicions((flag,), measured=measured)


def _unbounded(panel: Siblings) -> Suspicions:
    found = panel.of("unbounded")
    if not found:
        return _absent("unbounded-budget", "needs the panel's unbounded attack, done")
    left = panel.correct.copy()
    for member in found:
        left &= ~_broken(member)
    share = float(left.mean()) if len(left) else 0.0
    measured = (Measured("unbounded-budget", share, share > UNBOUNDED_LEFT),)
    if share <= UNBOUNDED_LEFT:
        return Suspicions(measured=measured)
    flag = Flag(
            "unbounded-budget", "warning", share, UNBOUNDED_LEFT,
            f"{found[0].name} may change everything and leaves an accuracy of {share:.0%}",
            "look for what stops the gradient: any image can be reached within this budget",
            _samples(panel.ids[left]),
    )  # fmt: skip
    return Suspicions((flag,), measured=measured)


def _absent(name: str, reason: str) -> Suspicions:
    return Suspicions((), {name: reason})


def _broken(member: Sibling) -> Mask:
    assert member.broken is not None  # Siblings.of
    return member.broken


def _net(first: Sibling, second: Sibling) -> float:
    return pairs(_broken(first), _broken(second)).delta


def _p_value(first: Sibling, second: Sibling) -> float:
    table = pairs(_broken(first), _broken(second))
    return mcnemar(int(table.only_first), int(table.only_second))


def _only(panel: Siblings, first: Sibling, second: Sibling) -> tuple[int, ...]:
    return _samples(panel.ids[_broken(first) & ~_broken(second)])


def _samples(ids: Iterable[np.int64]) -> tuple[int, ...]:
    return tuple(int(value) for value in ids)
