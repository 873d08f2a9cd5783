"""Matrix files: TOML in, a validated ``MatrixConfig`` out."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from bench.base.text import nearest
from bench.base.types import Spec, UserError
from bench.plan.panel import LATE, Entry, Panel


def _as_table(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _has_name(table: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(table.get("name"), str):
        raise ValueError(  # noqa: TRY004 (pydantic reports a ValueError as the key's)
            'needs a name, as in name = "undefended"'
        )
    for key, value in table.items():
        if value == []:
            raise ValueError(f"{key} = [] is a sweep over nothing: name a value")
    return table


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) != len(values):
        raise ValueError(f"has a value twice: {values}")
    return values


Table = Annotated[dict[str, Any], BeforeValidator(_as_table), AfterValidator(_has_name)]
Sources = Annotated[int, Field(ge=1, strict=True)] | Literal["all"]


class MatrixConfig(BaseModel):
    """One matrix: which defenses meet which attacks, on what data, trained how.

    A list in a ``[[defense]]`` or ``[[attack]]`` table sweeps its parameter; ``note`` in one is a
    remark shown beside its rows. ``report = "agreement"`` adds a page that holds each attack
    against the first that differentiates the same output, attempt by attempt; ``"distillation"``
    a page, a table of costs and figures that stand beside the published ones; ``"findings"`` a page
    that tells what the run shows, each in two sentences with a table and a figure, and the logits
    and pairs of models that it is made of. ``network`` and ``recipe`` default to the data set's
    own. ``sources`` images of the test split are attacked, chosen by ``source_seed``, the same for
    every model. ``probe_samples``: on how many of the test images input gradients are measured
    without an attack, at least on the sources.

    A ``[[panel]]`` names a norm and budgets: every defense meets the attacks committed for that
    norm (``bench.plan.panel``) and gets a verdict. ``effort`` above 1 runs the panel once more with
    so many times the steps, restarts and queries, and tells by how much the worst case moved.
    ``most_passes``: forward and backward passes that an attempt may cost before its attack is
    stopped; what it asked about until then counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    dataset: Table = {"name": "digits"}
    network: Table | None = None
    recipe: str | None = None
    sources: Sources = 100
    probe_samples: Sources = 1000
    source_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    seeds: Annotated[
        list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)
    ] = [0]
    report: Literal["agreement", "distillation", "findings"] | None = None
    defense: list[Table] = Field(min_length=1)
    attack: list[Table] = []
    panel: list[Panel] = []
    effort: Annotated[int, Field(ge=1)] = 1
    most_passes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _attacked_somehow(self) -> MatrixConfig:
        if not self.attack and not self.panel:
            raise ValueError("an [[attack]] or a [[panel]] is required")
        norms = [panel.norm for panel in self.panel]
        if len(set(norms)) != len(norms):
            raise ValueError(f"one [[panel]] a norm is expected, got {norms}")
        if self.effort > 1 and not self.panel:
            raise ValueError(f"effort = {self.effort} multiplies a [[panel]], and there is none")
        return self

    def defenses(self) -> list[Spec]:
        """Return every defense of the matrix, sweeps expanded, in the order of the file."""
        return [spec for table in self.defense for spec in expand(table)]

    def own_attacks(self) -> list[Spec]:
        """Return the attacks of the file itself, sweeps expanded."""
        return [spec for table in self.attack for spec in expand(table)]

    def attacks(self) -> list[Spec]:
        """Return every attack: the file's own, then those of its panels, without closers."""
        found = self.own_attacks()
        for entry in self.entries():
            if entry.spec not in found and entry.role not in LATE:
                found.append(entry.spec)
        return found

    def entries(self) -> list[Entry]:
        """Return the attacks of all panels, with the role of each."""
        return [entry for panel in self.panel for entry in panel.entries(self.effort)]

    def with_budgets(self, budgets: Mapping[str, Sequence[float]]) -> MatrixConfig:
        """Return the matrix with these ``budgets`` by norm: a panel changed, or added.

        Raises UserError for an unknown norm or a budget that the norm cannot have.
        """
        found: dict[str, Sequence[float]] = {panel.norm: panel.budgets for panel in self.panel}
        found.update(budgets)
        tables = [{"norm": norm, "budgets": list(values)} for norm, values in found.items()]
        return parse_matrix({**self.model_dump(), "panel": tables}, "--budgets")


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
    if not where:
        return f"{origin}: {message}"
    if item["type"] == "missing":
        return f"{origin}: {where}: {message}"
    return f"{origin}: {where}: {message}, got {item['input']!r}"
