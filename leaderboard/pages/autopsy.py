"""The autopsy in words: a table an attack and threat model, and the sentences that it supports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bench.base.rows import CellRow, Results
from leaderboard.tables.autopsy import (
    BENEATH,
    HIDDEN,
    MOST,
    Autopsy,
    Finding,
    Remainder,
    autopsies,
    rate,
    share_stuck,
)
from leaderboard.tables.cells import difference
from leaderboard.tables.numbers import (
    UNDEFINED,
    fixed,
    given,
    interval,
    number,
    percent,
    points,
    ranged,
)


@dataclass(frozen=True)
class Section:
    """All models under one attack and threat model: a table, and the sentences it supports."""

    title: str
    table: pd.DataFrame
    sentences: list[str]


def sections(results: Results) -> list[Section]:
    """Return one section an attack and threat model, empty where no autopsy can be made."""
    groups: dict[str, list[Autopsy]] = {}
    for item in autopsies(results):
        groups.setdefault(f"{item.row['dataset']}: {item.title}", []).append(item)
    return [Section(title, _table(group), sentences(group)) for title, group in groups.items()]


def sentences(members: Sequence[Autopsy]) -> list[str]:
    """Return all that the numbers of models under one attack and threat model support."""
    return [*_findings(members), *_divided(members), *_controls(members)]


def _table(members: Sequence[Autopsy]) -> pd.DataFrame:
    divisors = sorted({t for item in members for t in item.divided} - {1.0})
    frame = pd.DataFrame(
        {
            "defense": item.label,
            "deployed, float32": _cell(item.deployed),
            "deployed, float64": _cell(item.double),
            "log-odds": _cell(item.log_odds),
            "logits": _cell(item.logits),
            **{f"logits / {given(t)}": _cell(item.divided.get(t), brief=True) for t in divisors},
            "no admissible pair": percent(item.stuck),
            "gradients exactly zero": percent(item.zeros),
            "mean |logit|": number(item.model and item.model.get("mean_abs_logit"), 4),
            "log-odds against undefended": difference(item.beneath),
            "finding": item.finding,
        }
        for item in members
    )
    return frame.drop(columns=[name for name in frame if (frame[name] == UNDEFINED).all()])


def _cell(row: CellRow | None, brief: bool = False) -> str:
    if row is None:
        return UNDEFINED
    if row["status"] != "done":
        return str(row["status"]).upper()
    return interval(row["success_rate"], None if brief else row["success_ci"])


def _findings(members: Sequence[Autopsy]) -> list[str]:
    groups: dict[tuple[Finding, Remainder | None], list[Autopsy]] = {}
    for item in members:
        groups.setdefault((item.finding, item.remainder), []).append(item)
    return [_sentence(*key, group) for key, group in groups.items()]


FINDINGS: dict[Finding, str] = {
    "underflow": "Underflow: the attack sees zeros where in exact arithmetic there are none.",
    "cancellation": "Cancellation: one minus the probability of the label is lost to rounding, and "
    "the direction of the gradient with it.",
    "unexplained": "The rest was hidden, for on paper the two are one attack; neither zeros nor a "
    "wrong direction shows in what was recorded, and the cause is not known.",
    "partly": "Partly: some of what the deployed output does not find was hidden by floating "
    "point, and some this attack does not find either way.",
    "open": "The attack on the deployed output was blind, for on paper the two are one attack; "
    "whether robustness is left beneath stays open.",
    "nothing hidden": "Nothing is hidden: log-odds finds less than "
    f"{given(100 * HIDDEN)} points more.",
    "few attempts": "Something may be hidden, but the two intervals meet: it takes more sources.",
    "not enough cells": "One of the two failed, was skipped or had nothing to attack: no finding.",
}

REMAINDERS: dict[Remainder, str] = {
    "equal": "No robustness beneath: on log-odds {} against the undefended network, equal to it "
    "within the interval.",
    "close": f"No robustness beneath: on log-odds {{}} against the undefended network, less than "
    f"the {given(100 * BENEATH)} points that would count.",
    "above": "No robustness beneath: on log-odds {} against the undefended network.",
    "below": "On log-odds {} against the undefended network: this attack finds less here, and "
    "another may find more.",
    "wide": "On log-odds {} against the undefended network: too wide to tell.",
}


def _sentence(finding: Finding, remainder: Remainder | None, members: Sequence[Autopsy]) -> str:
    who = _who(members)
    naive = ranged(rate(item.deployed) for item in members)
    exact = ranged(rate(item.log_odds) for item in members)
    parts = [
        f"{who}: {naive} of the attempts succeed on the deployed output, {exact} on log-odds.",
        FINDINGS[finding],
        "" if finding in ("nothing hidden", "not enough cells") else _zeros(members),
        REMAINDERS[remainder].format(_differences(members)) if remainder else "",
    ]
    return " ".join(part for part in parts if part)


def _who(members: Sequence[Autopsy]) -> str:
    """Return the labels, with what a sweep shares said once."""
    swept: dict[str, list[str]] = {}
    for item in members:
        name, equals, value = item.label.rpartition("=")
        swept.setdefault(name + equals, []).append(value)
    return "; ".join(name + ", ".join(values) for name, values in swept.items())


def _zeros(members: Sequence[Autopsy]) -> str:
    found = [
        (ranged(item.stuck for item in members), "of the attempts ended with no admissible pair"),
        (ranged(item.zeros for item in members), "of the gradients were exactly zero"),
    ]
    told = " and ".join(f"{span} {what}" for span, what in found if span != UNDEFINED)
    return f"{told}." if told else ""


def _differences(members: Sequence[Autopsy]) -> str:
    found = [item.beneath for item in members if item.beneath is not None]
    if len(found) == 1:
        return difference(found[0])
    deltas, lows, highs = zip(*found, strict=True)
    ends = dict.fromkeys(points(delta) for delta in (min(deltas), max(deltas)))
    return f"{' to '.join(ends)} points [{fixed(100 * min(lows))}, {fixed(100 * max(highs))}]"


def _divided(members: Sequence[Autopsy]) -> list[str]:
    """Return the test of the paper's argument that the factor 1/T of the Jacobian protects."""
    found = []
    for item in members:
        done = [(t, row) for t, row in item.divided.items() if row["success_rate"] is not None]
        if len(done) < 2:
            continue
        (low, first), (high, last) = done[0], done[-1]
        found.append(
            f"{item.label}, the same weights with the logits divided by {given(low)} to "
            f"{given(high)}: {percent(first['success_rate'])} to {percent(last['success_rate'])} "
            "succeed. " + _argument(first, last)
        )
    return found


