"""The rule that turns what was measured into a verdict, in its order. Reasons: docs/verdict.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.verdict.flags import FEW_SOURCES
from bench.verdict.paired import Pairs, agresti_min, needed
from bench.verdict.rates import wilson

Verdict = Literal["inconclusive", "masked", "broken", "holds"]

MARGIN = 0.1
"""δ: what the lower end of a gain must reach; that of two networks which differ in their seed alone
stays below (docs/verdict.md, twins)."""

POWER = 0.2
"""The panel has power at a budget where it leaves the undefended network at most this accuracy."""

SEEDS = 3
"""Training seeds that ``holds`` needs."""

SETTLED = 0.01
"""By how much less the last round of closers may move W: one source of a hundred is too much."""

BLOCKING = (
    "chance", "probabilities", "stochastic", "stateful", "batch-dependent", "judged-differently",
    "surrogate",
)  # fmt: skip
"""Flags after which nothing can be said (``stochastic``: as a warning, where it is undeclared)."""

MASKING = ("naive-beaten", "log-odds-beats-probs", "black-box-beats-gradient")
"""Flags that say that an attack fails by itself."""

SUSPICIOUS = ("zero-gradient", "gradient-direction", "gradient-mismatch", "unbounded-budget")
"""Flags that mask where the defense would hold otherwise."""


@dataclass(frozen=True)
class Facts:
    """What the rule looks at, for one model at one budget.

    ``pairs``: sources that survive on the defended model and on the reference, the undefended one,
    None where either is unknown. ``reference``: W_U, the accuracy left on it. ``missing``: panel
    cells of either model that failed, were skipped or changed nothing, in words. ``warnings``: ids
    of the flags that warn; ``not_evaluated``: of those that could not be looked at. ``moved``: by
    how much the last round of closers moved W; ``like``: whether the reference has the defense's
    architecture. ``compared``: whether the run has a reference; ``pairs`` are else those with a
    network of which nothing is left, the weakest that there can be.
    """

    sources: int
    pairs: Pairs | None
    reference: float | None
    missing: Sequence[str] = ()
    warnings: frozenset[str] = frozenset()
    not_evaluated: frozenset[str] = frozenset()
    moved: float = 0.0
    like: bool = True
    compared: bool = True


@dataclass(frozen=True)
class Judgement:
    """A verdict, the number of the rule that gave it, and why.

    ``broken_too``: of a masked defense, that it is also broken. ``sources_needed``: how many
    sources would settle what too few left open. ``label``: what a table says in place of the
    verdict, None where that says it all.
    """

    verdict: Verdict
    rule: int
    why: str
    broken_too: bool = False
    sources_needed: int | None = None
    label: str | None = None


def judge(facts: Facts) -> Judgement:
    """Return the verdict on one model: the first of the five rules that applies."""
    reason = _unjudgeable(facts)
    if reason or facts.pairs is None:
        return Judgement("inconclusive", 1, reason or "no source was attacked")
    if not facts.compared:
        return _alone(facts, facts.pairs)
    low, high = agresti_min(facts.pairs)
    broken = high <= MARGIN
    delta = f"Δ = {_points(facts.pairs.delta)} [{_points(low)}, {_points(high)}] points"
    if masked := sorted(facts.warnings & set(MASKING)):
        return Judgement("masked", 2, f"flag {', '.join(masked)}; {delta}", broken)
    if broken:
        return Judgement("broken", 3, f"{delta}: the upper end is at most {_points(MARGIN)}")
    if low < MARGIN:
        why = f"{delta}: the interval spans {_points(MARGIN)}"
        return Judgement("inconclusive", 5, why, sources_needed=needed(facts.pairs, MARGIN))
    return _gained(facts, delta)


def _alone(facts: Facts, table: Pairs) -> Judgement:
    """Return what can be said without a reference: never that a defense holds.

    ``table`` compares with a network that keeps nothing, so its upper end bounds the gain over any.
    """
    low, high = agresti_min(table)
    left = round(table.only_first)
    share, ends = _points(left / facts.sources), wilson(left, facts.sources) or (0.0, 1.0)
    told = f"{share} % [{', '.join(_points(end) for end in ends)}]"
    why = f"no reference: of {facts.sources} sources {told} stand; {_doubts(facts)}"
    if facts.warnings & set(MASKING):
        return Judgement("masked", 2, why, high <= MARGIN)
    if high <= MARGIN:
        told = f"{why}; at most {_points(MARGIN)} points more than any other network"
        return Judgement("broken", 3, told)
    if low >= MARGIN and facts.warnings & set(SUSPICIOUS):
        return Judgement("masked", 2, why)
    return Judgement("inconclusive", 5, why, label="no reference")


def _doubts(facts: Facts) -> str:
    found = [f"flag {name}" for name in sorted(facts.warnings)]
    if facts.moved >= SETTLED:
        found.append(f"not converged (moved {_points(facts.moved)} points)")
    return ", ".join(found) or "nothing warns"


def _gained(facts: Facts, delta: str) -> Judgement:
    """Return the verdict on a gain that is beyond the margin: it holds where nothing speaks up."""
    if seen := sorted(facts.warnings & set(SUSPICIOUS)):
        return Judgement("masked", 2, f"{delta} would hold, but for flag {', '.join(seen)}")
    doubts = [f"flag {name}" for name in sorted(facts.warnings)]
    doubts += [f"{name} was not evaluated" for name in sorted(facts.not_evaluated)]
    if doubts:
        return Judgement("inconclusive", 5, f"{delta} would hold, but for {', '.join(doubts)}")
    if not facts.like:
        why = f"{delta} would hold, but the reference is of another architecture"
        return Judgement("inconclusive", 5, why, label="no like reference")
    if facts.moved >= SETTLED:
        told = f"not converged (moved {_points(facts.moved)} points)"
        why = f"{delta} would hold, but the last round of attacks still broke sources: {told}"
        return Judgement("inconclusive", 5, why, label=told)
    return Judgement("holds", 4, f"{delta}: the lower end is at least {_points(MARGIN)}")


def _together(missing: Iterable[str]) -> str:
    """Return what is missing in words, where several share a reason with that once."""
    groups: dict[str, list[str]] = {}
    for why in missing:
        what, _, reason = why.partition(": ")
        groups.setdefault(reason, []).append(what)
    return "; ".join(
        ", ".join(several) + (f": {reason}" if reason else "") for reason, several in groups.items()
    )


def _unjudgeable(facts: Facts) -> str | None:
    """Return why nothing can be said, or None."""
    reasons = []
    if facts.sources < FEW_SOURCES:
        reasons.append(f"{facts.sources} sources, and a verdict needs {FEW_SOURCES}")
    if facts.missing:
        reasons.append(f"the panel is incomplete: {_together(facts.missing)}{_so_far(facts)}")
    if not facts.compared:
        pass  # nothing of it can be missing
    elif facts.reference is None:
        reasons.append("the undefended network was not attacked")
    elif facts.reference > POWER:
        left, most = _points(facts.reference), _points(POWER)
        reasons.append(
            f"the panel leaves the undefended network {left} %, and has power below {most} %"
        )
    reasons += [f"flag {name}" for name in BLOCKING if name in facts.warnings]
    return "; ".join(reasons) or None


def _so_far(facts: Facts) -> str:
    # What has been shown stays shown: a missing attack could only break more of the sources.
    if facts.pairs is None or agresti_min(facts.pairs)[1] > MARGIN:
        return ""
    return " (what did run leaves no gain over the undefended network)"


def _points(share: float) -> str:
    return f"{100 * share:.0f}"


@dataclass(frozen=True)
class Combined:
    """The verdict over all training seeds: ``label`` is what a table shows.

    ``per_seed``: one judgement a seed.
    """

    label: str
    verdict: Verdict
    rule: int
    why: str
    sources_needed: int | None
    per_seed: Sequence[Judgement] = field(default=())


def combine(judgements: Sequence[Judgement]) -> Combined:
    """Return the verdict over training seeds: the first rule, in their order, that any seed meets.

    So one seed is enough to mask or to break a defense, and it holds where it holds at every one:
    at fewer than three that is said beside it.
    """
    order = sorted(judgements, key=lambda item: (item.rule == 4, item.rule))
    first = order[0]
    needs = [item.sources_needed for item in judgements if item.sources_needed is not None]
    label: str = first.label or first.verdict
    if first.verdict == "masked" and any(item.broken_too or item.rule == 3 for item in judgements):
        label = "masked, broken"
    if first.verdict == "holds" and len(judgements) < SEEDS:
        label = "holds (one seed)" if len(judgements) == 1 else "holds (two seeds)"
    return Combined(
        label,
        first.verdict,
        first.rule,
        first.why,
        max(needs) if needs and first.rule == 5 else None,
        tuple(judgements),
    )
