"""The command line, and the one module that knows all four packages.

Nothing heavy is imported before it is needed: ``--help`` must not wait for torch.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.base.foreign import refuse_foreign
from bench.base.text import plain
from bench.base.types import UserError
from bench.commands import (
    Address,
    CacheDir,
    CellTimeout,
    DataDir,
    Debug,
    Device,
    DryRun,
    Executor,
    FailOnFlag,
    FitTimeout,
    Fresh,
    Matrix,
    Memory,
    Offline,
    Plugins,
    Replace,
    Shards,
    Unpickle,
    Workers,
    app,
    guard,
    show_run,
    status,
)
from bench.compose import run_matrix, run_prepared, say_notes

if TYPE_CHECKING:
    from bench.audit.verify_folder import Verification
    from bench.evidence.finished_run import FinishedRun
    from bench.plan.options import RunOptions


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A results folder.")]

RunDevice = Annotated[str, typer.Option(help="auto (the run's own), cpu, cuda or cuda:N.")]

Trust = Annotated[
    bool, typer.Option("--trust", help="Run code that only the plan names, a builder's say.")
]

Seed = Annotated[
    int | None,
    typer.Option(min=0, max=2**32 - 1, help="Draws what is made anew [random; publish: RUN's]."),
]


@app.command("run")
def run_command(  # noqa: PLR0913, PLR0917 (typer reads the options off the parameters)
    matrix: Matrix,
    dataset: Annotated[str | None, typer.Option(help="A data set by name, or a .npz file.")] = None,
    network: Annotated[str | None, typer.Option(help="A network by name.")] = None,
    recipe: Annotated[str | None, typer.Option(help="How to train, by name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder [runs/MATRIX-DATASET].")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds, as in 0,1,2.")] = None,
    sources: Annotated[str | None, typer.Option(help="Images to attack: a number, or all.")] = None,
    budgets: Annotated[
        list[str],
        typer.Option(help="Budgets of a panel, as in linf=0.1,0.2; may be repeated."),
    ] = [],  # noqa: B006 (as of plugin)
    effort: Annotated[
        int | None,
        typer.Option(min=1, help="Run the panel once more with so many times the steps."),
    ] = None,
    max_passes: Annotated[
        int | None,
        typer.Option(min=1, help="Passes through the model that an attempt may cost."),
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    executor: Executor = "local",
    address: Address = "auto",
    shards: Shards = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    plugin: Plugins = [],  # noqa: B006 (typer reads the default, nothing changes it)
    cell_timeout: CellTimeout = None,
    fit_timeout: FitTimeout = None,
    memory: Memory = None,
    dry_run: DryRun = False,
    trust: Trust = False,
    fresh: Fresh = False,
    replace: Replace = False,
    unpickle: Unpickle = False,
    fail_on_flag: FailOnFlag = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw the security curves to RUN/figures.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a matrix: fit every defense, make every attack, write the leaderboard.

    The same command goes on where an interrupted run stopped.
    """
    from bench.plan.options import RunOptions

    options = RunOptions(
        dataset, network, recipe, out, seeds, sources, budgets, effort, max_passes, device,
        workers, data_dir, cache_dir, offline, tuple(plugin), cell_timeout, fresh,
        fit_timeout, memory, replace, unpickle, executor, address, shards,
    )  # fmt: skip

    def command() -> int:
        if dry_run:
            _dry_run(matrix, options, trust)
            return 0
        result = run_matrix(matrix, options, watch=True)
        if figures:
            from leaderboard.figures.curves import write_curves

            write_curves(result.results.verdicts, result.folder / "figures")
        show_run(result, debug)
        return status(result, fail_on_flag)

    guard(command, debug)


def _dry_run(matrix: str, options: RunOptions, trust: bool) -> None:
    from contextlib import nullcontext

    from bench.plugins import discovery
    from bench.runner.prepare import prepare
    from leaderboard.terminal.listing import show_plan

    discovery.load_plugins(options.plugin)
    with nullcontext() if trust else discovery.sealed():  # the matrix may be a stranger's
        plan, settings, data = prepare(matrix, options)
    show_plan(plan, data.info.classes, len(data.test), settings.run)
    say_notes(data)


@app.command("list")
def list_command(
    what: Annotated[
        str | None,
        typer.Argument(
            help="defenses, attacks, datasets, networks, matrices, claims, recipes, or a name."
        ),
    ] = None,
    plugin: Plugins = [],  # noqa: B006 (as above)
    debug: Debug = False,
) -> None:
    """List what can be named in a matrix; with a name, its parameters and their defaults."""

    def command() -> int:
        from bench.plugins import discovery
        from leaderboard.terminal.listing import show_listing

        discovery.load_plugins(plugin)
        show_listing(what)
        return 0

    guard(command, debug)


