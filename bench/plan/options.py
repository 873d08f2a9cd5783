"""The options of a run, and what they and a matrix come to: a plan, settings, data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.base.types import UserError, as_number
from bench.plan.graph import Plan, make_plan
from bench.plan.matrix import MatrixConfig, load_matrix, parse_matrix
from bench.plugins.parameter import as_dataset


@dataclass(frozen=True)
class RunOptions:
    """How a matrix is run; the fields are the options of ``python -m bench run``."""

    dataset: str | None = None
    network: str | None = None
    recipe: str | None = None
    out: Path | None = None
    seeds: str | list[int] | None = None
    sources: int | str | None = None
    budgets: str | list[str] | None = None
    effort: int | None = None
    max_passes: int | None = None
    device: str = "auto"
    workers: int | None = None
    data_dir: Path | None = None
    cache_dir: Path | None = None
    offline: bool = False
    plugin: tuple[str, ...] = ()
    cell_timeout: float | None = None
    fresh: bool = False
    fit_timeout: float | None = None
    memory: float | None = None
    replace: bool = False
    unpickle: bool = False
    executor: str = "local"
    address: str = "auto"
    shards: int | None = None

    def __post_init__(self) -> None:
        for name in ("out", "data_dir", "cache_dir"):  # in Python a path may be a text
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        if isinstance(self.plugin, str):
            object.__setattr__(self, "plugin", (self.plugin,))


def plan_of(
    matrix: str | Path | dict[str, Any], options: RunOptions, *, reference: bool = True
) -> Plan:
    """Return the plan of a matrix with the options' overrides; plugins must be loaded.

    ``reference``: False where the default one cannot be trained, and there is none.
    """
    overrides = {
        "reference": None if reference else "none",
        "dataset": options.dataset and as_dataset(options.dataset, Path.cwd()),
        "network": options.network,
        "recipe": options.recipe,
        "seeds": _seeds(options.seeds),
        "sources": _sources(options.sources),
        "effort": options.effort,
        "most_passes": options.max_passes,
    }
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if isinstance(matrix, dict):
        config = parse_matrix({"name": "matrix", **matrix, **overrides}, "the matrix")
    else:
        config = load_matrix(matrix, overrides)
    return make_plan(_with_budgets(config, options.budgets))


def _with_budgets(config: MatrixConfig, budgets: str | list[str] | None) -> MatrixConfig:
    """Return ``config`` with budgets given as ``linf=0.1,0.2``, or bare where it has one panel."""
    if not budgets:
        return config
    found: dict[str, list[str]] = {}
    for text in [budgets] if isinstance(budgets, str) else budgets:
        norm, _, values = text.rpartition("=")
        if not norm and len(config.panel) != 1:
            raise UserError(
                f"--budgets {text!r} names no norm, and the matrix has {len(config.panel)} panels: "
                "write linf=0.1,0.2 or l0=2,4"
            )
        try:
            [as_number(value.partition(" ")[0]) for value in values.split(",")]
        except ValueError as error:
            raise UserError(
                f"--budgets takes numbers with commas, as in linf=0.1,8/255, got {text!r}"
            ) from error
        found[norm or config.panel[0].norm] = values.split(",")
    return config.with_budgets(found)


def _seeds(seeds: str | list[int] | None) -> list[int] | None:
    if not isinstance(seeds, str):
        return seeds
    try:
        return [int(item) for item in seeds.split(",")]
    except ValueError as error:
        raise UserError(
            f"--seeds takes whole numbers with commas, as in 0,1,2, got {seeds!r}"
        ) from error


def _sources(sources: int | str | None) -> int | str | None:
    if sources is None or sources == "all" or isinstance(sources, int):
        return sources
    if not sources.isdecimal():
        raise UserError(f"--sources takes a whole number or all, got {sources!r}")
    return int(sources)