def _argument(first: CellRow, last: CellRow) -> str:
    """Hold two rows of one model, the logits divided by more in ``last``, against the argument.

    A change counts from ``HIDDEN`` on, where the intervals do not meet; a fall is the gradient's
    vanishing where at least ``MOST`` of the attempts ended without an admissible pair.
    """
    before, after = first["success_ci"], last["success_ci"]
    if before is None or after is None:
        return ""
    change = (last["success_rate"] or 0.0) - (first["success_rate"] or 0.0)
    if change >= HIDDEN and after[0] > before[1]:
        return (
            "The factor 1/T of the Jacobian shrinks and the attack succeeds more often: the factor "
            "protects nothing, the saturated softmax hides."
        )
    if change <= -HIDDEN and after[1] < before[0]:
        if (share_stuck(last) or 0.0) >= MOST:
            return "The gradient vanishes as the factor 1/T shrinks, as the paper argues."
        return (
            "The gradient does not vanish: a factor common to all features changes no choice, but "
            "divided logits weigh the classes otherwise, which is another attack."
        )
    return "The factor 1/T of the Jacobian makes no difference that these attempts show."


def _controls(members: Sequence[Autopsy]) -> list[str]:
    """Return what the controls show: the temperature, and soft labels, without a teacher."""
    seen = [item for item in members if rate(item.deployed) is not None]
    return [*_teacherless(seen), *_soft(seen)]


def _teacherless(members: Sequence[Autopsy]) -> list[str]:
    control = {
        _trained(item): item for item in members if item.row["defense"] == "temperature_only"
    }
    gaps = [
        abs((rate(item.deployed) or 0.0) - (rate(control[_trained(item)].deployed) or 0.0))
        for item in members
        if item.row["defense"] == "distillation" and _trained(item) in control
    ]
    if not gaps:
        return []
    alike = sum(gap < HIDDEN for gap in gaps)
    verdict = ": the teacher adds nothing" if alike == len(gaps) else ""
    told = (
        "Trained at the temperature on hard labels, without a teacher, a network shows the attack "
        f"on its deployed output the same success within {given(100 * HIDDEN)} points in {alike} "
        f"of {len(gaps)} cases{verdict}."
    )
    return [told]


def _trained(item: Autopsy) -> tuple[object, int]:
    return item.row["defense_params"].get("temperature"), item.row["seed"]


def _soft(members: Sequence[Autopsy]) -> list[str]:
    plain = {item.row["seed"]: item for item in members if item.row["defense"] == "undefended"}
    found = []
    for item in members:
        if item.row["defense"] not in ("soft_label", "label_smoothing"):
            continue
        if (base := plain.get(item.row["seed"])) is None:
            continue
        change = (rate(item.deployed) or 0.0) - (rate(base.deployed) or 0.0)
        verdict = "it looks more robust" if change <= -HIDDEN else "no robustness gained"
        found.append(
            f"{item.label}, soft labels without a teacher: {points(change)} points against the "
            f"undefended network on the deployed output: {verdict}."
        )
    return found
