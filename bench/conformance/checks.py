"""What a check is, and the checks that every kind of plugin has to pass."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.base.types import Spec, UserError
from bench.conformance.advice import ADVICE
from bench.plugins import registry
from bench.plugins.registry import NAME, Registry


@dataclass(frozen=True)
class Check:
    """One finding: ``status`` is ``ok``, ``FAILED`` or ``not checked``; why; how to mend it."""

    subject: str
    name: str
    status: Literal["ok", "FAILED", "not checked"] = "ok"
    problem: str = ""
    advice: str = ""

    @property
    def failed(self) -> bool:
        """Whether something has to be mended."""
        return self.status == "FAILED"

    def __str__(self) -> str:
        text = f"{self.status:<7} {self.subject}: {self.name}"
        if self.problem:
            text += f": {self.problem}"
        return f"{text}; to mend it: {self.advice}" if self.advice else text


class Checks:
    """Collects the findings about one plugin."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.results: list[Check] = []

    def run(self, name: str, check: Callable[[], str | None]) -> bool:
        """Run ``check``, which returns a problem or None; raising is a problem too."""
        try:
            problem = check()
        except (Exception, SystemExit) as error:  # noqa: BLE001 (other people's code)
            message = " ".join(str(error).split())
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            problem = f"raises {kind}{message}"
        if problem:
            self.results.append(Check(self.subject, name, "FAILED", problem, ADVICE[name]))
        else:
            self.results.append(Check(self.subject, name))
        return not problem

    def skip(self, name: str, reason: str) -> None:
        """Note that a check could not be made."""
        self.results.append(Check(self.subject, name, "not checked", reason))


@dataclass(frozen=True)
class Subject:
    """A plugin as it was given: how to get its class, and the parameters to make it with."""

    kind: str
    name: str
    load: Callable[[], type[Any]]
    params: Mapping[str, Any]


def subject_of(kind: str, given: Any, params: Mapping[str, Any]) -> Subject:
    """Return the subject of a registered name, a class or an instance."""
    if isinstance(given, str):
        return Subject(kind, given, lambda: registry.REGISTRIES[kind].get(given), params)
    cls = given if isinstance(given, type) else type(given)
    if not isinstance(given, type):
        params = {**registry.parameters(given), **params}
    return Subject(kind, cls.__name__, lambda: cls, params)


def contract_checks(checks: Checks, subject: Subject) -> Any:
    """Check what every plugin promises; return an instance, or None where none can be made."""
    home = registry.REGISTRIES[subject.kind]
    # A registry of its own: a class need not be registered to be checked.
    own: Registry[Any] = Registry(home.kind, home.contract)
    name = subject.name if NAME.fullmatch(subject.name) else "subject"
    own.add(name, subject.name, subject.load)
    if not checks.run("contract", lambda: _contract(own.get(name))):
        return None
    cls = own.get(name)
    checks.run("documentation", lambda: _documentation(cls))
    checks.run("source", lambda: _source(cls))
    if missing := _missing(cls, subject.params):
        names = ", ".join(missing)
        checks.skip("behaviour", f"it needs {names}: give {names} with --param NAME=VALUE")
        return None
    if not checks.run("parameters", lambda: _made(own, Spec(name, subject.params))):
        return None
    plugin = own.make(Spec(name, subject.params))
    checks.run("round trip", lambda: _round_trip(own, plugin))
    return plugin


def _contract(cls: type[Any]) -> str | None:
    fields = {field.name for field in dataclasses.fields(cls)}
    plain = [
        name
        for name, hint in inspect.get_annotations(cls).items()
        if name not in fields and "ClassVar" not in str(hint)
    ]
    if plain:
        return f"{', '.join(plain)} is annotated, and the class is no dataclass"
    return None


def _documentation(cls: type[Any]) -> str | None:
    own = vars(cls).get("__doc__") or ""
    if not own.strip() or own.startswith(f"{cls.__name__}("):  # what dataclass makes up
        return "it has no docstring"
    module = sys.modules.get(cls.__module__)
    # Inherited parameters may be documented where they are defined.
    texts = [vars(base).get("__doc__") or "" for base in cls.__mro__[:-1]]
    text = "\n".join([*texts, getattr(module, "__doc__", None) or ""])
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    silent = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)]
    return f"the docstring does not name {', '.join(silent)}" if silent else None


def _source(cls: type[Any]) -> str | None:
    try:
        inspect.getsource(cls)
    except (OSError, TypeError):
        return "its source cannot be read, so that a change of it would go unnoticed"
    return None


def _missing(cls: type[Any], params: Mapping[str, Any]) -> list[str]:
    absent = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.init
        and field.name not in params
        and (field.default, field.default_factory) == (absent, absent)
    ]


def _made(own: Registry[Any], spec: Spec) -> str | None:
    own.make(spec)
    return None


def _round_trip(own: Registry[Any], plugin: Any) -> str | None:
    document = own.document(plugin)
    again = json.loads(json.dumps(document, allow_nan=False))
    if again != document:
        return "its parameters change on the way through JSON"
    if own.document(own.make(Spec(again["name"], again["params"]))) != document:
        return "made of its own parameters it is another plugin"
    return None