@app.command("publish")
def publish_command(  # noqa: PLR0913, PLR0917 (as of run)
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A results folder.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Where published results lie.")] = Path(
        "leaderboard/published"
    ),
    again: Annotated[int, typer.Option(min=0, help="Cells to make anew before.")] = 5,
    again_fits: Annotated[int, typer.Option(min=0, help="Fits to make anew before.")] = 1,
    seed: Seed = None,
    device: RunDevice = "auto",
    workers: Workers = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    plugin: Plugins = [],  # noqa: B006 (as above)
    trust: Trust = False,
    unpickle: Unpickle = False,
    cell_timeout: CellTimeout = None,
    fit_timeout: FitTimeout = None,
    memory: Memory = None,
    debug: Debug = False,
) -> None:
    """Verify a run and copy its aggregates and pages to DIR/RUN-NAME/; write DIR/README.md.

    With --again 0 and --again-fits 0 nothing is verified, and the published record says so. Without
    RUN only the index is written again.
    """
    from bench.plan.options import RunOptions

    options = RunOptions(
        device=device, workers=workers, data_dir=data_dir, cache_dir=cache_dir, offline=offline,
        plugin=tuple(plugin), cell_timeout=cell_timeout, fit_timeout=fit_timeout, memory=memory,
        unpickle=unpickle,
    )  # fmt: skip

    def command() -> int:
        from bench.audit.published import record
        from bench.audit.repeat import seed_of
        from bench.audit.verify import read
        from bench.evidence.environment import describe
        from bench.evidence.folder import RunFolder
        from leaderboard.pages.publish import publish, write_index

        if run_folder is not None:
            told = None
            RunFolder(run_folder).check_schema()
            if again or again_fits:
                drawn_by = seed_of(read(run_folder)) if seed is None else seed
                found, run = _verify(run_folder, options, (again, again_fits), drawn_by, trust)
                if found.differences:
                    return 1
                told = record(found, describe(run.plan, _device(run_folder, device)))
            typer.echo(plain(f"published to {publish(run_folder, to, told)}"))
        typer.echo(plain(f"index: {write_index(to)}, index.html beside it"))
        return 0

    guard(command, debug)


