"""The panel: the attacks that every defense meets under a norm, committed before any run."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from bench.base.types import Norm, Spec, ThreatModel, UserError, as_number, with_fractions
from bench.plugins import registry
from bench.plugins.contracts import Attack

Role = Literal[
    "naive", "log-odds", "strong", "black-box", "transfer", "noise", "unbounded", "closer",
    "follow-up",
]  # fmt: skip
"""What an attack is there for.

``naive``: the gradient of the deployed output, as the papers attack. ``log-odds``: the same attack
on the log-odds, which do not underflow. ``strong``: a further attack with gradients.
``black-box``: queries alone. ``transfer``: made on another network. ``noise``: made on none.
``unbounded``: with a budget at which nothing can be left. ``closer``: only what still stands after
all others is left to it, so that a broken defense costs little and a robust one gets the attention.
``follow-up``: a closer that runs only where the model's gradient is not that of its answers, by the
gradient of something else.
"""

LATE: tuple[Role, ...] = ("closer", "follow-up")
"""Roles of what comes after all others; no flag is made from them."""

REFERENCE = Spec("undefended")
"""What every defense is compared with unless the matrix names another ``reference``."""


class PanelAttack(BaseModel):
    """One table of a panel file; further keys are parameters of the attack ``name``.

    ``at``: run at ``each`` budget, once at the ``largest``, or ``once`` without one. The last two
    serve every smaller budget: how far a record went says where it counts. ``effort``: the
    parameters that the matrix's ``effort`` multiplies. Of a closer, ``round``: it comes after those
    of smaller rounds; ``above``: it runs where more than this share of the sources still stands;
    ``unsettled``: it runs only where the round before it broke something, and so not at all once
    the panel has converged. ``at_one``: parameters that it takes at a budget of one feature, where
    its own cannot run.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Role
    name: str
    at: Literal["each", "largest", "once"]
    effort: list[str]
    round: Annotated[int, Field(ge=0)] = 0
    above: Annotated[float, Field(ge=0, lt=1)] = 0.0
    unsettled: bool = False
    at_one: dict[str, Any] = {}

    @model_validator(mode="after")
    def _effort_is_given(self) -> PanelAttack:
        missing = sorted(set(self.effort) - set(self.params()))
        if missing:
            raise ValueError(f"effort multiplies {missing}, which the table must give")
        if (self.role in LATE) != (self.round > 0) or (self.round and self.at != "each"):
            raise ValueError("a closer, and no other, has a round, and runs at each budget")
        if self.unsettled and self.round < 2:
            raise ValueError("unsettled: there is no round before the first")
        return self

    def params(self) -> dict[str, Any]:
        """Return the parameters that the table gives the attack."""
        return dict(self.model_extra or {})


