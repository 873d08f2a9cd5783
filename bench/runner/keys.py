"""What a result depends on, written out as a document, and its hash.

A node's plan id names what was asked; its key says what was run. Weights alone do not identify a
model, for a wrapper has the weights of what it wraps: a model is its fit, its source code and
the hash of its weights. The documents are stored, so that one can see which field changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from bench.base.files import file_hash
from bench.base.fingerprint import digest
from bench.base.places import base, placed
from bench.base.types import (
    Access,
    DataInfo,
    Document,
    Targets,
    ThreatModel,
    UserError,
    spec_of,
)
from bench.evidence.cells import NOTHING_LEFT, SETTLED, UNSUSPECTED
from bench.evidence.standing import Standing
from bench.handed.diagnose import doubt
from bench.measure.cell import attack_sources, blocks
from bench.measure.probes import probe
from bench.measure.query import hashes
from bench.plan.graph import Closes, Node, Plan
from bench.plan.panel import HOW
from bench.plugins import registry
from bench.plugins.code_hash import source_hash
from bench.plugins.contracts import Attack, Defense, HandedOver, LearningAttack
from bench.plugins.data import Dataset
from bench.suspicion.suspect import suspect
from bench.training.fit import fit, fit_attack

DTYPE = "float32"


class Keys:
    """Makes the key documents of a run's nodes: one data set, one kind of hardware.

    ``models`` maps the id of a finished fit to the SHA-256 of its weights; it grows as a run
    proceeds, and a key can be made once all that a node needs is in it. ``standing`` tells what is
    left to closers.
    """

    def __init__(
        self,
        data: Dataset,
        hardware: str,
        models: Mapping[str, str],
        standing: Standing | None = None,
    ) -> None:
        self.data = data
        self.standing = standing
        self.hardware = hardware
        self.models = models
        self._sources: dict[str, str] = {}
        self._handed: set[str] = set()
        self._samples: dict[tuple[int | None, int], Document] = {}

    def of(self, node: Node) -> Document:
        """Return the key document of ``node``."""
        make = {
            "fit": self._fit,
            "probe": self._probe,
            "attack-fit": self._attack_fit,
            "cell": self._cell,
        }
        return make[node.kind](node)

    def blocks(self, node: Node, left: tuple[int, ...] | None) -> int:
        """Return into how many blocks a cell falls, of which so many sources are ``left``."""
        document = node.document
        sample = self._sample_document(_count(document["sources"]), document["source_seed"])
        return blocks(sample["count"] if left is None else len(left), node.attack())

    def left(self, node: Node, closes: Closes | None = None) -> tuple[int, ...] | None:
        """Return the sample ids that are left to a closer, None of every other node.

        ``closes``: what is asked instead of the node's own.
        """
        closes = closes or node.closes
        if closes is None or self.standing is None:
            return None
        document = node.document
        return self.standing.left(closes, _count(document["sources"]), document["source_seed"])

    def needless(self, node: Node, left: tuple[int, ...]) -> str | None:
        """Return why a closer need not run where it was left so many sources, or None."""
        closes, document = node.closes, node.document
        assert closes is not None
        if node.follows and self.standing and not self.standing.suspected(node.follows):
            return UNSUSPECTED
        sample = self._sample_document(_count(document["sources"]), document["source_seed"])
        if len(left) <= closes.above * int(sample["count"]):
            return f"{NOTHING_LEFT}: {len(left)} sources stand" if left else NOTHING_LEFT
        if closes.since is not None:
            after = [cell for cell in closes.after if cell not in closes.since]
            if self.left(node, replace(closes, after=after)) == left:
                return SETTLED
        return None

    def _fit(self, node: Node) -> Document:
        source = fit_source(node.document)
        self._sources[node.id] = source
        if isinstance(node.plugin(), HandedOver):
            self._handed.add(node.id)
        required = {role: self._model(need) for role, need in node.needs.items()}
        # Only where there are any: the keys of all other fits stay what they were.
        sources = {role: model["source"] for role, model in required.items()}
        return {
            **self._common(node),
            "source": source,
            "required_weights": {role: model["weights"] for role, model in required.items()},
            **({"required_sources": sources} if sources else {}),
            **_files(node.fitted()),
        }

    def _probe(self, node: Node) -> Document:
        document = node.document
        # Only of models that others trained: the keys of all others stay what they were.
        further = (doubt,) if node.needs["model"] in self._handed else ()
        return {
            **self._common(node),
            "model": self._model(node.needs["model"]),
            "source": source_hash(probe, suspect, *further),
            "samples": self._sample_document(_most(document, self.data), document["source_seed"]),
        }

    def _attack_fit(self, node: Node) -> Document:
        source = attack_fit_source(node.document)
        self._sources[node.id] = source
        return {
            **self._common(node),
            "source": source,
            "model": self._model(node.needs["model"]),
            "required": self._required(node),
            **_files(node.plugin()),
        }

    def _cell(self, node: Node) -> Document:
        sources, seed = node.document["sources"], node.document["source_seed"]
        left = self.left(node)
        return {
            **self._common(node),
            "model": self._model(node.needs["model"]),
            "required": self._required(node),
            "attack_source": attack_source(node.document),
            "harness_source": source_hash(attack_sources, blocks),
            "samples": self._sample_document(_count(sources), seed),
            **({} if left is None else {"left": digest(list(left))}),
            **_files(node.plugin()),
        }

    def _required(self, node: Node) -> Document:
        """Return what a node needs beside its model: other models, and what its attack learnt."""
        return {role: self._model(need) for role, need in node.needs.items() if role != "model"}

    def _common(self, node: Node) -> Document:
        return {
            "plan": node.id,
            "document": node.document,
            "data": self.data.fingerprint,
            "device": self.hardware,
            "dtype": DTYPE,
        }

    def _model(self, fit_id: str) -> Document:
        return {"fit": fit_id, "source": self._sources[fit_id], "weights": self.models[fit_id]}

    def _sample_document(self, count: int | None, seed: int) -> Document:
        if (count, seed) not in self._samples:
            ids = self.data.sources(count, seed)
            chosen = self.data.test.take(ids)
            self._samples[count, seed] = {
                "count": len(ids),
                "ids": digest(ids.tolist()),
                "inputs": digest(hashes(chosen.x)),
            }
        return self._samples[count, seed]


def fit_source(document: Document) -> str:
    """Return the hash of the code that a fit's ``document`` runs."""
    defense: Any = registry.DEFENSES.get(document["defense"]["name"])
    network = registry.NETWORKS.get(document["network"]["name"])
    plugin = registry.DEFENSES.make(spec_of(document["defense"]))
    with registry.asking(plugin, "code"):
        chosen: Any = plugin.code()
        return source_hash(fit, defense, network, *chosen)


