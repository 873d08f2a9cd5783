"""The command that repeats a run, from what the run left."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from bench.base.types import UserError
from bench.evidence.finished_run import FinishedRun
from bench.plan.matrix import MatrixConfig, load_matrix, matrix_names

OVERRIDES = ("network", "recipe", "seeds", "sources", "effort")


def repeat_command(run: FinishedRun, device: str) -> tuple[str, str | None]:
    """Return the command that repeats ``run`` elsewhere, and the matrix file that it names.

    The file's text is None where the matrix comes with the package. ``device``: its class.
    """
    matrix = run.plan.matrix
    options = _as_built_in(matrix)
    if options is None:
        words = ["--matrix", f"{matrix.name}.toml"]
    else:
        words = ["--matrix", matrix.name, *options]
    out = run.folder.root.with_name(f"{run.folder.root.name}-again")
    words += ["--device", device, "--out", str(out)]
    command = " ".join(shlex.quote(word) for word in ("python", "-m", "bench", "run", *words))
    return command, None if options is not None else to_toml(matrix)


def _as_built_in(matrix: MatrixConfig) -> list[str] | None:
    """Return the options that turn the built-in matrix of that name into this one, if any do."""
    if matrix.name not in matrix_names():
        return None
    known = load_matrix(matrix.name)
    words: list[str] = []
    changed: dict[str, Any] = {}
    for name in OVERRIDES:
        value = getattr(matrix, name)
        if value == getattr(known, name):
            continue
        if name == "network" and set(value or ()) != {"name"}:
            return None  # the option names a network and gives it no parameters
        changed[name] = value
        text = ",".join(map(str, value)) if name == "seeds" else str(_name(value))
        words += [f"--{name}", text]
    if matrix.dataset != known.dataset:
        if set(matrix.dataset) != {"name"}:
            return None
        changed["dataset"] = matrix.dataset
        words += ["--dataset", matrix.dataset["name"]]
    return words if _same(load_matrix(matrix.name, changed), matrix) else None


def _name(value: Any) -> Any:
    return value["name"] if isinstance(value, dict) else value


def _same(first: MatrixConfig, second: MatrixConfig) -> bool:
    return first.model_dump() == second.model_dump()


def to_toml(matrix: MatrixConfig) -> str:
    """Return ``matrix`` as a TOML file that loads back equal.

    Raises UserError for a value that TOML cannot write.
    """
    return as_toml(matrix.model_dump(mode="json", exclude_none=True))


def as_toml(table: Mapping[str, Any]) -> str:
    """Return the ``table`` of a matrix as a TOML file, as it is written there."""
    document = dict(table)
    tables = {name: document.pop(name, []) for name in ("defense", "attack", "panel")}
    lines = [f"{name} = {_value(value)}" for name, value in document.items()]
    for name, items in tables.items():
        for item in items:
            lines += ["", f"[[{name}]]", *(f"{_key(k)} = {_value(v)}" for k, v in item.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str | int | float):  # JSON's strings, numbers and booleans are TOML's
        return json.dumps(value)
    raise UserError(f"TOML cannot write {value!r}")


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)
