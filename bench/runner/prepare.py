"""From a matrix and options to all that a run needs, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.base.files import default_cache, file_hash
from bench.base.offline import forbid_network
from bench.base.places import placed, start_at
from bench.base.text import reason_of
from bench.base.types import DataInfo, Spec, UserError
from bench.plan.graph import Plan, data_name
from bench.plan.matrix import is_file
from bench.plan.options import RunOptions, plan_of
from bench.plugins import discovery, registry
from bench.plugins.contracts import BuildContext, DataSettings, HandedOver
from bench.plugins.data import Dataset
from bench.plugins.unpickle import trust, trusted, untrusted
from bench.runner.keys import check_attacks, check_files
from bench.runner.task import Settings


def prepare(
    matrix: str | Path | dict[str, Any], options: RunOptions, base: Path | None = None
) -> tuple[Plan, Settings, Dataset]:
    """Load plugins and data, plan, and check all that can be checked before anything runs.

    ``base``: where relative paths of the matrix start, its file's folder by default.
    Raises UserError for a mistake in the matrix, the options or the data.
    """
    base = base or matrix_folder(matrix)
    start_at(base)
    forbid_network(options.offline)
    discovery.load_plugins(options.plugin)
    plan = plan_of(matrix, options)
    cache = (options.cache_dir or default_cache()).absolute()
    data_dir = options.data_dir.absolute() if options.data_dir else None
    settings = Settings(
        run=(
            options.out or Path("runs") / f"{plan.matrix.name}-{data_name(plan.dataset)}"
        ).absolute(),
        cache=cache,
        data=DataSettings(data_dir, cache, options.offline),
        device=choose_device(options.device, here=options.executor == "local"),
        plugins=absolute(options.plugin),
        fit_timeout=options.fit_timeout,
        memory=None if options.memory is None else int(options.memory * 2**30),
        base=base,
        shards=options.shards,
    )
    source = registry.DATASETS.make(Spec(plan.dataset["name"], plan.dataset["params"]))
    with registry.asking(source, "load"):
        data = source.load(settings.data)
        if not isinstance(data, Dataset):
            raise TypeError(f"a bench.Dataset is expected, got {type(data).__name__}")
    if not len(data.train) and plan.matrix.reference is None:
        plan = plan_of(matrix, options, reference=False)  # none that could be trained
    vouch(plan, options.unpickle)
    settings = replace(settings, info=data.info, trusted=trusted())
    check_budgets(plan, data.info)
    check_files(plan)
    check_attacks(plan, data.info)
    network = registry.NETWORKS.make(Spec(plan.network["name"], plan.network["params"]))
    try:
        network.build(data.info)
    except ValueError as error:
        raise UserError(f"network {plan.network['name']!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"network {plan.network['name']!r}: {reason_of(error)}") from error
    if plan.matrix.sources != "all":
        data.sources(plan.matrix.sources, plan.matrix.source_seed)
    notes = _handed_over(plan, data, partial(network.build, data.info))
    return plan, settings, replace(data, notes=(*data.notes, *notes))


def _handed_over(plan: Plan, data: Dataset, network: Callable[[], nn.Module]) -> tuple[str, ...]:
    """Load every model that others trained, and return what was guessed of them, each once.

    Raises UserError where one cannot be loaded, or a defense must learn and there is nothing to.
    """
    notes: dict[str, None] = {}
    for node in plan.of("fit"):
        defense, name = node.fitted(), node.document["defense"]["name"]
        if isinstance(defense, HandedOver):
            with registry.asking(defense, "notes"):
                notes |= dict.fromkeys(defense.notes(BuildContext(data.info, {}, network)))
        elif not len(data.train):
            raise UserError(
                f"{name!r} has to be trained and the data set {data.info.name!r} has no training "
                "data: leave it out, or hand over a trained model instead of it (checkpoint)"
            )
    return tuple(notes)


def check_budgets(plan: Plan, info: DataInfo) -> None:
    """Raise UserError where a panel's budget is more features than an input has."""
    for panel in plan.matrix.panel:
        budget = panel.budgets[-1]
        if panel.norm == "l0" and budget > info.features:
            raise UserError(
                f"a budget of {budget:g} features is more than the {info.features} features that "
                f"an input of {info.name!r} has"
            )


def vouch(plan: Plan, given: bool) -> None:
    """Trust the pickled modules that a plan names, where whoever runs it says so (``given``).

    Raises UserError where one is not trusted, or is not there.
    """
    for node in plan.of("fit"):
        if node.document["defense"]["name"] != "live":
            continue
        for path in node.document["defense"]["params"]["modules"]:
            try:
                found = file_hash(placed(path))
            except OSError as error:
                raise UserError(f"{placed(path)} cannot be read: {error.strerror}") from error
            if given:
                trust([found])
            elif found not in trusted():
                raise UserError(untrusted(placed(path)))


def matrix_folder(matrix: str | Path | dict[str, Any]) -> Path | None:
    """Return the folder of a matrix that is a file, where its relative paths start."""
    if isinstance(matrix, dict) or not is_file(matrix):
        return None
    return Path(matrix).absolute().parent


def absolute(plugins: Iterable[str]) -> tuple[str, ...]:
    """Return plugins so that a process in another folder finds them: files by their whole path."""
    return tuple(
        str(Path(item).absolute()) if item.endswith(".py") or "/" in item else item
        for item in plugins
    )


def choose_device(device: str, *, here: bool = True) -> str:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names; raises UserError.

    Where it need not be ``here``, whoever does the work is asked for it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UserError(f"unknown device {device!r}: valid: auto, cpu, cuda, cuda:N")
    if here and kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r} was asked for and torch sees {torch.cuda.device_count()} GPUs"
        )
    return device
