"""Matrix files: TOML in, a validated ``MatrixConfig`` out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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

from bench.base.package_files import packaged_names, read_table
from bench.base.text import nearest
from bench.base.types import Spec, UserError, with_fractions
from bench.plan.panel import LATE, REFERENCE, Entry, Panel
from bench.plan.panel import Sources as TransferSources
from bench.plugins import registry
from bench.plugins.parameter import as_dataset, as_network


def _as_table(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else with_fractions(value)


def _as_network(value: Any) -> Any:
    return as_network(value) if isinstance(value, str) else value


def _as_dataset(value: Any) -> Any:
    return as_dataset(value) if isinstance(value, str) else value


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


def _combinations(table: Mapping[str, Any]) -> int:
    return math.prod(len(value) for value in table.values() if isinstance(value, list))


CELLS = 20_000
"""Cells beyond which a matrix is taken for a mistake, and not expanded."""

Table = Annotated[dict[str, Any], BeforeValidator(_as_table), AfterValidator(_has_name)]
DatasetTable = Annotated[Table, BeforeValidator(_as_dataset)]
Sources = Annotated[int, Field(ge=1, strict=True)] | Literal["all"]

NO_REFERENCE = {"name": "none"}
"""The ``reference`` of a matrix whose defenses are compared with nothing."""


class MatrixConfig(BaseModel):
    """One matrix: which defenses meet which attacks, on what data, trained how.

    A list in a ``[[defense]]`` or ``[[attack]]`` table sweeps its parameter; ``note`` in one is a
    remark shown beside its rows. ``report = "agreement"`` adds a page that holds each attack
    against the first that differentiates the same output, attempt by attempt; ``"distillation"``
    a page, a table of costs and figures that stand beside the published ones; ``"findings"`` a page
    that tells what the run shows, each in two sentences with a table and a figure, and the logits
    and pairs of models that it is made of. ``dataset``: by name, or the file or folder that holds
    one; ``network`` and ``recipe`` default to the data set's own. A number may be written as a
    fraction, ``eps = "8/255"``. ``sources`` images of the test split are attacked, chosen by
    ``source_seed``, the same for every model. ``probe_samples``: on how many of the test images
    input gradients are measured without an attack, at least on the sources.

    A ``[[panel]]`` names a norm and budgets: every defense meets the attacks committed for that
    norm (``bench.plan.panel``) and gets a verdict. ``effort`` above 1 runs the panel once more with
    so many times the steps, restarts and queries, and tells by how much the worst case moved.
    ``most_passes``: forward and backward passes that an attempt may cost before its attack is
    stopped; what it asked about until then counts.

    ``reference``: the defense that every other one is compared with, ``undefended`` by default;
    ``"none"`` where nothing is like them: then no defense is found to hold. ``transfer_from``:
    further defenses on which the panels' transfer attacks are made. Beside a reference other than
    the default these two are all their sources.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    dataset: DatasetTable = {"name": "digits"}
    network: Annotated[Table | None, BeforeValidator(_as_network)] = None
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
    reference: Table | None = None
    transfer_from: list[Table] = []

    @model_validator(mode="after")
    def _attacked_somehow(self) -> MatrixConfig:
        if not self.attack and not self.panel:
            raise ValueError("an [[attack]] or a [[panel]] is required")
        norms = [panel.norm for panel in self.panel]
        if len(set(norms)) != len(norms):
            raise ValueError(f"one [[panel]] a norm is expected, got {norms}")
        if self.effort > 1 and not self.panel:
            raise ValueError(f"effort = {self.effort} multiplies a [[panel]], and there is none")
        models = sum(map(_combinations, self.defense)) * len(self.seeds)
        attacks = sum(map(_combinations, self.attack)) + sum(len(p.budgets) for p in self.panel)
        if models * attacks > CELLS:
            raise ValueError(
                f"{models} models and {attacks} attacks or budgets are more than {CELLS} cells"
            )
        return self

    def defenses(self) -> list[Spec]:
        """Return every defense of the matrix, sweeps expanded, in the order of the file."""
        return [spec for table in self.defense for spec in expand(table, whole_of(table))]

    def compared_with(self) -> Spec | None:
        """Return the defense that the others are compared with; None without one, or a panel.

        Raises UserError where the table of the reference sweeps a parameter.
        """
        if not self.panel or self.reference == NO_REFERENCE:
            return None
        return REFERENCE if self.reference is None else one(self.reference, "reference")

    def panel_entries(self, panel: Panel) -> list[Entry]:
        """Return the attacks of one of the matrix's panels, with the role of each."""
        own = self.reference is None or self.compared_with() == REFERENCE
        given = [] if own or self.reference == NO_REFERENCE else [self.reference]
        further = [item for item in (*given, *self.transfer_from) if item is not None]
        return panel.entries(self.effort, TransferSources(own, further))

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
        return [entry for panel in self.panel for entry in self.panel_entries(panel)]

    def with_budgets(self, budgets: Mapping[str, Sequence[float | str]]) -> MatrixConfig:
        """Return the matrix with these ``budgets`` by norm: a panel changed, or added.

        Raises UserError for an unknown norm or a budget that the norm cannot have.
        """
        found: dict[str, Sequence[float | str]] = {
            panel.norm: panel.budgets for panel in self.panel
        }
        found.update(budgets)
        tables = [{"norm": norm, "budgets": list(values)} for norm, values in found.items()]
        return parse_matrix({**self.model_dump(), "panel": tables}, "--budgets")


