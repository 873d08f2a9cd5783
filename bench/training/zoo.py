"""Networks of other packages, by name: their structure alone, never their weights."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from bench.base.types import DataInfo, UserError
from bench.plugins.contracts import Network

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
"""Of RobustBench's data sets: one name may stand for a network on each."""


@dataclass(frozen=True)
class Torchvision(Network):
    """A classifier of torchvision, ``torchvision:NAME`` or ``model = "NAME"``, untrained.

    It takes what its weights were trained on: give a checkpoint the ``mean`` and ``std`` of that.
    """

    model: str

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network with as many logits as the data have classes."""
        models = _package("torchvision.models", "torchvision", "pip install torchvision")
        _known("torchvision", self.model, models.list_models(module=models))
        # What the two with auxiliary outputs need to return logits alone, and at once.
        aside = self.model in ("googlenet", "inception_v3")
        extra = {"aux_logits": False, "init_weights": False} if aside else {}
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
        _known("timm", self.model.partition(".")[0], timm.list_models())
        channels = info.shape[0] if len(info.shape) == 3 else 3
        network: nn.Module = timm.create_model(
            self.model, pretrained=False, num_classes=info.classes, in_chans=channels
        )
        return network


@dataclass(frozen=True)
class RobustBench(Network):
    """A network of RobustBench's model zoo, ``robustbench:NAME``, untrained; the extra ``zoo``.

    Of those for as many classes as the data have. Its weights are a checkpoint's ``weights``, as
    RobustBench stores them: ``models/DATASET/THREAT/NAME.pt``. Nothing is downloaded. It
    normalises inside.
    """

    model: str

    def build(self, info: DataInfo) -> nn.Module:
        """Return the network, from whichever of the zoo's data sets and threats it stands under."""
        zoo = _package(
            "robustbench.model_zoo.models", "robustbench", "pip install 'retort-bench[zoo]'"
        )
        entries: dict[str, Any] = {}
        for dataset, threats in zoo.model_dicts.items():
            if CLASSES.get(dataset.value, info.classes) == info.classes:
                for models in threats.values():
                    entries |= {name: entry["model"] for name, entry in models.items()}
        _known("robustbench", self.model, entries)
        network = entries[self.model]()
        if not isinstance(network, nn.Module):
            raise UserError(f"robustbench:{self.model} is an ensemble: name one of its networks")
        return network


def _known(package: str, name: str, names: Iterable[str]) -> None:
    """Raise UserError that shows the nearest of ``names``, which are too many for all of them."""
    known = list(names)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise UserError(
            f"{package} has no classifier {name!r}: did you mean {', '.join(close)}? "
            f"({len(known)} names)"
        )


def _package(module: str, package: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"{package} cannot be imported ({error}): {install}, and what it says is missing"
        ) from error
