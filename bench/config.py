"""Matrix files: TOML in, a validated ``MatrixConfig`` out."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bench.text import nearest
from bench.types import Spec, UserError


def _as_table(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _has_name(table: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(table.get("name"), str):
        raise ValueError(  # noqa: TRY004 (pydantic reports a ValueError as the key's)
            'needs a name, as in name = "undefended"'
        )
    return table


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) != len(values):
        raise ValueError(f"has a value twice: {values}")
    return values


Table = Annotated[dict[str, Any], BeforeValidator(_as_table), AfterValidator(_has_name)]
Sources = Annotated[int, Field(ge=1)] | Literal["all"]


class MatrixConfig(BaseModel):
    """One matrix: which defenses meet which attacks, on what data, trained how.

    A list in a ``[[defense]]`` or ``[[attack]]`` table sweeps its parameter; ``note`` in one is a
    remark shown beside its rows. ``report = "agreement"`` adds a page that holds each attack
    against the first that differentiates the same output, attempt by attempt. ``network`` and
    ``recipe`` default to the data set's own. ``sources`` images of the test split are attacked,
    chosen by ``source_seed``, the same for every model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    dataset: Table = {"name": "digits"}
    network: Table | None = None
    recipe: str | None = None
    sources: Sources = 100
    source_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    seeds: Annotated[
        list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)
    ] = [0]
    report: Literal["agreement"] | None = None
    defense: list[Table] = Field(min_length=1)
    attack: list[Table] = Field(min_length=1)

    def defenses(self) -> list[Spec]:
        """Return every defense of the matrix, sweeps expanded, in the order of the file."""
        return [spec for table in self.defense for spec in expand(table)]

    def attacks(self) -> list[Spec]:
        """Return every attack of the matrix, sweeps expanded, in the order of the file."""
        return [spec for table in self.attack for spec in expand(table)]


def expand(table: Mapping[str, Any]) -> Iterator[Spec]:
    """Yield one ``Spec`` for each combination of the values that ``table`` lists.

    >>> [dict(spec.params) for spec in expand({"name": "fgsm", "eps": [0.1, 0.2]})]
    [{'eps': 0.1}, {'eps': 0.2}]
    """
    params = {key: value for key, value in table.items() if key not in ("name", "note")}
    axes = [value if isinstance(value, list) else [value] for value in params.values()]
    for values in itertools.product(*axes):
        yield Spec(table["name"], dict(zip(params, values, strict=True)))


def matrix_names() -> list[str]:
    """Return the names of the matrices that come with the package."""
    folder = files("bench") / "matrices"
    return sorted(
        item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")
    )


def load_matrix(matrix: str | Path, overrides: Mapping[str, Any] | None = None) -> MatrixConfig:
    """Read a matrix by name or file; ``overrides`` replace top-level keys.

    Raises UserError that names the file and the key, or the line where it is no TOML.
    """
    text, origin = _read(matrix)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin}: not valid TOML: {error}") from error
    document.update({key: value for key, value in (overrides or {}).items() if value is not None})
    return parse_matrix(document, origin)


def parse_matrix(document: Mapping[str, Any], origin: str) -> MatrixConfig:
    """Validate a matrix given as a table; ``origin`` is named in errors."""
    try:
        return MatrixConfig.model_validate(document)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item, origin) for item in error.errors())) from error


def _read(matrix: str | Path) -> tuple[str, str]:
    name = str(matrix)
    if not name.endswith(".toml") and "/" not in name:
        if name not in matrix_names():
            raise UserError(
                f"unknown matrix {name!r}: {nearest(name, matrix_names())}; or give a .toml file"
            )
        return (files("bench") / "matrices" / f"{name}.toml").read_text(
            encoding="utf-8"
        ), f"matrix {name!r}"
    try:
        return Path(name).read_text(encoding="utf-8"), name
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"matrix file {name!r} cannot be read: {error}") from error


def _explain(item: Any, origin: str) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{origin}: unknown key {where!r}: {nearest(where, MatrixConfig.model_fields)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{origin}: {where}: {message}"
    return f"{origin}: {where}: {message}, got {item['input']!r}"
