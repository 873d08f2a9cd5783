"""What commands share: options, how a run is shown, how a command ends; and ``judge`` and ``new``.

Nothing heavy is imported before it is needed: ``--help`` must not wait for torch.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from bench.base.rows import warns
from bench.base.types import DamagedError, UserError

if TYPE_CHECKING:
    from bench.base.rows import FlagRow, Results
    from bench.compose import RunResult


app = typer.Typer(
    name="retort",
    help="How robust is this defense, really? Pairs defenses with attacks and keeps the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are defaults, no markup
)

Matrix = Annotated[str, typer.Option("--matrix", "-m", help="A matrix by name, or a .toml file.")]

Plugins = Annotated[
    list[str],
    typer.Option("--plugin", help="A file or module whose plugins to load; may be repeated."),
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]

Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes [one a core; one on a GPU].")
]

Executor = Annotated[str, typer.Option(help="Who does the work: local, ray, or my_module:factory.")]

Address = Annotated[
    str, typer.Option(help="The Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT.")
]

Shards = Annotated[
    int | None, typer.Option(min=1, help="Tasks that a cell is split into at most [a block each].")
]

DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie [RETORT_DATA].")]

CacheDir = Annotated[Path | None, typer.Option(help="Where weights are kept [RETORT_CACHE].")]

Offline = Annotated[bool, typer.Option("--offline", help="Never download.")]

CellTimeout = Annotated[float | None, typer.Option(min=0.1, help="Seconds that a cell may take.")]

FitTimeout = Annotated[float | None, typer.Option(min=0.1, help="Seconds that a fit may take.")]

Memory = Annotated[
    float | None,
    typer.Option(min=0.1, help="GiB that a worker may hold [90 % of the machine's by workers]."),
]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]

Fresh = Annotated[bool, typer.Option("--fresh", help="Reuse no result of this folder.")]

Replace = Annotated[
    bool, typer.Option("--replace", help="Take the place of another run in the folder.")
]

Unpickle = Annotated[
    bool,
    typer.Option("--unpickle", help="Load modules handed over in memory, which runs their code."),
]

FailOnFlag = Annotated[bool, typer.Option("--fail-on-flag", help="Exit 1 where a flag warns.")]

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"retort {version('retort-bench')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take what stands before any command."""


