"""The options of a run, and what they and a matrix come to: a plan, settings, data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import doors, registry
from bench.config import MatrixConfig, load_matrix, parse_matrix
from bench.data import Dataset
from bench.keys import check_files
from bench.plan import Plan, make_plan
from bench.plugin import DataSettings
from bench.store import default_cache
from bench.types import Spec, UserError
from bench.worker import Settings


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
    device: str = "auto"
    workers: int | None = None
    data_dir: Path | None = None
    cache_dir: Path | None = None
    offline: bool = False
    plugin: tuple[str, ...] = ()
    cell_timeout: float | None = None
    fresh: bool = False


def prepare(
    matrix: str | Path | dict[str, Any], options: RunOptions
) -> tuple[Plan, Settings, Dataset]:
    """Load plugins and data, plan, and check all that can be checked before anything runs.

    Raises UserError for a mistake in the matrix, the options or the data.
    """
    doors.load_plugins(options.plugin)
    plan = plan_of(matrix, options)
    cache = (options.cache_dir or default_cache()).absolute()
    data_dir = options.data_dir.absolute() if options.data_dir else None
    settings = Settings(
        run=(options.out or Path("runs") / f"{plan.matrix.name}-{plan.dataset['name']}").absolute(),
        cache=cache,
        data=DataSettings(data_dir, cache, options.offline),
        device=choose_device(options.device),
        plugins=tuple(_absolute(item) for item in options.plugin),
    )
    source = registry.DATASETS.make(Spec(plan.dataset["name"], plan.dataset["params"]))
    data = source.load(settings.data)
    check_files(plan)
    network = registry.NETWORKS.make(Spec(plan.network["name"], plan.network["params"]))
    try:
        network.build(data.info)
    except ValueError as error:
        raise UserError(f"network {plan.network['name']!r}: {error}") from error
    if plan.matrix.sources != "all":
        data.sources(plan.matrix.sources, plan.matrix.source_seed)
    return plan, settings, data


def plan_of(matrix: str | Path | dict[str, Any], options: RunOptions) -> Plan:
    """Return the plan of a matrix with the options' overrides; plugins must be loaded."""
    overrides = {
        "dataset": _dataset_table(options.dataset),
        "network": options.network,
        "recipe": options.recipe,
        "seeds": _seeds(options.seeds),
        "sources": _sources(options.sources),
        "effort": options.effort,
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
    found: dict[str, list[float]] = {}
    for text in [budgets] if isinstance(budgets, str) else budgets:
        norm, _, values = text.rpartition("=")
        if not norm and len(config.panel) != 1:
            raise UserError(
                f"--budgets {text!r} names no norm, and the matrix has {len(config.panel)} panels: "
                "write linf=0.1,0.2 or l0=2,4"
            )
        try:
            found[norm or config.panel[0].norm] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise UserError(
                f"--budgets takes numbers with commas, as in linf=0.1,0.2, got {text!r}"
            ) from error
    return config.with_budgets(found)


def _dataset_table(name: str | None) -> dict[str, str] | None:
    if name is None:
        return None
    if name.endswith(".npz"):
        return {"name": "arrays", "path": str(Path(name).absolute())}
    return {"name": name}


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


def _absolute(plugin: str) -> str:
    return str(Path(plugin).absolute()) if plugin.endswith(".py") or "/" in plugin else plugin


def choose_device(device: str) -> str:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names; raises UserError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UserError(f"unknown device {device!r}: valid: auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} was asked for and torch sees {torch.cuda.device_count()} GPUs"
        )
    return device
