"""What papers reported, as data: ``papers/*.toml``, one file a paper. No figure stands in code.

Each says where it comes from and how sure it is: ``stated`` in a text at hand, ``recalled`` from
the paper, ``derived`` by arithmetic, ``unknown`` where no figure is at hand.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.base.types import UserError

Certainty = Literal["stated", "recalled", "derived", "unknown"]
Quantity = Literal[
    "accuracy", "accuracy_change", "adversarial_confidence", "attempts", "clean_error",
    "confidence", "correlation_temperature_l2", "error", "features_success", "l0_mean", "l2_mean",
    "linf_mean", "max_features", "mean_abs_logit", "rho_adv", "sensitivity_large",
    "sensitivity_tiny", "success_rate",
]  # fmt: skip
Unit = Literal[
    "attempts", "correlation", "features", "images of 10000", "input", "logits", "percent",
    "pixels", "points",
]  # fmt: skip


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(_Document):
    """A statement of a paper that is no number."""

    text: str
    certainty: Certainty


class Published(_Document):
    """One published figure: ``value`` in ``unit``, None where it is unknown.

    ``temperature`` is that of a distilled network; ``eps`` the budget of an attack that has one;
    ``attack`` and ``output`` are named as ours. ``dataset`` is None where the texts do not say.
    ``differs``: what is known of why ours is another, shown where it is.
    """

    paper: str
    arxiv: str
    quantity: Quantity
    unit: Unit
    certainty: Certainty
    value: float | None = None
    dataset: str | None = None
    defense: str | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    attack: str | None = None
    output: str | None = None
    eps: Annotated[float, Field(gt=0)] | None = None
    place: str = ""
    note: str = ""
    differs: str = ""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if (self.value is None) != (self.certainty == "unknown"):
            raise ValueError(
                f"an unknown figure has no value and every other has one, "
                f"got {self.value!r} as {self.certainty}"
            )
        if self.temperature is not None and self.defense != "distillation":
            raise ValueError(
                f"a temperature is that of a distilled network, got defense {self.defense!r}"
            )
        return self

    @property
    def scaled(self) -> float | None:
        """The value as our own documents hold it: percentages and shares as fractions."""
        divisor = {"percent": 100.0, "points": 100.0, "images of 10000": 1e4}.get(self.unit, 1.0)
        return None if self.value is None else self.value / divisor


class Paper(_Document):
    """One paper with all its figures and claims."""

    title: str
    authors: str
    year: int
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")]
    claims: tuple[Claim, ...] = ()
    figures: tuple[Published, ...] = ()

    @property
    def short(self) -> str:
        """First author and year."""
        return f"{self.authors.split(',', maxsplit=1)[0]} {self.year}"


@cache
def papers() -> tuple[Paper, ...]:
    """Return every paper that comes with the package, by file name."""
    folder = files("leaderboard") / "papers"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".toml")), key=str)
    return tuple(parse_paper(item.read_text(encoding="utf-8"), item.name) for item in found)


def parse_paper(text: str, origin: str) -> Paper:
    """Read one paper: a ``[[figure]]`` holds what its ``values`` share, and each may override it.

    Raises UserError that names ``origin`` where the text is no TOML or says what is not valid.
    """
    try:
        document = tomllib.loads(text)
        tables = document.pop("figure", [])
        figures = [figure for table in tables for figure in _expand(table, document)]
        return Paper.model_validate(
            {"claims": document.pop("claim", []), **document, "figures": figures}
        )
    except (tomllib.TOMLDecodeError, ValidationError, KeyError) as error:
        raise UserError(f"{origin}: {error}") from error


def _expand(table: dict[str, Any], paper: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {key: value for key, value in table.items() if key != "values"}
    shared |= {
        "arxiv": paper["arxiv"],
        "paper": paper["authors"].split(",")[0] + f" {paper['year']}",
    }
    found = [shared | value for value in table["values"]]
    for figure in found:
        if "temperature" in figure:
            figure.setdefault("defense", "distillation")
    return found


def published(quantity: Quantity, **wanted: object) -> tuple[Published, ...]:
    """Return the figures of ``quantity`` whose fields are as ``wanted``, in the papers' order.

    >>> [figure.value for figure in published("accuracy", dataset="mnist", defense="undefended")]
    [99.51]
    """
    return tuple(
        figure
        for paper in papers()
        for figure in paper.figures
        if figure.quantity == quantity
        and all(getattr(figure, name) == value for name, value in wanted.items())
    )
