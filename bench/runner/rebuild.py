"""Fitted models made again from documents and weights, with the data and sources they go with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import nn

from bench.base.files import read_json, read_tensors
from bench.base.fingerprint import digest
from bench.base.types import DataInfo, Document, spec_of
from bench.evidence.folder import RunFolder
from bench.measure.cell import Sources
from bench.measure.probes import Probe, Samples, probe
from bench.plan.graph import Kind, at_seed
from bench.plugins import registry
from bench.plugins.contracts import LEARNT, Defense, LearningAttack
from bench.plugins.data import Dataset, unpack
from bench.runner.state import checksum
from bench.runner.task import Settings
from bench.training.fit import build


class Rebuilder:
    """Makes models, data sets and sources of documents, on one device.

    A data set is kept in memory once it was loaded, and is what it was then: ``changed`` looks. A
    model is made anew each time.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = RunFolder(settings.run)
        self.device = torch.device(settings.device)
        self._data: dict[str, Dataset] = {}
        self._checksums: dict[str, tuple[int, int]] = {}

    def load_model(self, fit_id: str) -> tuple[Defense, nn.Module]:
        """Rebuild a fitted model from the run's folder; raises DamagedError where it is torn."""
        return self._assemble(*self._stored("fit", fit_id))

    def load_learnt(self, fit_id: str) -> nn.Module:
        """Rebuild what an attack learnt, as ``load_model`` does."""
        document, weights = self._stored("attack-fit", fit_id)
        attack = registry.ATTACKS.make(spec_of(document["attack"]))
        assert isinstance(attack, LearningAttack), f"{document['attack']} learns nothing"
        module = attack.build(self.info(document["fit"])).to(self.device)
        module.load_state_dict(weights)
        return module.eval().requires_grad_(False)

    def document(self, role: str, fit_id: str) -> Document:
        """Return the plan's document of a fit that a node needs in this role."""
        kind: Kind = "attack-fit" if role == LEARNT else "fit"
        document: Document = read_json(self.folder.document(kind, fit_id))["key"]["document"]
        return document

    def _stored(self, kind: Kind, fit_id: str) -> tuple[Document, Mapping[str, torch.Tensor]]:
        """Return the plan's document of a fit, and its weights."""
        document = read_json(self.folder.document(kind, fit_id))
        weights = read_tensors(self.folder.weights(fit_id, kind), document["weights"])
        return document["key"]["document"], weights

    def info(self, fit_id: str) -> DataInfo:
        """Return the facts of a fit's data set, which is loaded only where none are set."""
        if self.settings.info is not None:
            return self.settings.info
        return self.data(self.document("model", fit_id)["dataset"]).info

    def fitted(
        self, needs: Mapping[str, str], learnt: str | None = None
    ) -> Mapping[str, nn.Module]:
        """Return the fitted models that a plugin requires, by role, rebuilt when asked for.

        ``learnt``: the fit of an attack, whose module stands beside them.
        """
        load: dict[str, Callable[[], nn.Module]] = {
            role: partial(lambda need: self.load_model(need)[1], need)
            for role, need in needs.items()
        }
        if learnt is not None:
            load[LEARNT] = partial(self.load_learnt, learnt)
        return _Fitted(load)

    def data(self, document: Document) -> Dataset:
        """Return the data set of a document, loaded once, on the device."""
        name = digest(document)
        if name not in self._data:
            data = self._loaded(document).to(self.device)
            self._checksums[name] = _checksums(data)
            self._data[name] = data
        return self._data[name]

    def _loaded(self, document: Document) -> Dataset:
        if self.settings.carried is not None:  # from another machine: a run has one data set
            return unpack(self.settings.carried)
        return registry.DATASETS.make(spec_of(document)).load(self.settings.data)

    def changed(self, test_only: bool = False) -> bool:
        """Return whether a loaded data set is not what it was, and forget one that is not.

        ``test_only``: look at the test splits alone, for the other ones may be many times as large.
        """
        found = False
        for name, data in list(self._data.items()):
            now, before = _checksums(data, test_only), self._checksums[name]
            if now[0] != before[0] or not (test_only or now == before):
                del self._data[name]
                found = True
        return found

    def sources(self, document: Document, data: Dataset) -> Sources:
        """Return the images that a cell of ``document`` attacks."""
        count, seed = document["sources"], document["source_seed"]
        ids = data.sources(None if count == "all" else count, seed).to(self.device)
        chosen = data.test.take(ids)
        return Sources(ids, chosen.x, chosen.y, seed)

    def probe(self, model: nn.Module, document: Document, data: Dataset) -> Probe:
        """Measure ``model`` as a probe's ``document`` says."""
        gradients, sources = (
            None if document[name] == "all" else document[name] for name in ("samples", "sources")
        )
        return probe(model, data, Samples(gradients, sources, document["source_seed"]))

    def _assemble(
        self, document: Document, weights: Mapping[str, torch.Tensor]
    ) -> tuple[Defense, nn.Module]:
        defense = make_defense(document)
        network = registry.NETWORKS.make(spec_of(document["network"]))
        info = self.settings.info or self.data(document["dataset"]).info
        fitted = self.fitted(document["requires"])
        model = build(defense, network, info, fitted, self.device)
        model.load_state_dict(weights)
        return defense, model


def _checksums(data: Dataset, test_only: bool = False) -> tuple[int, int]:
    rest = () if test_only else (data.train, data.validation)
    return (
        checksum([data.test.stored, data.test.y]),
        checksum([tensor for split in rest for tensor in (split.stored, split.y)]),
    )


class _Fitted(Mapping[str, nn.Module]):
    def __init__(self, load: Mapping[str, Callable[[], nn.Module]]) -> None:
        self.load = load
        self._models: dict[str, nn.Module] = {}

    def __getitem__(self, role: str) -> nn.Module:
        if role not in self._models:
            self._models[role] = self.load[role]()
        return self._models[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.load)

    def __len__(self) -> int:
        return len(self.load)


def make_defense(document: Document) -> Defense:
    """Return the defense of a fit's document, at its training seed."""
    return at_seed(registry.DEFENSES.make(spec_of(document["defense"])), document["seed"])
