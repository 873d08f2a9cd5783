"""The public API of Retort, for plugin authors and notebooks.

Retort asks how robust a defense really is. Names load when first used, so that
``python -m bench --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.base.types import DataInfo, Spec, ThreatModel, UserError
    from bench.compose import run
    from bench.evaluation import evaluate
    from bench.judging.answer import Verdict
    from bench.judging.modules import judge
    from bench.plugins.contracts import (
        Attack,
        AttackContext,
        BuildContext,
        DataSettings,
        DataSource,
        Defense,
        FitContext,
        LearningAttack,
        Network,
        Perturbation,
    )
    from bench.plugins.data import Dataset, Split
    from bench.plugins.registry import ATTACKS, DATASETS, DEFENSES, NETWORKS

    attack = ATTACKS.register
    dataset = DATASETS.register
    defense = DEFENSES.register
    network = NETWORKS.register

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "AttackContext",
    "BuildContext",
    "DataInfo",
    "DataSettings",
    "DataSource",
    "Dataset",
    "Defense",
    "FitContext",
    "LearningAttack",
    "Network",
    "Perturbation",
    "Spec",
    "Split",
    "ThreatModel",
    "UserError",
    "Verdict",
    "attack",
    "dataset",
    "defense",
    "evaluate",
    "judge",
    "network",
    "run",
]

_HOMES = {
    "bench.compose": ("run",),
    "bench.plugins.data": ("Dataset", "Split"),
    "bench.evaluation": ("evaluate",),
    "bench.judging.answer": ("Verdict",),
    "bench.judging.modules": ("judge",),
    "bench.plugins.contracts": (
        "Attack", "AttackContext", "BuildContext", "DataSettings", "DataSource", "Defense",
        "FitContext", "LearningAttack", "Network", "Perturbation",
    ),
    "bench.base.types": ("DataInfo", "Spec", "ThreatModel", "UserError"),
}  # fmt: skip
_REGISTRIES = {
    "attack": "ATTACKS",
    "dataset": "DATASETS",
    "defense": "DEFENSES",
    "network": "NETWORKS",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _REGISTRIES:
        return getattr(import_module("bench.plugins.registry"), _REGISTRIES[name]).register
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
