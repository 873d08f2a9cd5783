"""``costs.json``: what the models of a run take to train and to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.base.files import read_json, write_json
from bench.base.types import DamagedError, Document
from bench.evidence.folder import RunFolder
from bench.measure.pace import in_turns
from bench.plan.graph import FITS, Kind, Plan
from bench.runner.rebuild import Rebuilder
from bench.runner.task import Executor, Settings

FILE = "costs.json"

IMAGES = 1000
"""Test images that a model is timed on, at most."""


def measure_costs(
    plan: Plan,
    folder: RunFolder,
    executor: Executor,
    weights: Mapping[str, str],
    training: Mapping[str, Document],
) -> None:
    """Write ``costs.json``: ``inference`` of all models of a run in turns, ``training`` of fits.

    ``weights``: the checksum of each fitted model, by fit; ``training`` as fits reported it, to
    which comes what other fits each ``needs``. Models that were timed together before are not
    timed again.
    """
    weights = {fit.id: weights[fit.id] for fit in plan.of("fit") if fit.id in weights}
    before = _before(folder)
    found = before["inference"]
    if found.get("weights") != dict(weights) or found.get("reason") is not None:
        read: list[tuple[Kind, str]] = [("fit", fit) for fit in weights]
        pace, reason = executor.fresh(pace_of, list(weights), reads=read).result()
        found = {"weights": dict(weights), "reason": reason, **(pace or {})}
    known = {**before["training"], **training}
    told = {
        fit.id: {**known[fit.id], "needs": sorted(fit.needs.values())}
        for kind in FITS
        for fit in plan.of(kind)
        if fit.id in known
    }
    costs = {"inference": found, "training": told}
    if costs != before:
        write_json(folder.top(FILE), costs)


def _before(folder: RunFolder) -> Document:
    try:
        found = read_json(folder.top(FILE))
        return {"inference": dict(found["inference"]), "training": dict(found["training"])}
    except (DamagedError, KeyError, TypeError, ValueError):
        return {"inference": {}, "training": {}}  # none yet, or not ours


def pace_of(settings: Settings, fits: Sequence[str]) -> Document:
    """Return ``rows`` and by fit the ``seconds`` of each round: in a process that did nothing else.

    The test images are those of the first fit; all models of a run answer the same ones.
    """
    models = Rebuilder(settings)
    loaded = {fit: models.load_model(fit)[1] for fit in fits}
    document = read_json(models.folder.model(fits[0]))["key"]["document"]
    data = models.data(document["dataset"])
    x = data.test.take(slice(None, IMAGES)).x.to(models.device)
    pace = in_turns(loaded, x, data.info.classes)
    return {"rows": pace.rows, "seconds": {fit: list(told) for fit, told in pace.seconds.items()}}
