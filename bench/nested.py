"""A plugin as another plugin's parameter: its name, or a table with its name and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from bench.plugin import Plugin
from bench.registry import Registry, parameters
from bench.types import Spec, UserError

T = TypeVar("T", bound=Plugin)

Table = Mapping[str, Any]


def as_table(what: str, given: Any, example: str) -> dict[str, Any]:
    """Return ``given`` as a table with a name; raises UserError that shows ``example`` as a name.

    ``what`` says whose parameter it is, as in ``"source of attack 'transfer'"``.
    """
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        name = what.split(maxsplit=1)[0]
        raise UserError(
            f"{what} must be a name or a table with a name, "
            f'as in {name} = {{ name = "{example}" }}, got {given!r}'
        )
    return dict(table)


def as_spec(table: Table) -> Spec:
    """Return a table as a ``Spec``."""
    return Spec(table["name"], {key: value for key, value in table.items() if key != "name"})


def complete(plugin: Plugin, name: str) -> dict[str, Any]:
    """Return the table of ``plugin``, its parameters complete with their defaults.

    The document of a fit or a cell must say all that it depends on.
    """
    return {"name": name, **parameters(plugin)}


def resolve(registry: Registry[T], what: str, given: Any, example: str) -> tuple[T, dict[str, Any]]:
    """Return the plugin that ``given`` describes, and its complete table.

    Raises UserError where it is no table, or names an unknown plugin or a wrong parameter.
    """
    table = as_table(what, given, example)
    plugin = registry.make(as_spec(table))
    return plugin, complete(plugin, table["name"])
