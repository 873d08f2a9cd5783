"""Networks of other packages, by name: their structure alone, never their weights."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.base.text import nearest
from bench.base.types import DataInfo, UserError
from bench.plugins.contracts import Network


@dataclass(frozen=True)
class Torchvision(Network):
    """A classifier of torchvision, ``torchvision:NAME`` or ``model = "NAME"``, untrained.

    It takes what its weights were trained on: give a checkpoint the ``mean`` and ``std`` of that.
    """

    model: str

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network with as many logits as the data have classes."""
        models = _package("torchvision.models", "torchvision", "pip install torchvision")
        known = models.list_models(module=models)
        if self.model not in known:
            raise UserError(
                f"torchvision has no classifier {self.model!r}: {nearest(self.model, known)}"
            )
        # What the two with auxiliary outputs need to return logits in training mode too.
        extra = {"aux_logits": False} if self.model in ("googlenet", "inception_v3") else {}
        network: nn.Module = models.get_model(
            self.model, weights=None, num_classes=info.classes, **extra
        )
        return network


@dataclass(frozen=True)
class Timm(Network):
    """A classifier of timm, ``timm:NAME`` or ``model = "NAME"``, untrained; the extra ``timm``.

    It takes what its weights were trained on: give a checkpoint the ``mean`` and ``std`` of that.
    """

    model: str

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network for the channels and classes of the data; nothing is downloaded."""
        timm = _package("timm", "timm", "pip install 'retort-bench[timm]'")
        if self.model.partition(".")[0] not in timm.list_models():
            raise UserError(
                f"timm has no network {self.model!r}: {nearest(self.model, timm.list_models())}"
            )
        channels = info.shape[0] if len(info.shape) == 3 else 3
        network: nn.Module = timm.create_model(
            self.model, pretrained=False, num_classes=info.classes, in_chans=channels
        )
        return network


@dataclass(frozen=True)
class RobustBench(Network):
    """A network of RobustBench's model zoo, ``robustbench:NAME``, untrained; the extra ``zoo``.

    Its weights are a checkpoint's ``weights``, as RobustBench stores them:
    ``models/DATASET/THREAT/NAME.pt``. Nothing is downloaded. It normalises inside.
    """

    model: str

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network, from whichever of the zoo's data sets and threats it stands under."""
        zoo = _package(
            "robustbench.model_zoo.models", "robustbench", "pip install 'retort-bench[zoo]'"
        )
        entries: dict[str, Any] = {}
        for dataset in zoo.model_dicts.values():
            for models in dataset.values():
                entries.update({name: entry["model"] for name, entry in models.items()})
        if self.model not in entries:
            raise UserError(
                f"robustbench has no network {self.model!r}: {nearest(self.model, entries)}"
            )
        network = entries[self.model]()
        if not isinstance(network, nn.Module):
            raise UserError(f"robustbench:{self.model} is an ensemble: name one of its networks")
        return network


def _package(module: str, package: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"{package} cannot be imported ({error}): {install}") from error
