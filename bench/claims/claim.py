"""Claim files: what an author says of a defense, and the matrix that puts it to the test."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
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

from bench.base.package_files import packaged_names, read_table
from bench.base.text import nearest
from bench.base.types import (
    DataInfo,
    Document,
    Norm,
    Spec,
    ThreatModel,
    Unit,
    UserError,
    with_fractions,
)
from bench.plan.matrix import DatasetTable, Sources, Table, expand, one, parse_matrix, whole_of
from bench.plan.panel import REFERENCE, Panel, PanelFile
from bench.plan.panel import Sources as TransferSources
from bench.plugins import registry
from bench.plugins.contracts import Defense

Goal = Literal["untargeted", "targeted"]
Rate = Annotated[float, Field(ge=0, le=1)]

UNITS: dict[Norm, Unit] = {"l0": "features", "l2": "input", "linf": "input"}
"""What a budget counts under each norm."""


class Threat(BaseModel):
    """What the attacker may change: ``norm``, ``budget``, and the ``unit`` of the budget.

    ``l0``: a number of ``features``; ``l2`` and ``linf``: a length in ``input`` units.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: Norm
    budget: Annotated[float, BeforeValidator(with_fractions)]
    unit: Unit | None = None

    @model_validator(mode="after")
    def _budget_fits(self) -> Threat:
        expected = UNITS[self.norm]
        if self.unit not in (None, expected):
            raise ValueError(f"a budget of {self.norm} is in {expected!r}, got {self.unit!r}")
        self.panel()
        return self

    def panel(self) -> Panel:
        """Return the panel of the norm at this budget."""
        try:
            return Panel(norm=self.norm, budgets=[self.budget])
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error

    def model(self, features: int) -> ThreatModel:
        """Return the threat model on inputs of so many ``features``."""
        return self.panel().threat(self.budget, features)


def _one_of_each(table: dict[str, Any]) -> dict[str, Any]:
    whole = whole_of(table)
    for key, value in table.items():
        if isinstance(value, list) and key not in whole:
            raise ValueError(f"a claim is about one defense, and {key} lists {len(value)} values")
    return table


