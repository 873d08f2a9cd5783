"""The answer to a claim: supported, refuted or inconclusive, from the records of its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.base.rows import ModelRow, SeedRow, defense_of, warns
from bench.base.types import DataInfo, Document, ThreatModel
from bench.claims.claim import Claim, points
from bench.evidence.cells import Trial, read_trials
from bench.evidence.finished_run import FinishedRun
from bench.evidence.records import alone, correct, relative_distance, smallest, within
from bench.verdict.rates import effective_trials, wilson
from bench.verdict.rule import SETTLED

Word = Literal["supported", "refuted", "inconclusive"]

NONE = np.empty(0, dtype=np.int64)

LARGEST = 10**9
"""Sources beyond which nothing is said to settle a claim."""


@dataclass(frozen=True)
class Tally:
    """What the attacks did to the defense at one training seed.

    ``sources``: images attacked, those that the model misclassifies among them. ``ids``: (n,)
    sample ids of the correctly classified ones. ``hits``: by attack, (n, goals) bool, which
    attempts it reached: one goal, a misclassification, or one a target. ``missing``: cells that
    did not do their work, in words; ``doubts``: flags that warn or could not be evaluated.
    """

    seed: int
    sources: int
    ids: npt.NDArray[np.int64]
    hits: Mapping[str, npt.NDArray[np.bool_]]
    missing: Sequence[str] = ()
    doubts: Sequence[str] = ()

    def reached(self) -> npt.NDArray[np.bool_]:
        """Return which attempts any attack reached, (n, goals)."""
        found = list(self.hits.values())
        return np.any(found, axis=0) if found else np.zeros((len(self.ids), 1), dtype=bool)


@dataclass(frozen=True)
class Breaker:
    """One attack: attempts that it reached, those that no other reached, the figure it leaves."""

    attack: str
    reached: int
    only: int
    figure: float


@dataclass(frozen=True)
class SeedAnswer:
    """The answer at one training seed.

    ``rate``: the claimed quantity under all attacks together, None without any attempt, and its
    ``interval``; ``effective``: of how many independent trials. ``breakers``: strongest first.
    ``samples``: ids of the sources that fell. ``sources_needed``: how many would settle what is
    inconclusive, None where it is settled or where no number would.
    """

    seed: int
    word: Word
    why: str
    sources: int
    attempts: int
    rate: float | None
    interval: tuple[float, float] | None
    effective: float
    breakers: Sequence[Breaker]
    samples: Sequence[int]
    sources_needed: int | None = None


@dataclass(frozen=True)
class Answer:
    """The answer over all training seeds of a claim; ``least_sources`` as of the function."""

    claim: Claim
    word: Word
    why: str
    seeds: Sequence[SeedAnswer]
    least_sources: int | None
    sources_needed: int | None = field(default=None)

    def document(self) -> Document:
        """Return the answer as JSON."""
        return {
            "claim": self.claim.model_dump(mode="json"),
            "answer": self.word,
            "why": self.why,
            "sources_needed": self.sources_needed,
            "least_sources": self.least_sources,
            "seeds": [asdict(seed) for seed in self.seeds],
        }


def answer(claim: Claim, tallies: Sequence[Tally]) -> Answer:
    """Return the answer to ``claim``: refuted where any seed refutes it, supported where all do."""
    seeds = [_at_seed(claim, tally) for tally in tallies]
    order: Sequence[Word] = ("refuted", "inconclusive", "supported")
    first = min(seeds, key=lambda item: order.index(item.word))
    needs = [item.sources_needed for item in seeds if item.sources_needed is not None]
    open_seeds = first.word == "inconclusive"
    needed = max(needs) if needs and open_seeds else None
    told = "one seed" if len(seeds) == 1 else f"seed {first.seed} of {len(seeds)}"
    why = f"{told}: {first.why}"
    return Answer(claim, first.word, why, seeds, least_sources(claim), needed)


def _at_seed(claim: Claim, tally: Tally) -> SeedAnswer:
    success = claim.success_at_most is not None
    reached = tally.reached()
    if success:
        yes, trials, power = int(reached.sum()), reached.size, _clustered(reached)
    else:
        yes, trials = int((~reached.any(axis=1)).sum()), tally.sources
        power = float(trials)
    rate = yes / trials if trials else None
    bounds = None if rate is None else rate_interval(rate, power, claim.confidence)
    word, why, needed = _judge(claim, tally, rate, bounds, power)
    return SeedAnswer(
        tally.seed,
        word,
        why,
        tally.sources,
        trials,
        rate,
        bounds,
        power,
        _breakers(claim, tally),
        [int(value) for value in tally.ids[reached.any(axis=1)]],
        needed,
    )


def _judge(
    claim: Claim, tally: Tally, rate: float | None, bounds: tuple[float, float] | None, power: float
) -> tuple[Word, str, int | None]:
    doubts = [f"the panel is incomplete: {why}" for why in tally.missing] + list(tally.doubts)
    if rate is None or bounds is None:
        return "inconclusive", "; ".join(["nothing was attacked", *doubts]), None
    low, high = bounds
    side = _side(claim, bounds)
    shown = f"{points(rate)} [{points(low)}, {points(high)}]"
    if side == "refuted":
        # Missing attacks and masked gradients could only make it worse.
        return "refuted", f"{_quantity(claim)} is {shown}, and {_said(claim)} was claimed", None
    if side == "supported" and not doubts:
        return "supported", f"{_quantity(claim)} is {shown}: {_said(claim)}, as claimed", None
    needed = None
    if side == "inconclusive":
        needed = _needed(claim, tally, rate, power)
        doubts.insert(0, f"{_quantity(claim)} is {shown}, which holds the claimed {_said(claim)}")
        least = least_sources(claim)
        attacked = tally.sources if claim.success_at_most is None else len(tally.ids)
        if least is None or least > attacked:
            doubts.insert(1, _too_sure(claim, attacked, least))
    return "inconclusive", "; ".join(doubts), needed


def _side(claim: Claim, bounds: tuple[float, float]) -> Word:
    """Return on which side of the claimed figure an interval lies: inconclusive where it holds it.

    Its end on the figure itself is on the claim's side.
    """
    low, high = bounds
    if claim.success_at_most is None:
        low, high = 1 - high, 1 - low
        limit = 1 - claim.figure
    else:
        limit = claim.figure
    if high <= limit:
        return "supported"
    return "refuted" if low > limit else "inconclusive"


def _quantity(claim: Claim) -> str:
    if claim.success_at_most is None:
        return "the accuracy left"
    return "the success rate of targeted attempts" if _targeted(claim) else "the success rate"


def _targeted(claim: Claim) -> bool:
    return claim.goal == "targeted"


def _said(claim: Claim) -> str:
    word = "at least" if claim.success_at_most is None else "at most"
    return f"{word} {points(claim.figure)}"


def _too_sure(claim: Claim, sources: int, least: int | None) -> str:
    best = "if every one survives" if claim.success_at_most is None else "even with no success"
    if least is None:
        return f"no number of sources supports {_said(claim)}"
    return f"{sources} sources cannot support it: {_said(claim)} takes about {least} {best}"


def least_sources(claim: Claim) -> int | None:
    """Return how many sources must be attacked to support ``claim`` in the best of all cases.

    Where nothing succeeds the effective number of trials is that of correctly classified sources,
    whatever the number of targets. None where no number of sources does.
    """
    worst = claim.figure if claim.success_at_most is not None else 1 - claim.figure
    return _smallest(lambda total: rate_interval(0.0, total, claim.confidence)[1] <= worst)


def _needed(claim: Claim, tally: Tally, rate: float, power: float) -> int | None:
    """Return how many sources would settle the claim if all shares stay as they are."""
    share = power / tally.sources

    def settled(total: int) -> bool:
        return _side(claim, rate_interval(rate, share * total, claim.confidence)) != "inconclusive"

    return _smallest(settled, tally.sources)


def _smallest(settled: Callable[[int], bool], start: int = 1) -> int | None:
    """Return the smallest number from ``start`` on that is ``settled``, as all above it are."""
    low = high = max(1, start)
    while not settled(high):
        if high > LARGEST:
            return None
        low, high = high + 1, high * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle + 1, high)
    return high


def rate_interval(rate: float, trials: float, confidence: float) -> tuple[float, float]:
    """Return Wilson's interval of a rate; everything is possible where nothing was tried."""
    return wilson(rate * trials, trials, confidence) or (0.0, 1.0)


