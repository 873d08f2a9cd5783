"""Defenses of known truth through the panels, and whether the harness sees it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bench.base.rows import CellRow, FlagRow, Results, VerdictRow, defense_of, warns
from bench.base.types import Document, Norm, Spec
from bench.plan.matrix import Table
from bench.plugins import registry

Status = Literal["ok", "MISSED", "FALSE ALARM"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Case(BaseModel):
    """One model and what is known of it.

    ``truth``: in words. ``flags``: its own, which must rise, under every norm or by norm; none
    where it is honest, and then no warning may rise. ``verdict``: under each norm how
    the verdict begins that it deserves, or several where either is right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    defense: Table
    truth: str
    flags: list[str] | dict[Norm, list[str]] = []
    verdict: dict[Norm, Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]]

    @property
    def honest(self) -> bool:
        """Whether nothing about it deserves a warning."""
        return not self.flags

    def own(self, norm: Norm) -> list[str]:
        """Return the flags that must rise under ``norm``."""
        return self.flags.get(norm, []) if isinstance(self.flags, dict) else self.flags


class SelfTest(BaseModel):
    """``selftest.toml``: which plugins to load, the matrix without its defenses, the cases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plugin: list[str]
    matrix: Document
    case: list[Case] = Field(min_length=1)

    def table(self) -> Document:
        """Return the matrix, a defense a case."""
        return {**self.matrix, "defense": [case.defense for case in self.case]}


@cache
def self_test() -> SelfTest:
    """Return the self-test as it is committed with the package."""
    text = (files("bench") / "selftest.toml").read_text(encoding="utf-8")
    return SelfTest.model_validate(tomllib.loads(text))


@dataclass(frozen=True)
class Finding:
    """What came of one case under one norm. ``raised``: every flag; ``why``: of the verdict."""

    name: str
    truth: str
    norm: Norm
    expected_flags: Sequence[str]
    expected: Sequence[str]
    raised: Sequence[str]
    verdict: str
    status: Status
    why: str


def findings(cases: Iterable[Case], results: Results) -> list[Finding]:
    """Hold what a run says of every case against its truth. Plugins must be loaded."""
    return [finding for case in cases for finding in _judge(case, results)]


def _judge(case: Case, results: Results) -> Iterator[Finding]:
    params = {key: value for key, value in case.defense.items() if key != "name"}
    plugin = registry.DEFENSES.make(Spec(case.defense["name"], params))
    defense = registry.DEFENSES.document(plugin)
    for norm, expected in case.verdict.items():
        rows = [row for row in results.verdicts if _is(row, norm, defense)]
        flags = [flag for row in rows for flag in _flags(row, results.cells)]
        raised = sorted({flag["id"] for flag in flags})
        verdicts = [row["verdict"] for row in rows] or ["none"]
        warned = any(warns(flag) for flag in flags)
        masked = any(verdict.startswith("masked") for verdict in verdicts)
        deserved = all(verdict.startswith(tuple(expected)) for verdict in verdicts)
        seen = deserved and set(case.own(norm)) <= set(raised)
        alarm = case.honest and (warned or masked)
        yield Finding(
            case.defense["name"],
            case.truth,
            norm,
            case.own(norm),
            expected,
            raised,
            " / ".join(dict.fromkeys(verdicts)),
            "FALSE ALARM" if alarm else "ok" if seen else "MISSED",
            "; ".join(row["why"] or "" for row in rows),
        )


def _is(row: VerdictRow, norm: Norm, defense: Document) -> bool:
    return row["threat"]["norm"] == norm and defense_of(row) == defense


def _flags(row: VerdictRow, cells: Sequence[CellRow]) -> list[FlagRow]:
    """Return the flags of a verdict's models and panels, and of the cells under its norm."""
    found = [flag for seed in row["seeds"] for flag in seed["flags"]]
    for cell in cells:
        if defense_of(cell) == defense_of(row) and cell["threat"]["norm"] == row["threat"]["norm"]:
            found += cell["flags"]
    return found
