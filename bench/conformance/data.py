"""The synthetic data that plugins are tried on, and the checks of a data source."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bench.base.types import DataInfo, Spec, UserError
from bench.conformance.checks import Checks
from bench.plugins import registry
from bench.plugins.contracts import DataSettings, DataSource
from bench.plugins.data import Dataset, Split, assemble
from bench.plugins.recipes import RECIPES, Recipe
from bench.training.loop import train

TINY = Recipe(epochs=3, batch_size=32, optimizer="adam", lr=1e-2)
"""How a plugin is trained here: long enough to change every weight."""


def tiny_data() -> Dataset:
    """Return 96, 24 and 24 images (1, 16, 16) of three classes: a bright square, and noise.

    Made anew each time, for a plugin may write into what it is given.
    """
    random = np.random.RandomState(0)
    labels = np.arange(144) % 3
    images = random.uniform(0.2, 0.5, (144, 1, 16, 16)).astype(np.float32)
    for label in range(3):
        images[labels == label, :, 5 * label : 5 * label + 5, 4:12] += 0.3
    return assemble("tiny", (images[:120], labels[:120]), (images[120:], labels[120:]), 24)


def tiny_model(data: Dataset) -> nn.Module:
    """Return a small network trained on ``data``, in eval mode: what attacks are tried on."""
    network = registry.NETWORKS.make(Spec("mlp", {"width": 32}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.build(data.info)
        train(model, data.train.x, data.train.y, TINY, torch.Generator().manual_seed(0))
    return model


def dataset_checks(checks: Checks, source: DataSource, _: Any) -> None:
    """Check a data source; nothing is downloaded."""
    settings = DataSettings(offline=True)
    try:
        data = source.load(settings)
    except UserError as error:
        # A data set that is not on this machine is no fault of its plugin.
        checks.skip("data", f"it does not load without a network: {error}")
        return
    except Exception:  # noqa: BLE001 (raised and reported again by the check)
        data = None
    if not checks.run("load", lambda: _loaded(source.load(settings) if data is None else data)):
        return
    assert data is not None
    checks.run("splits", lambda: _splits(data))
    checks.run("same data", lambda: _same(data, source.load(settings)))
    checks.run("defaults", lambda: _defaults(source))


def _loaded(data: object) -> str | None:
    return None if isinstance(data, Dataset) else f"load returns {type(data).__name__}"


def _splits(data: Dataset) -> str | None:
    # A data set for evaluation alone has neither of the first two.
    alone = not len(data.train) and not len(data.validation)
    for name in ("test",) if alone else ("train", "validation", "test"):
        if problem := _split(getattr(data, name), data.info):
            return f"{name}: {problem}"
    return None


def _split(split: Split, info: DataInfo) -> str | None:
    x, y, shape = split.x, split.y, tuple(info.shape)
    if not len(split):
        return "it is empty"
    if x.dtype != torch.float32 or tuple(x.shape[1:]) != shape or len(x) != len(y):
        return f"x is {x.dtype} {tuple(x.shape)}, expected float32 ({len(y)}, *{shape})"
    if not (torch.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        return f"x leaves [0, 1]: from {float(x.min()):g} to {float(x.max()):g}"
    if y.dtype != torch.int64 or y.dim() != 1:
        return f"y is {y.dtype} {tuple(y.shape)}"
    if y.min() < 0 or y.max() >= info.classes:
        return f"labels from {int(y.min())} to {int(y.max())} of {info.classes} classes"
    return None


def _same(first: Dataset, second: Dataset) -> str | None:
    if first.fingerprint != second.fingerprint or not torch.equal(first.test.x, second.test.x):
        return "two loads differ"
    return None


def _defaults(source: DataSource) -> str | None:
    registry.NETWORKS.get(source.network)
    return None if source.recipe in RECIPES else f"there is no recipe {source.recipe!r}"