def _clustered(reached: npt.NDArray[np.bool_]) -> float:
    """Return the effective number of trials of attempts (sources, goals), clustered by source."""
    sources, goals = reached.shape
    rate = float(reached.mean()) if reached.size else 0.0
    if not 0 < rate < 1 or sources < 2:
        return float(sources)
    return effective_trials(reached.sum(axis=1), np.full(sources, goals), rate)


def _breakers(claim: Claim, tally: Tally) -> list[Breaker]:
    """Return the attacks that reached any attempt, the strongest first."""
    only = alone(tally.hits)
    found = []
    for name, own in tally.hits.items():
        if claim.success_at_most is None:
            figure = int((~own.any(axis=1)).sum()) / max(tally.sources, 1)
        else:
            figure = float(own.mean()) if own.size else 0.0
        found.append(Breaker(name, int(own.sum()), int(only[name].sum()), figure))
    return sorted((b for b in found if b.reached), key=lambda breaker: -breaker.reached)


def read_answer(claim: Claim, run: FinishedRun, info: DataInfo) -> Answer:
    """Return the answer that a finished run of ``claim.matrix()`` gives; plugins must be loaded."""
    return answer(claim, read_tallies(claim, run, info))


def read_tallies(claim: Claim, run: FinishedRun, info: DataInfo) -> list[Tally]:
    """Return one tally a training seed of a finished run of ``claim.matrix()``."""
    defense = claim.defense_document()
    trials = read_trials(run)
    return [
        _tally(claim, run, model, trials[model["id"]], info)
        for model in run.results.models
        if defense_of(model) == defense
    ]


