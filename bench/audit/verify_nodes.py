"""Every document, file, model and row of a run's nodes, checked one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from bench.audit.verify_folder import Verification
from bench.audit.verify_rows import (
    Comparison,
    Difference,
    Mode,
    Subject,
    rejudge_cell,
    rejudge_probe,
)
from bench.base.files import read_json, read_records, read_tensors
from bench.base.json_changes import changes, flatten
from bench.base.types import DamagedError, Document, Outcome, UserError
from bench.evidence.environment import hardware
from bench.evidence.finished_run import FinishedRun
from bench.evidence.standing import Standing
from bench.measure.probes import training_sample
from bench.measure.query import DRAWS, Anew, predict
from bench.plan.graph import FITS, Node
from bench.plugins.contracts import LEARNT, Attack, Defense
from bench.runner.keys import Keys
from bench.runner.rebuild import Rebuilder
from bench.runner.schedule import incompatible
from bench.runner.worker import attacked, reason_of, seed_for
from bench.suspicion.suspect import suspect

NEAR = 0.1
"""How far a share of a model's suspicion may move on other hardware."""

SAMPLES = 10
"""How many further samples of a stochastic model are drawn, until one is like what is stored."""


@dataclass(frozen=True)
class _Model:
    anew: Anew
    defense: Defense

    @property
    def stochastic(self) -> bool:
        return self.defense.stochastic

    def attacked(self, module: nn.Module) -> nn.Module:
        return attacked(self.defense, module)