@app.command("check")
def check_command(
    plugin: Annotated[
        str, typer.Argument(metavar="FILE|MODULE", help="What registers the plugins to check.")
    ],
    param: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for a parameter without a default; may be repeated."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Check every plugin of a file or module against its contract, on a tiny data set.

    One line a check, with how to mend what fails; exit status 1 where anything does.
    """

    def command() -> int:
        from bench.conformance import check_plugins
        from leaderboard.terminal.say import say

        checks = check_plugins(plugin, dict(_param(item) for item in param or []))
        for check in checks:
            say(str(check), fg="red" if check.failed else None)
        failed = sum(check.failed for check in checks)
        typer.echo(f"{len(checks)} checks, {failed} failed")
        return 1 if failed else 0

    guard(command, debug)


@app.command("merge")
def merge_command(  # noqa: PLR0913, PLR0917 (as of run)
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Results folders.")],
    out: Annotated[Path, typer.Option(help="Results folder of the whole.")],
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    plugin: Plugins = [],  # noqa: B006 (as above)
    unpickle: Unpickle = False,
    replace: Replace = False,
    debug: Debug = False,
) -> None:
    """Unite runs of one matrix that were made apart, as seeds 0,1 here and 2,3 there; verify it.

    Nothing is run again. Refused where code, data or matrix differ; exit status 1 where the whole
    does not verify.
    """
    from bench.plan.options import RunOptions

    options = RunOptions(
        out=out, data_dir=data_dir, cache_dir=cache_dir, offline=offline, plugin=tuple(plugin),
        unpickle=unpickle, replace=replace, device="cpu",
    )  # fmt: skip

    def command() -> int:
        from bench.merging import merge

        show_run(merge(runs, options), debug)
        found, _ = _verify(out, options, (0, 0), None, trust=True)
        return 1 if found.differences else 0

    guard(command, debug)


@app.command("verify")
def verify_command(  # noqa: PLR0913, PLR0917 (as of run)
    run_folder: Run,
    again: Annotated[int, typer.Option(min=0, help="Cells to make anew.")] = 0,
    again_fits: Annotated[int, typer.Option(min=0, help="Fits to make anew.")] = 0,
    seed: Seed = None,
    device: RunDevice = "auto",
    workers: Workers = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    plugin: Plugins = [],  # noqa: B006 (as above)
    trust: Trust = False,
    unpickle: Unpickle = False,
    cell_timeout: CellTimeout = None,
    fit_timeout: FitTimeout = None,
    memory: Memory = None,
    debug: Debug = False,
) -> None:
    """Make every record, aggregate and page of a run again from its stored inputs and weights.

    That shows that it is consistent with itself. With --again, cells that are drawn at random are
    attacked anew, and with --again-fits fits are learnt anew: what nobody measured is found out.
    Exit status 1 and a list where anything differs.
    """
    from bench.plan.options import RunOptions

    options = RunOptions(
        device=device, workers=workers, data_dir=data_dir, cache_dir=cache_dir, offline=offline,
        plugin=tuple(plugin), cell_timeout=cell_timeout, fit_timeout=fit_timeout, memory=memory,
        unpickle=unpickle,
    )  # fmt: skip

    def command() -> int:
        found, _ = _verify(run_folder, options, (again, again_fits), seed, trust)
        return 1 if found.differences else 0

    guard(command, debug)


def _verify(
    run_folder: Path, options: RunOptions, again: tuple[int, int], seed: int | None, trust: bool
) -> tuple[Verification, FinishedRun]:
    """Verify a run and print what was found; raises UserError where code of it is missing."""
    import secrets

    from bench.audit.repeat import Bench, Choice
    from bench.audit.verify import read, verify
    from bench.audit.verify_folder import Shown
    from bench.base.files import default_cache
    from bench.plugins.contracts import DataSettings
    from bench.runner.prepare import absolute
    from bench.runner.processes import default_memory, default_workers
    from bench.runner.task import Settings
    from leaderboard.pages.publish import draw_figures, every_page
    from leaderboard.terminal.inspection import show_verification

    run = read(run_folder)
    device = _device(run_folder, options.device)
    cache = (options.cache_dir or default_cache()).absolute()
    workers = options.workers or default_workers(device)
    memory = default_memory(workers) if options.memory is None else int(options.memory * 2**30)
    data_dir = options.data_dir.absolute() if options.data_dir else None
    settings = Settings(
        run.folder.root, cache, DataSettings(data_dir, cache, options.offline), device,
        plugins=absolute(options.plugin), fit_timeout=options.fit_timeout, memory=memory,
        sealed=not trust,
    )  # fmt: skip
    choice = Choice(*again, secrets.randbits(32) if seed is None else seed) if any(again) else None
    bench = Bench(settings, workers, options.cell_timeout, options.unpickle)
    found = verify(run, bench, Shown(every_page, draw_figures), choice)
    show_verification(run, found)
    if found.refused is not None:
        raise UserError(found.refused)
    return found, run


def _device(run_folder: Path, device: str) -> str:
    """Return the device that is asked for, or one of the class that a run used."""
    from bench.audit.verify import recorded_device
    from bench.runner.prepare import choose_device

    asked = recorded_device(run_folder) if device == "auto" else device
    return choose_device("auto" if asked == "cuda" and device == "auto" else asked)


@app.command("claim")
def claim_command(  # noqa: PLR0913, PLR0917 (as of run)
    claim: Annotated[
        str, typer.Argument(metavar="CLAIM", help="A claim by name, or a .toml file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Results folder [runs/claim-NAME].")] = None,
    device: Device = "auto",
    workers: Workers = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    plugin: Plugins = [],  # noqa: B006 (as above)
    cell_timeout: CellTimeout = None,
    fit_timeout: FitTimeout = None,
    memory: Memory = None,
    debug: Debug = False,
) -> None:
    """Put a claim about a defense to the test: supported, refuted or inconclusive.

    Exit status 1 where it is refuted or a cell failed, 0 where it is supported or inconclusive:
    the first word of the answer says which.
    """
    from bench.plan.options import RunOptions

    options = RunOptions(
        out=out, device=device, workers=workers, data_dir=data_dir, cache_dir=cache_dir,
        offline=offline, plugin=tuple(plugin), cell_timeout=cell_timeout,
        fit_timeout=fit_timeout, memory=memory,
    )  # fmt: skip

    def command() -> int:
        from dataclasses import replace

        from bench.base.files import write_json
        from bench.base.places import start_at
        from bench.claims.answer import read_answer
        from bench.claims.claim import load_claim
        from bench.evidence.finished_run import read_run
        from bench.plugins import discovery
        from bench.runner.prepare import matrix_folder, prepare
        from leaderboard.terminal.claims import show_answer

        discovery.load_plugins(plugin)
        start_at(base := matrix_folder(claim))
        said = load_claim(claim)
        chosen = replace(options, out=out or Path("runs") / f"claim-{said.name}")
        prepared = prepare(said.matrix(), chosen, base)
        info = prepared[2].info
        said.check(info)
        result = run_prepared(prepared, chosen, watch=True)
        answer = read_answer(said, read_run(result.folder), info)
        write_json(result.folder / "claim.json", answer.document())
        show_answer(answer, said.threat.model(info.features), result.folder)
        return 1 if answer.word == "refuted" else status(result, fail_on_flag=False)

    guard(command, debug)


@app.command("selftest")
def selftest_command(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("runs/selftest"),
    device: Device = "auto",
    workers: Workers = None,
    cache_dir: CacheDir = None,
    debug: Debug = False,
) -> None:
    """Run defenses of known truth through the panels, to see whether the harness sees it.

    Exit status 1 where one is missed, or where a warning rises on an honest network.
    """

    def command() -> int:
        from bench.claims.selftest import findings, self_test
        from bench.plan.options import RunOptions
        from leaderboard.terminal.claims import show_findings

        test = self_test()
        options = RunOptions(
            out=out, device=device, workers=workers, cache_dir=cache_dir, plugin=tuple(test.plugin)
        )
        result = run_matrix(test.table(), options, watch=True)
        found = findings(test.case, result.results)
        show_findings(found)
        return 0 if all(finding.status == "ok" for finding in found) else 1

    guard(command, debug)


@app.command("show")
def show_command(
    run_folder: Run,
    table: Annotated[
        str | None, typer.Option(help="verdicts, budgets, attacks, models or flags, whole.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show a run, or what is published of one: as at its end, or one of its wide tables."""

    def command() -> int:
        from bench.base.files import read_json
        from bench.evidence.finished_run import read_results
        from leaderboard.terminal.results import show_results, show_table

        results = read_results(run_folder)
        if table is not None:
            show_table(results, table)
        else:
            show_results(results, read_json(run_folder / "environment.json"), run_folder)
        return 0

    guard(command, debug)


@app.command("explain")
def explain_command(
    run_folder: Run,
    cell: Annotated[
        str, typer.Argument(help="The id of a cell, or how it begins; or a defense, as in tables.")
    ],
    attack: Annotated[
        str | None, typer.Argument(help="With a defense: the attack, as in tables.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show a cell: outcome, key document, metrics, flags, records, the command to repeat it."""

    def command() -> int:
        from bench.evidence.finished_run import read_run
        from leaderboard.terminal.inspection import named_cell, show_cell

        run = read_run(run_folder)
        show_cell(run, run.cell(cell if attack is None else named_cell(run.rows, cell, attack)))
        return 0

    guard(command, debug)


@app.command("diff")
def diff_command(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A results folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
    every: Annotated[bool, typer.Option("--all", help="Show every number that changed.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write it as an HTML page too.")] = None,
    debug: Debug = False,
) -> None:
    """List what changed between two runs, and the key fields that explain it.

    Success, worst case and verdicts; with --all every number.

    Exit status 1 where a number changed and nothing that is recorded did.
    """

    def command() -> int:
        from bench.audit.diff import compare_runs
        from bench.evidence.finished_run import read_run
        from leaderboard.terminal.inspection import show_comparison, show_verdict_changes

        runs = read_run(first), read_run(second)
        compared = compare_runs(*runs)
        show_comparison(compared, every)
        show_verdict_changes(*(run.results.verdicts for run in runs))
        if page is not None:
            from bench.base.files import write_text
            from leaderboard.site.diff_page import diff_page

            write_text(page, diff_page(*runs, compared))
        return 1 if any(pair.failure for pair in compared.pairs) else 0

    guard(command, debug)


def _param(item: str) -> tuple[str, Any]:
    import tomllib

    name, _, value = item.partition("=")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return name.strip(), value.strip()  # text without its quotes


def main() -> None:
    """Entry point of ``retort`` and of ``python -m bench``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no Δ or ∞ ends a run where there is only ASCII
    try:
        refuse_foreign()
    except UserError as error:
        typer.echo(f"error: {plain(str(error))}", err=True)
        raise SystemExit(2) from None
    try:
        app()
    except BrokenPipeError:  # `python -m bench list | head`
        sys.stderr.close()
        raise SystemExit(1) from None