class Claim(BaseModel):
    """One claim: ``defense`` has at least, or lets at most, a rate under a threat model.

    ``accuracy_at_least``: the share of all sources that are classified correctly and that no
    attempt gets misclassified. ``success_at_most``: the share of attempts on correctly classified
    sources that reach their goal. One of the two is given, as a fraction.

    ``goal``: ``untargeted``, every attack of the norm's panel, any of which may break a source;
    ``targeted``, every source at every other class, an attempt being lost where any attack reaches
    it (a success rate only). ``attack``: further attacks under the same norm, say the author's own
    adaptive one. ``transfer_from``: further networks, as defenses, on which transfer attacks are
    made. ``confidence``: of the two-sided interval that must leave the claimed figure on
    its right side. ``reference``: where the claim was made, and how surely the figure is known.

    ``network`` and ``recipe`` default to the data set's own; the claim must hold at every one of
    ``seeds``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    reference: str = ""
    defense: Annotated[Table, AfterValidator(_one_of_each)]
    dataset: DatasetTable = {"name": "digits"}
    network: Table | None = None
    recipe: str | None = None
    threat: Threat
    goal: Goal = "untargeted"
    attack: list[Table] = []
    transfer_from: list[Table] = []
    accuracy_at_least: Rate | None = None
    success_at_most: Rate | None = None
    sources: Sources = 100
    source_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95

    @model_validator(mode="after")
    def _one_figure(self) -> Claim:
        figures = (self.accuracy_at_least, self.success_at_most)
        if figures.count(None) != 1:
            given = "neither" if figures.count(None) == 2 else "both"
            raise ValueError(
                f"claim one of accuracy_at_least and success_at_most, as a fraction; got {given}"
            )
        if self.goal == "targeted" and self.success_at_most is None:
            raise ValueError(
                "targeted attempts have a success rate: claim success_at_most, or set "
                'goal = "untargeted"'
            )
        return self

    @property
    def figure(self) -> float:
        """The claimed rate."""
        found = self.success_at_most if self.accuracy_at_least is None else self.accuracy_at_least
        assert found is not None  # _one_figure
        return found

    def defense_document(self) -> Document:
        """Return name and complete parameters of the defense; raises UserError where it is none."""
        return registry.DEFENSES.document(self._defense())

    def _defense(self) -> Defense:
        return registry.DEFENSES.make(one(self.defense, "defense"))

    def matrix(self) -> Document:
        """Return the matrix, as a table, whose results answer the claim.

        The undefended network stands beside the defense: it shows what the same attacks do where
        nothing withstands them. Not beside one that was trained elsewhere: there only where a panel
        has it, and training data are at hand.
        """
        beside = [] if self._defense().trained() is not None else [{"name": REFERENCE.name}]
        defense = {key: value for key, value in self.defense.items() if key != "note"}
        table = {
            "name": f"claim-{self.name}",
            "description": self.description,
            "dataset": self.dataset,
            "network": self.network,
            "recipe": self.recipe,
            "sources": self.sources,
            "probe_samples": self.sources,
            "source_seed": self.source_seed,
            "seeds": self.seeds,
            "defense": [*beside, defense],
            "attack": self.attack,
        }
        if self.goal == "untargeted":
            panel = {"norm": self.threat.norm, "budgets": [self.threat.budget]}
            table |= {"panel": [panel], "transfer_from": self.transfer_from}
        else:
            table["attack"] = [*(_as_table(spec) for spec in self._targeted()), *self.attack]
        parse_matrix(table, f"claim {self.name!r}")
        return table

    def _targeted(self) -> Iterator[Spec]:
        """Yield the attacks of the committed protocol of targeted attempts."""
        name = f"targeted-{self.threat.norm}.toml"
        text = (files("bench") / "panels" / name).read_text(encoding="utf-8")
        protocol = PanelFile.model_validate(tomllib.loads(text))
        counted = self.threat.norm == "l0"
        budget = int(self.threat.budget) if counted else self.threat.budget
        # Nothing is trained to attack what was trained elsewhere.
        own = self._defense().trained() is None
        for attack in TransferSources(own, self.transfer_from).place(protocol.attack):
            yield Spec(attack.name, {**attack.params(), protocol.budget: budget})

    def check(self, info: DataInfo) -> None:
        """Raise UserError where an attack of the claim's own does not fit its threat model."""
        norm = self.threat.norm
        for spec in (spec for table in self.attack for spec in expand(table)):
            attack = registry.ATTACKS.make(spec)
            found = attack.threat(info.shape)
            if (found.norm, found.unit) != (norm, UNITS[norm]):
                raise UserError(
                    f"claim {self.name!r} mixes norms: it is about {norm} in {UNITS[norm]}, and "
                    f"its attack {spec.name!r} works in {found.norm} in {found.unit}"
                )
            if self.goal == "targeted" and attack.targets != "all":
                raise UserError(
                    f"claim {self.name!r} is about targeted attempts at every other class, and its "
                    f'attack {spec.name!r} has targets = "{attack.targets}": give it "all"'
                )
        if norm == "l0" and self.threat.budget > info.features:
            raise UserError(
                f"claim {self.name!r}: a budget of {self.threat.budget:g} features is more than "
                f"the {info.features} that an input of {info.name!r} has"
            )


def _as_table(spec: Spec) -> Document:
    return {"name": spec.name, **spec.params}


def claim_names() -> list[str]:
    """Return the names of the claims that come with the package."""
    return packaged_names("claims")


def load_claim(claim: str | Path) -> Claim:
    """Read a claim by name or file; raises UserError that names the file and the key."""
    document, origin = read_table("claim", "claims", claim)
    return parse_claim(document, origin)


def parse_claim(document: Document, origin: str) -> Claim:
    """Validate a claim given as a table; ``origin`` is named in errors."""
    try:
        return Claim.model_validate(document)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item, origin) for item in error.errors())) from error


def _explain(item: Any, origin: str) -> str:
    where = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = Threat.model_fields if where.startswith("threat.") else Claim.model_fields
        return f"{origin}: unknown key {where!r}: {nearest(item['loc'][-1], known)}"
    if not where:
        return f"{origin}: {message}"
    if item["type"] in ("missing", "value_error"):
        return f"{origin}: {where}: {message}"
    hint = (
        ": rates are fractions" if item["type"] in ("less_than_equal", "greater_than_equal") else ""
    )
    return f"{origin}: {where}: {message}, got {item['input']!r}{hint}"


def points(rate: float) -> str:
    """Return a fraction as a percentage with as many decimals as it needs, up to two.

    >>> points(0.0045), points(0.9)
    ('0.45 %', '90 %')
    """
    return f"{round(100 * rate, 2):g} %" if math.isfinite(rate) else "undefined"