def attack_source(document: Document, *harness: Any) -> str:
    """Return the hash of the code of the attack of a ``document``, and of ``harness``."""
    attack: Any = registry.ATTACKS.get(document["attack"]["name"])
    plugin = registry.ATTACKS.make(spec_of(document["attack"]))
    with registry.asking(plugin, "code"):
        chosen: Any = plugin.code()
        return source_hash(*harness, attack, *chosen)


def attack_fit_source(document: Document) -> str:
    """Return the hash of the code that an attack's fit of this ``document`` runs."""
    return attack_source(document, fit_attack)


def _count(number: int | str) -> int | None:
    return None if number == "all" else int(number)


def _most(document: Document, data: Dataset) -> int | None:
    count = _count(document["samples"])
    return None if count is None else min(count, len(data.test))


def check_files(plan: Plan) -> None:
    """Raise UserError where a defense or an attack of ``plan`` names a file that is not there."""
    for node in plan.of("fit"):
        _files(node.fitted())
    for node in plan.of("cell"):
        _files(node.attack())


def check_attacks(plan: Plan, info: DataInfo) -> None:
    """Raise UserError where an attack of ``plan`` has no threat model on data of ``info``.

    Or where what it would learn does not suit them.
    """
    for node in plan.of("cell"):
        attack = node.attack()
        with registry.asking(attack, "threat"):
            threat = attack.threat(info.shape)
            if not isinstance(threat, ThreatModel):
                raise TypeError(f"a bench.ThreatModel is expected, got {type(threat).__name__}")
            if threat.budget is not None and not math.isfinite(threat.budget):
                raise ValueError(f"a finite budget or None is expected, got {threat.budget}")
            widest = math.sqrt(math.prod(info.shape))
            if threat.norm == "l2" and threat.budget is not None and threat.budget > widest:
                raise ValueError(
                    f"an L2 budget of {threat.budget:g} exceeds the box, whose diagonal is "
                    f"{widest:.4g}; {HOW}"
                )
        if isinstance(attack, LearningAttack):
            with registry.asking(attack, "build"):
                attack.build(info)
        for name, valid in (("access", get_args(Access)), ("targets", get_args(Targets))):
            with registry.asking(attack, name):
                if (given := getattr(attack, name)) not in valid:
                    raise ValueError(f"one of {', '.join(valid)} is expected, got {given!r}")


def _files(plugin: Defense | Attack) -> Document:
    # Only where there are any: the keys of all other nodes stay what they were.
    with registry.asking(plugin, "files"):
        hashes = {str(path): _file_hash(plugin, Path(path)) for path in plugin.files()}
    return {"files": hashes} if hashes else {}


def _file_hash(plugin: Defense | Attack, path: Path) -> str:
    try:
        return file_hash(placed(path))
    except OSError as error:
        raise UserError(
            f"{type(plugin).__name__} needs the file {str(path)!r}, which cannot be read: "
            f"{error.strerror}; a relative path starts at {str(base())!r}"
        ) from error