class _Several(TyperCommand):
    """A command whose options of several values are followed by them, as in --weights a.pt b.pt."""

    SEVERAL = ("--weights", "--reference-weights", "--transfer-from", "--budget")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values."""
        spread: list[str] = []
        option = ""
        for word in args:
            name, equals, value = word.partition("=")
            if word.startswith("--"):
                option = name if name in self.SEVERAL else ""
                first = [option, value] if equals else []
                spread += first if option else [word]
            elif option != "--transfer-from" and ":" in word and not Path(word).exists():
                option = ""  # file.py:build, what stands for itself: no weights, no budget
                spread.append(word)
            else:
                spread += [option, word] if option else [word]
        return super().parse_args(ctx, spread)


@app.command("judge", cls=_Several)
def judge_command(  # noqa: PLR0913, PLR0917 (typer reads the options off the parameters)
    builder: Annotated[
        str | None,
        typer.Argument(
            help="What makes the network: file.py:build, module:build, or a network by name; "
            "program for TorchScript and torch.export files."
        ),
    ] = None,
    weights: Annotated[
        list[str], typer.Option(help="Its weights, a file for each training seed.")
    ] = [],  # noqa: B006 (typer reads the default, nothing changes it)
    norm: Annotated[str, typer.Option(help="linf, l2 or l0.")] = "linf",
    budget: Annotated[
        list[str], typer.Option(help="One or more budgets, as 8/255; of l0, numbers of features.")
    ] = [],  # noqa: B006 (as above)
    dataset: Annotated[str | None, typer.Option(help="A data set by name.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Test data: a .npz or .safetensors file, a folder of images.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(help="Of a folder of images: the shorter side, in pixels.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Then a square from the middle: its side, in pixels.")
    ] = None,
    gray: Annotated[bool, typer.Option("--gray", help="One channel instead of three.")] = False,
    reference: Annotated[
        str | None,
        typer.Option(help="What makes the undefended network [BUILDER], or a defense by name."),
    ] = None,
    reference_weights: Annotated[
        list[str], typer.Option(help="Its weights: one file, or as many as --weights.")
    ] = [],  # noqa: B006 (as above)
    transfer_from: Annotated[
        list[str],
        typer.Option(help="Further networks for transfer attacks: WEIGHTS, or BUILDER=WEIGHTS."),
    ] = [],  # noqa: B006 (as above)
    sources: Annotated[str, typer.Option(help="Images to attack: a number, or all.")] = "100",
    limit: Annotated[
        str | None,
        typer.Option("--time", help="Choose the number of sources: 90s, 20m or 3h, at most."),
    ] = None,
    expect_accuracy: Annotated[
        float | None, typer.Option(help="What its author says, a fraction.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="The networks want (x - MEAN) / STD: a value a channel.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="See --mean.")] = None,
    value_range: Annotated[
        str | None, typer.Option("--range", help="The networks want inputs in it, as -1,1.")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="nhwc: channels last.")] = None,
    order: Annotated[str | None, typer.Option(help="bgr: blue first.")] = None,
    part: Annotated[str | None, typer.Option(help="Which part of a checkpoint, as ema.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the matrix [judge-BUILDER].")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results folder [runs/NAME-DATA-NORM-BUDGET].")
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    executor: Executor = "local",
    address: Address = "auto",
    shards: Shards = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    offline: Offline = False,
    plugin: Plugins = [],  # noqa: B006 (as above)
    cell_timeout: CellTimeout = None,
    memory: Memory = None,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    replace: Replace = False,
    fail_on_flag: FailOnFlag = False,
    debug: Debug = False,
) -> None:
    """Judge networks that others trained: weights in files, test data, a budget.

    Makes a matrix of them (printed with --dry-run, with what it will cost; written beside the
    results) and runs it. The same command goes on where an interrupted run stopped.
    """
    from bench.plan.options import RunOptions

    options = RunOptions(
        out=out, device=device, workers=workers, data_dir=data_dir, cache_dir=cache_dir,
        offline=offline, plugin=tuple(plugin), cell_timeout=cell_timeout, memory=memory,
        fresh=fresh, replace=replace, executor=executor, address=address, shards=shards,
    )  # fmt: skip
    form = {
        "mean": mean, "std": std, "range": value_range, "layout": layout, "order": order,
        "part": part,
    }  # fmt: skip
    images = {"resize": resize, "crop": crop, "gray": gray or None}

    def command() -> int:
        from bench.judging.answer import verdict_of
        from bench.judging.question import prepared
        from bench.judging.words import Handed
        from leaderboard.terminal.judged import show_judged
        from leaderboard.terminal.results import show_trouble

        handed = Handed(
            builder, weights, norm, budget, dataset, data, reference, reference_weights,
            transfer_from, sources, form, expect_accuracy, name, images,
        )  # fmt: skip
        question = handed.question(out)
        ready = prepared(question, options)
        if dry_run or limit:
            from bench.judging.cost import cost, cost_table, fitting
            from leaderboard.terminal.judged import show_cost

            told = cost(ready)
            if limit:
                ready = fitting(ready, question, told, limit)
            show_cost(*cost_table(told, ready.sources))
        if dry_run:
            typer.echo(ready.text)
            return 0
        result = ready.run(watch=True)
        show_judged(verdict_of(result, question))
        show_trouble(result.results)
        for trace in result.progress.traces.values() if debug else ():
            typer.echo(trace)
        return status(result, fail_on_flag)

    guard(command, debug)


@app.command("new")
def new_command(
    kind: Annotated[
        str, typer.Argument(help="attack, learning-attack, defense, network or dataset.")
    ],
    name: Annotated[str, typer.Argument(help="What it will be called in a matrix.")],
    debug: Debug = False,
) -> None:
    """Write a plugin to begin with, NAME.py: it works as it is, and passes check."""

    def command() -> int:
        from bench.skeleton import write_skeleton
        from leaderboard.terminal.say import say

        path = write_skeleton(kind, name, Path())
        say(f"{path}: change it, then: retort check {path}")
        return 0

    guard(command, debug)


def show_run(result: RunResult, debug: bool) -> None:
    """Print what a run came to."""
    from bench.base.files import read_json
    from leaderboard.terminal.results import show_results
    from leaderboard.terminal.say import paragraph

    for note in result.progress.notes:
        paragraph(f"note: {note}", fg="yellow")
    traces = list(result.progress.traces.values()) if debug else []
    environment = read_json(result.folder / "environment.json")
    show_results(result.results, environment, result.folder, traces)


def status(result: RunResult, fail_on_flag: bool) -> int:
    """Return the exit status of a run."""
    failed = any(item.status == "failed" for item in result.progress.outcomes.values())
    flagged = any(warns(flag) for flag in flags_of(result.results))
    return 1 if failed or (fail_on_flag and flagged) else 0


def flags_of(results: Results) -> Iterator[FlagRow]:
    """Yield every flag of cells, of models and of the panels on them."""
    seeds = [seed for row in results.verdicts for seed in row["seeds"]]
    for flags in (row["flags"] for row in (*results.cells, *results.models, *seeds)):
        yield from flags


def guard(command: Callable[[], int], debug: bool) -> None:
    """Run ``command`` and exit with its status; a user's mistake is one message, no traceback."""
    from leaderboard.terminal.say import say

    try:
        code = command()
    except BrokenPipeError:
        raise  # `python -m bench list | head`
    except (UserError, DamagedError, OSError) as error:
        if debug:
            traceback.print_exc()
        say(f"error: {error}", err=True, fg="red")
        code = 2
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one shows no traceback either
        say(
            "\ninterrupted: what is done is kept; the same command goes on from there",
            err=True,
            fg="yellow",
        )
        code = 130
    raise typer.Exit(code)