def _tally(
    claim: Claim, run: FinishedRun, model: ModelRow, trials: Sequence[Trial], info: DataInfo
) -> Tally:
    threat = claim.threat.model(info.features)
    done = [trial for trial in trials if trial.records is not None]
    cells = [trial.records for trial in done if trial.records is not None]
    ids = np.unique(np.concatenate([NONE, *(cell["sample_id"] for cell in cells)]))
    ids = ids[correct(cells, ids)]
    hits: dict[str, npt.NDArray[np.bool_]] = {}
    for trial in done:
        mask = _hits(trial, threat, info, ids, _targeted(claim))
        hits[trial.label] = hits[trial.label] | mask if trial.label in hits else mask
    counts = [trial.row["sources"] or 0 for trial in done]
    return Tally(
        model["seed"],
        max(counts, default=0),
        ids,
        hits,
        [why for trial in trials if (why := trial.trouble())],
        _doubts(run, model, trials),
    )


def _hits(
    trial: Trial,
    threat: ThreatModel,
    info: DataInfo,
    ids: npt.NDArray[np.int64],
    targeted: bool,
) -> npt.NDArray[np.bool_]:
    """Return which attempts a cell reached within ``threat``, (sources, goals)."""
    records = trial.records
    assert records is not None
    rows = records[records["sample_id"].isin(ids).to_numpy()]
    if not targeted:
        return within(smallest(rows, ids, threat, info.shape), threat)[:, None]
    rows = rows[(rows["status"] == "attacked").to_numpy()]  # what was only seen has no target
    distance = relative_distance(rows, threat, info.shape).to_numpy(np.float64)
    reached = rows["success"] & within(distance, threat)
    table = pd.crosstab(rows["sample_id"], rows["target"], values=reached, aggfunc="max")
    # Every source has all classes but its own, which are moved together.
    return np.array([row.dropna().to_numpy(bool) for _, row in table.loc[ids].iterrows()])


def _doubts(run: FinishedRun, model: ModelRow, trials: Sequence[Trial]) -> list[str]:
    """Return in words which flags warn on the model, its cells or its panel, and which are open."""
    seeds = [seed for row in run.results.verdicts for seed in row["seeds"]]
    mine: list[ModelRow | SeedRow] = [model]
    mine += [seed for seed in seeds if seed["model"] == model["id"]]
    flags = [flag for row in mine for flag in row["flags"]]
    flags += [flag for trial in trials for flag in trial.row["flags"]]
    raised = sorted({flag["id"] for flag in flags if warns(flag)})
    moved = max((s.get("unsettled", 0.0) for s in seeds if s["model"] == model["id"]), default=0.0)
    open_flags = {name: why for row in mine for name, why in row["not_evaluated"].items()}
    converged = [] if moved < SETTLED else [f"not converged (moved {100 * moved:.0f} points)"]
    return (
        converged
        + [f"flag {name}" for name in raised]
        + [f"{name} was not evaluated: {why}" for name, why in sorted(open_flags.items())]
    )
