"""One generic registry: a name, where it came from, and the class behind it.

Names are loaded when first asked for, so that listing them imports nothing and a broken plugin
breaks only those who select it. How names get in: ``bench.plugins.discovery``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bench.base.text import nearest, reason_of
from bench.base.types import Document, Spec, UserError
from bench.plugins.contracts import Attack, DataSource, Defense, Network, Plugin

T = TypeVar("T", bound=Plugin)
NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


@dataclasses.dataclass(frozen=True)
class Entry(Generic[T]):
    """A name, where it came from, and how to get the class behind it."""

    name: str
    origin: str
    load: Callable[[], type[T]]


class Registry(Generic[T]):
    """Names of one kind of plugin. ``kind`` is the word used in messages."""

    def __init__(self, kind: str, contract: Any) -> None:
        self.kind = kind
        self.contract = contract
        self._entries: dict[str, Entry[T]] = {}
        self._classes: dict[str, type[T]] = {}
        self._frozen = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorate a plugin class with its name."""

        def decorate(cls: type[T]) -> type[T]:
            # A plugin file may be loaded again (a worker, a notebook): the same class from the
            # same file is not a second plugin.
            origin = f"{_source_of(cls)}:{cls.__qualname__}"
            known = self._entries.get(name)
            if known is None or known.origin != origin:
                self.add(name, origin, lambda: cls)
            return cls

        return decorate

    def add(self, name: str, origin: str, load: Callable[[], type[T]]) -> None:
        """Add ``name``; raises UserError for a bad or taken name, or once frozen."""
        if self._frozen:
            raise UserError(
                f"the registry of {self.kind}s is frozen: register {name!r} before a run"
            )
        if not NAME.fullmatch(name):
            raise UserError(
                f"{self.kind} name {name!r} (from {origin}) is not valid: "
                "lower-case letters and digits, in words joined by - or _"
            )
        if name in self._entries:
            raise UserError(
                f"two {self.kind}s are called {name!r}: "
                f"one from {self._entries[name].origin}, one from {origin}"
            )
        self._entries[name] = Entry(name, origin, load)

    def spoil(self, name: str, origin: str, error: UserError) -> None:
        """Let selecting ``name`` raise ``error``: it is not valid, or two claim it."""

        def load() -> type[T]:
            raise error

        self._classes.pop(name, None)
        self._entries[name] = Entry(name, origin, load)

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        return sorted(self._entries)

    def origin(self, name: str) -> str:
        """Return where ``name`` was registered."""
        return self._entries[name].origin

    def get(self, name: str) -> type[T]:
        """Return the class called ``name``; raises UserError where it is unknown or broken."""
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}: {nearest(name, self._entries)}")
        if name not in self._classes:
            entry = self._entries[name]
            try:
                cls = entry.load()
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"{self.kind} {name!r} (from {entry.origin}) cannot be loaded: "
                    f"{reason_of(error)}"
                ) from error
            self._check(cls, entry)
            self._classes[name] = cls
        return self._classes[name]

    def _check(self, cls: type[T], entry: Entry[T]) -> None:
        contract = self.contract
        if not (isinstance(cls, type) and issubclass(cls, contract)):
            raise UserError(
                f"{self.kind} {entry.name!r} (from {entry.origin}) must be a subclass of "
                f"bench.{contract.__name__}, got {cls!r}"
            )
        if "__dataclass_params__" not in vars(cls) and dataclasses.fields(cls):
            raise UserError(
                f"{self.kind} {entry.name!r} must be a frozen dataclass: {entry.origin}"
            )

    def make(self, spec: Spec) -> T:
        """Return the plugin that ``spec`` describes; raises UserError for a wrong parameter."""
        cls = self.get(spec.name)
        what = f"{self.kind} {spec.name!r}"
        build = getattr(cls, "from_params", None)
        try:
            if build is not None:
                plugin = build(**spec.params)
                assert isinstance(plugin, cls)
                return plugin
            return cls(**_checked(what, cls, spec.params))
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}: {error}") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"{what}: {reason_of(error)}") from error

    def name_of(self, plugin: object) -> str:
        """Return the name under which the class of ``plugin`` is registered."""
        for name, cls in self._classes.items():
            if cls is type(plugin):
                return name
        for name in self.names():  # not asked for by name yet, say a class imported by a plugin
            origin = self._entries[name].origin
            if origin.endswith(f":{type(plugin).__qualname__}") and self.get(name) is type(plugin):
                return name
        raise UserError(
            f"{type(plugin).__module__}.{type(plugin).__qualname__} is not a registered {self.kind}"
        )

    def document(self, plugin: T) -> Document:
        """Return ``{"name", "params"}`` of ``plugin``, its parameters complete with defaults."""
        return {"name": self.name_of(plugin), "params": parameters(plugin)}

    def freeze(self) -> None:
        """Refuse further names: a run's plan must mean the same at its end as at its start."""
        self._frozen = True


@contextlib.contextmanager
def asking(plugin: object, method: str) -> Iterator[None]:
    """Turn whatever a plugin's method raises inside into a UserError that names both."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{type(plugin).__name__}.{method}: {reason_of(error)}") from error


def parameters(plugin: Plugin) -> dict[str, Any]:
    """Return the parameters of ``plugin`` as JSON values, complete with their defaults."""
    return {f.name: _plain(getattr(plugin, f.name)) for f in dataclasses.fields(plugin) if f.init}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, Path):
        return str(value)
    return value


def _checked(what: str, cls: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``params`` checked against the types of the fields of ``cls``."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name, field in fields.items():
        defaults = (field.default, field.default_factory)
        if name not in params and defaults == (dataclasses.MISSING, dataclasses.MISSING):
            raise UserError(f"{what} needs the parameter {name!r}")
    checked = {}
    for name, value in params.items():
        if name not in fields:
            raise UserError(f"{what} has no parameter {name!r}: {nearest(name, fields)}")
        try:
            checked[name] = _adapters(cls)[name].validate_python(value)
        except ValidationError as error:
            reasons = "; ".join(sorted({item["msg"] for item in error.errors()}))
            raise UserError(f"{what}: {name}: {reasons}, got {value!r}") from error
    return checked


@functools.cache
def _adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    # Strict: the text "20" is no temperature, and true is no number.
    strict = ConfigDict(strict=True)
    types = typing.get_type_hints(cls)
    return {f.name: TypeAdapter(types[f.name], config=strict) for f in dataclasses.fields(cls)}


def _source_of(cls: type) -> str:
    module = sys.modules.get(cls.__module__)
    return str(getattr(module, "__file__", None) or cls.__module__)


DEFENSES: Registry[Defense] = Registry("defense", Defense)
ATTACKS: Registry[Attack] = Registry("attack", Attack)
DATASETS: Registry[DataSource] = Registry("data set", DataSource)
NETWORKS: Registry[Network] = Registry("network", Network)

REGISTRIES: dict[str, Registry[Any]] = {
    "defenses": DEFENSES,
    "attacks": ATTACKS,
    "datasets": DATASETS,
    "networks": NETWORKS,
}
