"""A plugin as another plugin's parameter: its name, or a table with its name and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.base.places import placed
from bench.base.types import Spec, UserError
from bench.plugins.contracts import Plugin
from bench.plugins.registry import Registry, parameters

T = TypeVar("T", bound=Plugin)

Table = Mapping[str, Any]

if TYPE_CHECKING:
    NameOrTable = Table | str
else:
    # Whatever is given comes through to ``resolve``, which says more than "no valid dictionary".
    NameOrTable = Any


def as_table(parameter: str, given: Any, example: str) -> dict[str, Any]:
    """Return ``given`` as a table with a name; raises ValueError that shows ``example`` as a name.

    ``parameter`` is what the plugin around it calls it, as in ``"source"``.
    """
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise ValueError(  # noqa: TRY004 (the registry reports it as the plugin's)
            f"{parameter} must be a name or a table with a name, "
            f'as in {parameter} = {{ name = "{example}" }}, got {given!r}'
        )
    return dict(table)


ZOOS = ("torchvision", "timm", "robustbench")
"""Packages whose networks are named ``PACKAGE:NAME``."""


def as_network(name: str) -> dict[str, Any]:
    """Return a network's name as a table: ``torchvision:resnet50`` is one of a package's."""
    zoo, colon, model = name.partition(":")
    return {"name": zoo, "model": model} if colon and zoo in ZOOS else {"name": name}


def as_dataset(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return a data set's name as a table: a file or a folder is one of a user's own.

    ``.npz`` and ``.safetensors`` are ``arrays``, a path that ends in ``/`` or is a folder is an
    ``image-folder``; a relative path starts at the matrix, or at ``folder``.
    """
    path = name if folder is None else str(folder / name)
    if name.endswith((".npz", ".safetensors")):
        return {"name": "arrays", "path": path}
    if name.endswith("/") or ("/" in name and placed(path).is_dir()):
        return {"name": "image-folder", "path": path}
    return {"name": name}


def as_spec(table: Table) -> Spec:
    """Return a table as a ``Spec``."""
    return Spec(table["name"], {key: value for key, value in table.items() if key != "name"})


def resolve(
    registry: Registry[T], parameter: str, given: Any, example: str
) -> tuple[T, dict[str, Any]]:
    """Return the plugin that ``given`` describes, and its table complete with the defaults.

    The document of a fit or a cell must say all that it depends on. Raises ValueError where
    ``given`` is no table, or names an unknown plugin or a wrong parameter.
    """
    table = as_table(parameter, given, example)
    try:
        plugin = registry.make(as_spec(table))
    except UserError as error:
        raise ValueError(f"{parameter}: {error}") from error
    return plugin, {"name": table["name"], **parameters(plugin)}