class Recheck:
    """Walks a run's nodes, fits first; every finding goes to ``result``.

    What the documents say of themselves is checked before, by ``check_folder``.
    ``other_code`` names what was made by another version of the code than this.
    """

    def __init__(self, run: FinishedRun, models: Rebuilder, result: Verification) -> None:
        self.run = run
        self.models = models
        self.data = models.data(run.plan.dataset)
        self.result = result
        self.other_code: set[str] = set()
        self._versions: dict[str, object] = {}
        self._weights: dict[str, str] = {}
        self._rebuilt: set[str] = set()
        standing = Standing(run.folder, self.data)
        self._keys = Keys(self.data, hardware(models.settings.device), self._weights, standing)

    def check(self) -> None:
        """Check every fit, then its probes and cells.

        Raises UserError where a plugin that the run names is not loaded.
        """
        for node in self.run.plan.nodes:
            if node.kind != "probe":
                node.plugin()
        present = {node.id: self._fit(node) for kind in FITS for node in self.run.plan.of(kind)}
        for node in self.run.plan.of("attack-fit"):
            if present[node.id]:
                self._learnt(node)
        for fit in self.run.fits():
            model = self._load(fit) if present[fit] else None
            for node in self.run.plan.nodes:
                if node.kind not in FITS and node.needs.get("model") == fit:
                    self._node(node, model)

    def _fit(self, node: Node) -> bool:
        """Return whether it left weights; where a fit failed, no cell that needs it may be done."""
        document = _read(self.run.folder.document(node.kind, node.id))
        if document is None:
            return False
        self.result.count("models" if node.kind == "fit" else "attacks' fits")
        self._weights[node.id] = str(document.get("weights"))
        self._key(node, document)
        return True

    def _load(self, fit: str) -> _Model | None:
        try:
            defense, _ = self.models.load_model(fit)
        except Exception as error:  # noqa: BLE001 (other people's code)
            self.result.add(fit, "model", "stored weights", f"not rebuilt: {reason_of(error)}")
            return None
        return _Model(lambda: self.models.load_model(fit)[1], defense)

    def _learnt(self, node: Node) -> None:
        """Build what an attack learnt anew; without it none of its cells may be done."""
        try:
            self.models.load_learnt(node.id)
            self._rebuilt.add(node.id)
        except Exception as error:  # noqa: BLE001 (other people's code)
            self.result.add(
                node.id, "what its attack learnt", "stored weights",
                f"not rebuilt: {reason_of(error)}",
            )  # fmt: skip

    def _node(self, node: Node, model: _Model | None) -> None:
        path = self.run.folder.document(node.kind, node.id)
        if node.kind == "probe" and not path.exists() and self._probe_fails(node, model):
            return
        document = _read(path)
        if document is None or not self._done(node, document):
            return
        self._key(node, document)
        if model is None:
            self.result.add(node.id, "records", "stored", "not made again: no model")
            return
        self.result.count(f"{node.kind}s")
        learnt = node.needs.get(LEARNT)
        if learnt is not None and learnt not in self._rebuilt:
            self.result.add(node.id, "records", "stored", "what its attack learnt is not")
        mode: Mode = "stochastic" if model.stochastic else self.result.mode
        try:
            found = self._rejudge(node, model, mode)
        except Exception as error:  # noqa: BLE001 (other people's code, and damaged rows)
            found = Comparison(
                [Difference(node.id, "records", "stored", f"not made again: {reason_of(error)}")]
            )
        if node.kind == "probe" and mode != "stochastic":  # what is drawn is drawn otherwise
            self._suspicion(node, document, model, mode)
        self.result.differences += found.differences
        self.result.changed += found.changed

    # Keys.

    def _key(self, node: Node, document: Document) -> None:
        key = document.get("key")
        try:
            made = self._keys.of(node)
        except (UserError, KeyError) as error:
            # A file beside the run that is gone, or a fit whose document could not be read.
            self.result.notes.append(f"{node.id}: its key cannot be made again: {error}")
            return
        differing = changes(key, made)
        for path, value in flatten(made).items():
            if path.endswith("source") and not path.startswith("document."):
                stored, _ = differing.pop(path, (value, value))
                self._code(node, path, stored, value)
        for path, (stored, recomputed) in differing.items():
            if path != "device" or self.result.mode == "exact":
                self.result.add(node.id, f"key: {path}", stored, recomputed)

    def _code(self, node: Node, path: str, stored: object, here: object) -> None:
        # Code that changed since is no difference, but one run is made by one version of it.
        role = path.removesuffix(".source").removeprefix("required.")
        subject = {
            "source": "probes" if node.kind == "probe" else f"fit {node.id}",
            "harness_source": "harness",
            "attack_source": f"attack {_code_of(node)}",
        }.get(path, f"fit {node.needs.get(role)}")
        known = self._versions.setdefault(subject, stored)
        if known != stored:
            self.result.add(node.id, f"key: {path}, two versions in one run", stored, known)
        if stored != here:
            self.other_code.add(subject)

    # Outcomes and rows.

    def _done(self, node: Node, document: Document) -> bool:
        """Return whether the node is done; a skip is checked, a failure is taken as it stands."""
        try:
            outcome = Outcome(**document["outcome"])
        except (KeyError, TypeError):
            self.result.add(node.id, "outcome", document.get("outcome"), "status and reason")
            return False
        if outcome.status == "done":
            return True
        self.result.count(outcome.status)
        if document.get("document") != node.document:
            self.result.add(node.id, "document", document.get("document"), node.document)
        left = self._keys.left(node)
        if left is not None and self._keys.needless(node, left):
            return False
        if outcome.status == "skipped" and incompatible(self.run.fits(), node, self.data) is None:
            self._skipped_then(node, outcome)
        return False

    def _skipped_then(self, node: Node, outcome: Outcome) -> None:
        if type(node.attack()).unavailable is Attack.unavailable:
            self.result.add(node.id, "outcome", f"skipped: {outcome.reason}", "not skipped")
        else:
            self.result.notes.append(f"{node.id}: skipped there ({outcome.reason}), not here")

    def _probe_fails(self, node: Node, model: _Model | None) -> bool:
        """Return whether the absence of a probe is explained: no model, or it fails here too."""
        if model is None:
            return True
        try:
            self.models.probe(model.anew(), node.document, self.data)
        except Exception:  # noqa: BLE001 (other people's code)
            return True
        return False

    def _suspicion(self, node: Node, document: Document, model: _Model, mode: Mode) -> None:
        """Suspect a model once more; on other hardware a row in ten may fall on another side."""
        sources, scale = self.models.sources(node.document, self.data), node.document["scale"]
        # As when it was made: a surrogate may draw where its model does not.
        seed_for(node.document, node.id)
        model.anew()
        made = suspect(model.anew, model.attacked, sources.x, sources.y, scale, seed=sources.seed)
        found = changes(document.get("suspicion"), made.document())
        for path, (stored, new) in found.items():
            numbers = isinstance(stored, float) and isinstance(new, float)
            if mode == "exact" or not numbers or abs(stored - new) > NEAR:
                self.result.add(node.id, f"suspicion: {path}", stored, new)

    def _rejudge(self, node: Node, model: _Model, mode: Mode) -> Comparison:
        # Without their checksums: a file that is not what its checksum says was reported above.
        files = self.run.folder.files(node.kind, node.id)
        stored = read_records(files["records"])
        if node.kind == "cell":
            self.result.count("records", len(stored))
        found = self._compare(node, model, mode, stored, files)
        # A model may draw once a batch: two samples of it lie further apart than if its rows drew
        # for themselves, but not from every further one.
        for _ in range(SAMPLES if mode == "stochastic" else 0):
            if found.differences:
                found = self._compare(node, model, mode, stored, files)
        return found

    def _compare(
        self, node: Node, model: _Model, mode: Mode, stored: pd.DataFrame, files: Mapping[str, Path]
    ) -> Comparison:
        """Ask a model about the inputs of a node once more, and hold that against the records."""
        info = self.data.info
        if node.kind == "probe":
            made = self.models.probe(model.anew(), node.document, self.data).rows
            splits = (self.data.test, training_sample(self.data))
            module = model.anew()
            logits = torch.cat([predict(module, split.x, info.classes) for split in splits])
            return rejudge_probe(node.id, stored, made, mode, logits)
        x_adv = read_tensors(files["inputs"])["x_adv"].to(self.models.device)
        sources = self.models.sources(node.document, self.data)
        if (left := self._keys.left(node)) is not None:
            sources = sources.only(torch.tensor(left, dtype=torch.int64))
        draws = DRAWS if model.stochastic else 1
        subject = Subject(model.anew, node.attack(), sources, info, mode, draws)
        return rejudge_cell(node.id, subject, stored, x_adv)


def _read(path: Path) -> Document | None:
    """Return a document, or None where there is none that can be read."""
    try:
        document = read_json(path)
    except DamagedError:
        return None
    return document if isinstance(document, dict) else None


def _code_of(node: Node) -> str:
    """Name an attack with what its parameters chose: its code and theirs are one source."""
    chosen = [item.__qualname__ for item in node.attack().code()] if node.kind == "cell" else []
    return " ".join([str(node.document.get("attack", {}).get("name")), *chosen])
