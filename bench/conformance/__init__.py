"""The conformance suite: what the author of a plugin runs before anyone else does.

Each check names what is wrong and how to mend it. A plugin is tried on a small synthetic data
set, in seconds; ``python -m bench check my_defense.py`` does it for all that a file registers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from bench.base.types import UserError
from bench.conformance.attacks import attack_checks
from bench.conformance.checks import Check, Checks, contract_checks, subject_of
from bench.conformance.data import dataset_checks, tiny_data, tiny_model
from bench.conformance.models import defense_checks, network_checks
from bench.plugins import discovery, registry
from bench.plugins.data import Dataset

__all__ = [
    "Check",
    "check_attack",
    "check_dataset",
    "check_defense",
    "check_network",
    "check_plugins",
    "tiny_data",
    "tiny_model",
]

Params = Mapping[str, Any] | None
Behaviour = Callable[[Checks, Any, Dataset], None]
KINDS: dict[str, Behaviour] = {
    "defenses": defense_checks,
    "attacks": attack_checks,
    "networks": network_checks,
    "datasets": dataset_checks,
}


def check_defense(defense: Any, params: Params = None, data: Dataset | None = None) -> list[Check]:
    """Check a defense: a class, an instance or a registered name, with parameters.

    ``data`` replaces the synthetic (1, 16, 16) images of three classes (``tiny_data``), for a
    plugin that needs others.
    """
    return _check("defenses", defense, params, data)


def check_attack(attack: Any, params: Params = None, data: Dataset | None = None) -> list[Check]:
    """Check an attack, given as ``check_defense`` takes a defense."""
    return _check("attacks", attack, params, data)


def check_network(network: Any, params: Params = None, data: Dataset | None = None) -> list[Check]:
    """Check a network, given as ``check_defense`` takes a defense."""
    return _check("networks", network, params, data)


def check_dataset(dataset: Any, params: Params = None, data: Dataset | None = None) -> list[Check]:
    """Check a data source, given as ``check_defense`` takes a defense; ``data`` is not used."""
    return _check("datasets", dataset, params, data)


def _check(kind: str, given: Any, params: Params, data: Dataset | None) -> list[Check]:
    discovery.load_plugins()
    subject = subject_of(kind, given, params or {})
    checks = Checks(f"{registry.REGISTRIES[kind].kind} {subject.name}")
    plugin = contract_checks(checks, subject)
    if plugin is not None:
        KINDS[kind](checks, plugin, data or tiny_data())
    return checks.results


def check_plugins(plugin: str, params: Params = None) -> list[Check]:
    """Check everything that a plugin file or module registers.

    ``params``: values for parameters without a default, each given to the plugins that have it.
    Raises UserError where the file cannot be imported or registers nothing.
    """
    discovery.load_plugins()
    before = {kind: set(found.names()) for kind, found in registry.REGISTRIES.items()}
    module = discovery.import_plugin(plugin).__name__
    subjects = [
        (kind, name)
        for kind, found in registry.REGISTRIES.items()
        for name in found.names()
        if name not in before[kind] or _is_from(found, name, module)
    ]
    if not subjects:
        raise UserError(
            f"{plugin!r} registers nothing: decorate a class with @bench.defense(NAME), "
            "@bench.attack(NAME), @bench.network(NAME) or @bench.dataset(NAME)"
        )
    results = []
    for kind, name in subjects:
        results += _check(kind, name, _known(kind, name, params or {}), None)
    return results


def _is_from(found: registry.Registry[Any], name: str, module: str) -> bool:
    # Registered before, as a built-in, an entry point or by an earlier import.
    origin = re.search(r"([\w.]+):[\w.]+\)?$", found.origin(name))
    home = origin.group(1) if origin else ""
    with contextlib.suppress(UserError):  # broken: then where it says it comes from must do
        home = found.get(name).__module__
    return home == module or home.startswith(f"{module}.")


def _known(kind: str, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    try:
        fields = dataclasses.fields(registry.REGISTRIES[kind].get(name))
    except UserError:
        return {}  # broken: its first check says so
    return {field.name: params[field.name] for field in fields if field.name in params}