def one(table: Mapping[str, Any], key: str) -> Spec:
    """Return the one defense of a ``table``; raises UserError, naming ``key``, where it sweeps."""
    found = list(expand(table, whole_of(table)))
    if len(found) > 1:
        raise UserError(f"{key} = {table!r} lists {len(found)} defenses, and there is one of it")
    return found[0]


def whole_of(table: Mapping[str, Any]) -> Collection[str]:
    """Return the parameters of a defense's ``table`` whose value may be a list."""
    # Of a name that is unknown here, whoever makes the defense says so.
    known = table["name"] in registry.DEFENSES.names()
    return registry.DEFENSES.get(table["name"]).whole if known else ()


def expand(table: Mapping[str, Any], whole: Collection[str] = ()) -> Iterator[Spec]:
    """Yield one ``Spec`` for each combination of the values that ``table`` lists.

    ``whole``: parameters whose value is a list itself.

    >>> [dict(spec.params) for spec in expand({"name": "fgsm", "eps": [0.1, 0.2]})]
    [{'eps': 0.1}, {'eps': 0.2}]
    """
    params = {key: value for key, value in table.items() if key not in ("name", "note")}
    axes = [
        value if isinstance(value, list) and key not in whole else [value]
        for key, value in params.items()
    ]
    for values in itertools.product(*axes):
        yield Spec(table["name"], dict(zip(params, values, strict=True)))


def matrix_names() -> list[str]:
    """Return the names of the matrices that come with the package."""
    return packaged_names("matrices")


def load_matrix(matrix: str | Path, overrides: Mapping[str, Any] | None = None) -> MatrixConfig:
    """Read a matrix by name or file; ``overrides`` replace top-level keys.

    Raises UserError that names the file and the key, or the line where it is no TOML.
    """
    document, origin = read_table("matrix", "matrices", matrix)
    document.update({key: value for key, value in (overrides or {}).items() if value is not None})
    return parse_matrix(document, origin)


def parse_matrix(document: Mapping[str, Any], origin: str) -> MatrixConfig:
    """Validate a matrix given as a table; ``origin`` is named in errors."""
    try:
        return MatrixConfig.model_validate(document)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item, origin) for item in error.errors())) from error


def is_file(matrix: str | Path) -> bool:
    """Return whether ``matrix`` names a file, rather than one that comes with the package."""
    return str(matrix).endswith(".toml") or "/" in str(matrix)


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
