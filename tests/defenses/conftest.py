"""A batch, a network and a context that let a defense show its objective without training."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bench.conformance import tiny_data
from bench.plugins import discovery as doors
from bench.plugins import registry
from bench.plugins.contracts import Defense, FitContext
from bench.plugins.data import Dataset
from bench.plugins.recipes import Objective, Recipe

SHORT = Recipe(epochs=4, batch_size=24, optimizer="adam", lr=1e-3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session", autouse=True)
def plugins() -> None:
    doors.load_plugins()


@pytest.fixture(scope="session")
def data() -> Dataset:
    return tiny_data()


@pytest.fixture
def network(data: Dataset) -> nn.Module:
    """An untrained network with dropout, in training mode, as the training loop hands it on."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).train()


@pytest.fixture
def objective_of(data: Dataset) -> Callable[..., Objective]:
    """Return a function: the objective that a defense hands to the training loop."""

    def of(defense: Defense, seed: int = 0) -> Objective:
        asked = SimpleNamespace()

        def train(model: nn.Module, x: Any, targets: Any, *, objective: Objective) -> None:
            assert x is data.train.x
            assert targets is data.train.y
            asked.objective = objective

        context = FitContext(
            data.info, {}, data.validation, SHORT, seeded(seed), train, registry.ATTACKS.make
        )
        defense.fit(nn.Identity(), data.train, context)
        return asked.objective

    return of