class PanelFile(BaseModel):
    """A panel file: ``budget`` is the name of the parameter that takes a budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: str
    attack: list[PanelAttack] = Field(min_length=1)


@dataclass(frozen=True)
class Sources:
    """The networks on which a panel's transfer attacks are made, as tables with a name.

    ``own``: whether those that the panel file names are among them; ``further``: what else.
    """

    own: bool = True
    further: Sequence[Mapping[str, Any]] = ()

    def place(self, attacks: Sequence[PanelAttack]) -> Iterator[PanelAttack]:
        """Yield a panel's ``attacks``: each way of transfer once for each source, in its place.

        Another attack that starts from a network takes the first there is, or is left out.
        """
        seen: list[PanelAttack] = []
        for attack in attacks:
            if self.own or "source" not in attack.params():
                yield attack
            if "source" not in attack.params():
                continue
            way = attack.model_copy(update={"source": None})
            if way in seen:
                continue
            seen.append(way)
            transfers = attack.role == "transfer"
            further = self.further if transfers else [] if self.own else self.further[:1]
            for source in further:
                yield attack.model_copy(update={"source": dict(source)})


@dataclass(frozen=True)
class Entry:
    """One attack of a panel at one budget, or at None where it serves them all.

    ``effort``: by how much its steps, restarts or queries were multiplied. ``round``, ``above``
    and ``unsettled``: of a closer, as ``PanelAttack`` says.
    """

    role: Role
    spec: Spec
    budget: float | None
    effort: int
    round: int = 0
    above: float = 0.0
    unsettled: bool = False

    def serves(self, budget: float) -> bool:
        """Whether the attack belongs to the panel at ``budget``."""
        return self.budget is None or self.budget == budget


def _ascending(budgets: list[float]) -> list[float]:
    if len(set(budgets)) != len(budgets):
        raise ValueError(f"has a value twice: {budgets}")
    return sorted(budgets)


def _as_written(budgets: Any, info: ValidationInfo) -> Any:
    """Return budgets as numbers: ``"8/255"`` and ``"24 features"`` are two ways to write one."""
    given = budgets if isinstance(budgets, list | tuple) else [budgets]
    norm = info.data.get("norm")
    return [_plain(item, norm) if isinstance(item, str) else item for item in given]


def _plain(text: str, norm: Norm | None) -> float:
    number, _, unit = text.strip().partition(" ")
    if norm == "l0" and unit.strip() in ("pixels", "pixel"):
        raise ValueError(
            f"{text!r}: a panel of l0 counts features, and a pixel of three channels is three of "
            'them: write "24 features" for 8 such pixels, or pixels = true in an [[attack]]'
        )
    counted = norm == "l0" and unit.strip() in ("features", "feature")
    return as_number(number if counted else text)


HOW = (
    "inputs lie in [0, 1]: 8 levels of 255 are 8/255, and a budget on inputs that were normalised "
    "outside is multiplied by their standard deviation"
)
"""How a budget that no box can hold is converted."""


def make_attack(spec: Spec) -> Attack:
    """Return the attack that people describe: a parameter may be a fraction, as ``"8/255"``.

    Raises UserError for a wrong parameter, with the conversion where a length exceeds the box.
    """
    params = with_fractions(dict(spec.params))
    try:
        return registry.ATTACKS.make(Spec(spec.name, params))
    except UserError as error:
        lengths = [params[name] for name in ("eps", "budget") if name in params]
        if any(isinstance(value, int | float) and value > 1 for value in lengths):
            raise UserError(f"{error}; {HOW}") from error
        raise


class Panel(BaseModel):
    """A ``[[panel]]`` of a matrix: a norm, and the budgets at which every defense is judged.

    ``budgets``: numbers of features for ``l0`` (also ``"24 features"``), lengths in input units
    otherwise, also as ``"8/255"``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: Norm
    budgets: Annotated[
        list[float],
        Field(min_length=1),
        BeforeValidator(_as_written),
        AfterValidator(_ascending),
    ]

    @model_validator(mode="after")
    def _budgets_fit(self) -> Panel:
        for budget in self.budgets:
            if not (math.isfinite(budget) and budget > 0):
                raise ValueError(f"budgets must be positive, got {budget:g}")
            if self.norm == "linf" and budget > 1:
                raise ValueError(f"budgets of linf must be at most 1, got {budget:g}; {HOW}")
            if self.norm == "l0" and budget != int(budget):
                raise ValueError(
                    f"budgets of l0 are whole numbers of features, got {budget:g}: "
                    "for a share of them multiply it by their number"
                )
        return self

    def threat(self, budget: float, features: int) -> ThreatModel:
        """Return the threat model of one budget on inputs of so many ``features``."""
        if self.norm == "l0":
            return ThreatModel("l0", min(1.0, budget / features), "features")
        return ThreatModel(self.norm, budget)

    def entries(self, effort: int = 1, sources: Sources | None = None) -> list[Entry]:
        """Return the attacks of the panel; with ``effort`` above 1 once more with that effort.

        ``sources``: what transfer attacks are made on, where that is not what the file names.
        """
        efforts = [1] if effort == 1 else [1, effort]
        return [entry for times in efforts for entry in self._entries(times, sources or Sources())]

    def _entries(self, effort: int, sources: Sources) -> Iterator[Entry]:
        panel = panel_file(self.norm)
        values = [int(value) if self.norm == "l0" else value for value in self.budgets]
        for attack in sources.place(panel.attack):
            params = attack.params()
            params.update({name: params[name] * effort for name in attack.effort})
            if effort > 1 and not attack.effort:
                continue  # nothing to multiply: it would be the same attack again
            if attack.at == "once":
                yield Entry(attack.role, Spec(attack.name, params), None, effort)
                continue
            for value in values if attack.at == "each" else values[-1:]:
                alone = attack.at_one if self.norm == "l0" and value == 1 else {}
                spec = Spec(attack.name, {**params, **alone, panel.budget: value})
                at = value if attack.at == "each" else None
                closing = (attack.round, attack.above, attack.unsettled)
                yield Entry(attack.role, spec, at, effort, *closing)


@cache
def panel_file(norm: Norm) -> PanelFile:
    """Return the panel of ``norm``, as it is committed with the package."""
    text = (files("bench") / "panels" / f"{norm}.toml").read_text(encoding="utf-8")
    return PanelFile.model_validate(tomllib.loads(text))
