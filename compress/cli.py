"""The commands. Thin: everything they do can be done from Python (`compress.api`)."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from compress import __version__
from compress.errors import RunStopped, UserError
from compress.system.amounts import duration
from compress.system.processes import gc_disabled, started
from compress.tasks import task_options

OK, SOME_ROWS_FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130
TERMINATED = 143
UNWRITTEN = 120
"""As Python itself exits when its output cannot be written."""

PATH = click.Path(path_type=Path)
RUN = click.Path(path_type=Path, exists=True, file_okay=False)
COUNT = click.IntRange(min=1)


class _Several(click.ParamType):
    """Values of one kind, joined by commas."""

    def __init__(self, kind: Callable[[str], Any], example: str) -> None:
        self.kind, self.name, self.example = kind, "values", example

    def convert(self, value: str, parameter: Any, context: Any) -> tuple[Any, ...]:
        try:
            return tuple(self.kind(part.strip()) for part in value.split(","))
        except ValueError:
            message = f"{value!r} is not a list of numbers such as {self.example}"
            self.fail(message, parameter, context)


FLOATS = _Several(float, "0.485,0.456,0.406")
TASK_KINDS: dict[str, Any] = {
    "str": str,
    "int": COUNT,
    "float": float,
    "bool": bool,
    "floats": FLOATS,
}


def _by_name(_: click.Context, parameter: click.Parameter, value: Any) -> Any:
    teachers = {name: (model, weights) for name, model, weights in value}
    if len(teachers) < len(value):
        raise click.BadParameter("a name stands twice")
    return teachers or None


def _option(usage: str, help: str, kind: Any = str, **settings: Any) -> Callable[..., Any]:
    """Return an option that is written like `--out DIR`."""
    name, _, metavar = usage.partition(" ")
    return click.option(name, type=kind, metavar=metavar or None, help=help, **settings)


def _task_options() -> list[Callable[..., Any]]:
    try:
        options = task_options()
    except UserError as error:  # of another package: no command can be told what it takes
        sys.exit(f"Error: {error}")
    return [
        _option(f"--{key.replace('_', '-')}", item.help, TASK_KINDS[item.kind])
        for key, item in options.items()
    ]


SHARED = [
    _option("--out DIR", "Folder for all outputs.", PATH),
    _option("--data-root DIR", "Of data sets; else $COMPRESS_DATA_ROOT, else your cache.", PATH),
    _option("--weights FILE", "A .safetensors or .pt file, or DEFAULT (what is published)."),
    _option("--baseline STEP", "finetune(...) of the weights, to your classes; or train(...)."),
    _option("--calibration SOURCE", "Such as imagefolder:DIR: what steps calibrate on; no labels."),
    click.option(
        "--teacher",
        "teachers",
        nargs=3,
        multiple=True,
        callback=_by_name,
        metavar="NAME MODEL WEIGHTS",
        help="A further model, for chains with distill(teacher='NAME').",
    ),
    click.option(
        "--student",
        "students",
        nargs=3,
        multiple=True,
        callback=_by_name,
        metavar="NAME MODEL WEIGHTS",
        help="A student with weights, for distill(student='NAME').",
    ),
    *_task_options(),
    _option("--seeds NUMBERS", "One run of every chain each, e.g. 0,1,2.", _Several(int, "0,1,2")),
    _option("--threads", "CPU threads of the timing.", COUNT),
    _option(
        "--timing-seconds SECONDS",
        "Budget of the timing. At least five processes per number of threads run in any case; "
        "quantize(seconds=...) has a budget of its own.",
        float,
    ),
    _option(
        "--timings NAMES",
        "Latencies to time: cpu[THREADS][_batchN]. Default: cpu,cpu1,cpu_batch32.",
        _Several(str, "cpu,cpu1"),
    ),
    _option("--device NAME", "auto, cpu or cuda: where to train.", default="auto"),
    _option("--precision NAME", "auto, float32 or bfloat16: of the training."),
    click.option(
        "--controls/--no-controls",
        default=None,
        help="Whether chains that train get a control of equal cost as a further row: the "
        "same training without the technique. By default bench adds them, run does not.",
    ),
    _option(
        "--margin POINTS",
        "A row is equivalent if a loss of accuracy of this or more is ruled out. Default: 1.",
        float,
    ),
    _option(
        "--require-equivalent CHAIN",
        "Exit with 1 unless this chain of the table is equivalent to the baseline, or better. "
        "May be given several times.",
        multiple=True,
    ),
    _option("--opset N", "Of the ONNX files, for an older runtime (docs/suites.md).", int),
    _option(
        "--metric FILE.py:NAME",
        "A function of yours that makes a number of outputs and targets (numpy arrays): "
        "a column beside accuracy. Needs --allow-code FILE.py.",
    ),
    _option(
        "--store PLACE",
        "Where results of steps are kept: a folder, or a URL such as s3://bucket/runs. "
        "By default .steps in the run's folder.",
    ),
    click.option("--fresh", is_flag=True, help="Compute again what the store has already."),
    click.option(
        "--dry-run", is_flag=True, help="Show what is done and what is left; compute nothing."
    ),
    _option("--step-timeout SECONDS", "Of one step. Default: 43200.", float),
    _option(
        "--step-memory GB",
        "Of one step and all that it starts. Default: nine tenths of what is free.",
        float,
    ),
    _option("--step-threads", "CPU threads that a step computes on. Default: all.", COUNT),
    _option(
        "--pixel-cache GB",
        "Most that decoded images in the store take; 0: none. Default: half of the free disk.",
        float,
    ),
    _option(
        "--executor NAME",
        "local, or ray[:ADDRESS] for a Ray cluster that is already there.",
        default="local",
    ),
    _option(
        "--allow-code FILE.py",
        "A file of yours that may be run because a model or the metric names it.",
        PATH,
        multiple=True,
    ),
]
"""The options that `bench` and `run` share."""
NOT_FOR_SEARCHES = {
    *("seeds", "timings", "controls", "margin", "require_equivalent", "fresh", "dry_run"),
}
"""Those of them that a search has no use for, or decides itself."""


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(SHARED):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="compress-models")
def cli() -> None:
    """Compress a trained network with chains of techniques, and measure every one."""


@cli.command()
@click.argument("suite")
@_shared
def bench(**options: Any) -> None:
    """Run SUITE, a built-in name or a TOML file, and write its tables, plots and models."""
    _carry_out("bench", **options)


@cli.command()
@click.option("--data", default="digits", show_default=True, help="See: list data.")
@click.option("--model", default="cnn-small", show_default=True, help="See: list models.")
@click.option(
    "--chain",
    required=True,
    multiple=True,
    help="Such as 'a() -> b()'; may be given several times.",
)
@_shared
def run(**options: Any) -> None:
    """Run one chain (or several) beside its baseline."""
    _carry_out("run", **options)


def _carry_out(name: str, dry_run: bool, **options: Any) -> None:
    """Call a function of the API by its name, or show what it would do."""
    if not dry_run and options["executor"] == "local":
        # The process that forks the steps' starts before this one spends seconds on its imports.
        from compress.benchmark.execute.fork_client import start_base

        start_base()
    with gc_disabled():
        from compress import api

    if dry_run:
        click.echo(api.preview(**options))
        return
    command = shlex.join(["compress-models", *sys.argv[1:]])
    results = getattr(api, name)(**options, command=command, on_record=_announcer())
    _finish(results, options["require_equivalent"])


def _for_searches(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add those of the shared options that a search takes."""
    for option in reversed(SHARED):
        [parameter] = getattr(option(lambda: None), "__click_params__")  # noqa: B009
        if parameter.name not in NOT_FOR_SEARCHES:
            command = option(command)
    return command


@cli.command()
@click.argument("place", required=False, type=PATH, metavar="[DIR]")
@_option("--budget TIME", "Such as 90s, 30m or 2h; it is kept.", required=True)
@_option("--data SOURCE", "See: list data.")
@_option("--model NAME", "See: list models.")
@_option("--max-drop POINTS", "Points of accuracy that may be lost. Default: 1.", float)
@_option("--target-ms MS", "Instead: the most accurate within this latency of an item.", float)
@_option("--by WHAT", "latency (default), size, macs or params: what is made small.")
@_option("--space FILE.toml", "Techniques and values to try.", PATH)
@_option("--only NAMES", "Techniques to try, e.g. quantize,prune_channels.", _Several(str, "a,b"))
@_option("--without NAMES", "Techniques not to try.", _Several(str, "a,b"))
@_option("--trials N", "End after N trials, those of earlier runs included.", COUNT)
@_option(
    "--like DIR", "A search on a model like this one; its best draws come first.", multiple=True
)
@_option("--seed N", "Of the sampler and of all steps. Default: 0.", click.IntRange(min=0))
@_for_searches
def recommend(place: Path | None, out: Path | None, **options: Any) -> None:
    """Search for the cheapest chain within a loss of accuracy, and test what it found.

    DIR, a search's folder, goes on with that search; a new one needs --data and --model.
    """
    if place is not None and out is not None:
        raise UserError("give the folder once: as an argument, or with --out")
    if options["executor"] == "local":
        from compress.benchmark.execute.fork_client import start_base

        start_base()
    with gc_disabled():
        from compress import api

    # A search that goes on keeps the options that it was begun with, unless they are given anew.
    here, default = click.get_current_context(), ParameterSource.DEFAULT
    source = here.get_parameter_source
    given = {name: value for name, value in options.items() if source(name) is not default}
    found = api.recommend(place or out, since=here.obj, **given)
    click.echo(str(found))
    files = ("model.onnx", "recommendation.md", "frontier.png", "trials.csv")
    written = ", ".join(name for name in files if (found.out / name).exists())
    click.echo(f"Written to {found.out}: {written}")
    sys.exit(OK if found.winner else SOME_ROWS_FAILED)


@cli.command()
@click.argument("out", type=RUN)
@_option("--margin POINTS", "Instead of the run's own.", float)
def report(out: Path, margin: float | None) -> None:
    """Write the tables and plots of a run anew from what it has measured."""
    from compress.api import rewrite_reports

    _finish(rewrite_reports(out, margin))


@cli.command()
@click.argument("run", type=RUN)
@_option(
    "--out FILE.zip",
    "By default pack.zip in the run's folder.",
    click.Path(path_type=Path, dir_okay=False),
)
def pack(run: Path, out: Path | None) -> None:
    """Pack the files of RUN, a run's folder, to be timed on another machine.

    There, numpy and onnxruntime are all that is needed: unpack it and run python time_here.py.
    """
    from compress.api import pack as write

    click.echo(f"Written to {write(run, out)}: the models, some test items, and time_here.py.")
    click.echo("On the other machine: unpack it and run python time_here.py (see its README.txt).")


@cli.command()
@click.argument("run", type=RUN)
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option(
    "--as",
    "name",
    default="",
    metavar="NAME",
    help="What to call the machine, if there is another like it; by default its processor.",
)
def merge(run: Path, files: tuple[Path, ...], name: str) -> None:
    """Add FILES that time_here.py has written elsewhere to RUN, and write its reports anew."""
    from compress.api import merge as add

    results = add(run, files, name)
    for slug, there in results.about["other_machines"].items():
        machine = there["environment"]
        cpu, threads = machine["cpu"] or "unnamed processor", machine["threads"]
        click.echo(f"Columns on_{slug}_...: {cpu}, threads: {threads}, timed {machine['date']}")
    _finish(results)


@cli.command()
@click.argument("place")
@click.option("--clean", is_flag=True, help="Remove damaged entries and leftovers of dead runs.")
@_option("--older-than DAYS", "Remove what was not used since.", click.FloatRange(min=0))
@_option(
    "--keep GB",
    "Remove the least recently used until no more than this is left.",
    click.FloatRange(min=0),
)
def store(place: str, clean: bool, older_than: float | None, keep: float | None) -> None:
    """Show the size of PLACE, a run's folder or a store, and clean it if an option says so."""
    from compress.api import clean_store

    click.echo(clean_store(place, clean, older_than, keep))


@cli.command()
@click.argument("files", type=PATH, nargs=-1, required=True)
def check(files: tuple[Path, ...]) -> None:
    """Describe FILES, and say whether they are safe to read; nothing in them is run.

    ONNX files, weights (.safetensors, .pt) and folders of saved models.
    """
    from compress.benchmark.portable.check import check_file

    for path in files:
        click.echo("\n".join(check_file(path)))


@cli.command(name="list")
@click.argument(
    "what",
    type=click.Choice(
        ["techniques", "losses", "hints", "criteria", "models", "data", "suites", "columns"]
    ),
)
def list_names(what: str) -> None:
    """List what can be named."""
    described = _described(what)
    for name in described if what == "columns" else sorted(described):
        click.echo(f"{name}\n    {described[name]}")


def _described(what: str) -> Mapping[str, str]:
    """Return everything of a kind that can be named: name -> description."""
    if what == "models":
        from compress.zoo.models import MODELS

        return MODELS
    if what == "data":
        from compress.zoo.data import described_data

        return described_data()
    if what == "columns":
        from compress.results.columns import described

        return described()
    if what == "suites":
        from compress.benchmark.plan.suite import suite_names

        return suite_names()
    from compress.techniques import criteria, hints, losses, techniques

    table = {"techniques": techniques, "losses": losses, "hints": hints, "criteria": criteria}[what]
    return {_signature(cls): _first_paragraph(cls) for cls in table().values()}


def _signature(cls: Any) -> str:
    from dataclasses import MISSING

    from compress.parts import settings_of

    shown = [
        item.name if item.default is MISSING else f"{item.name}={item.default!r}"
        for item in settings_of(cls)
    ]
    return f"{cls.name()}({', '.join(shown)})"


def _first_paragraph(cls: Any) -> str:
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def _announcer() -> Callable[[Mapping[str, Any]], None]:
    """Return what writes a line for a finished row, and one more only if its status changes.

    So a log of a long run shows how far it is.
    """
    from compress.system.progress import say

    announced: set[tuple[str, int, str]] = set()

    def announce(row: Mapping[str, Any]) -> None:
        key = (row["chain"], row["seed"], row["status"])
        if key in announced:
            return
        announced.add(key)
        figures = [row["status"]]
        if row.get("accuracy") is not None:
            figures.append(f"{100 * row['accuracy']:.2f} %")
        if row.get("seconds") is not None:
            figures.append(duration(row["seconds"]))
        why = f": {row['error']}" if row["error"] else ""
        why += f": {row['note']}" if "DOUBTFUL" in row["note"] else ""
        say(f"{row['chain']} [seed {row['seed']}]: {', '.join(figures)}{why}")

    return announce


def _finish(results: Any, equivalent: Sequence[str] = ()) -> None:
    click.echo(str(results))
    files = "table.md, results.csv, pareto.png, speedups.png, models/"
    click.echo(f"Written to {results.out}: {files}")
    reasons = [why for chain in equivalent if (why := results.why_not_equivalent(chain))]
    for why in reasons:
        click.echo(f"Not equivalent: {why}.", err=True)
    sys.exit(SOME_ROWS_FAILED if reasons or not results.ok else OK)


def main(since: float | None = None) -> None:
    """Run the command line; exit with 0 (all rows ok), 1 (some not), 2 (a wrong call).

    A budget runs `since` a time by `time.monotonic()`, else from when it is read.
    """
    stopped = []

    def stop(*_: object) -> None:
        stopped.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(cli(standalone_mode=False, obj=since))
    except click.ClickException as error:
        error.show()
        sys.exit(WRONG_CALL)
    except (UserError, RunStopped) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(WRONG_CALL if isinstance(error, UserError) else SOME_ROWS_FAILED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped. What was finished is kept; run again to go on.", err=True)
        sys.exit(TERMINATED if stopped else INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted_again(lost: sys.UnraisableHookArgs) -> None:
    """Send Ctrl-C once more where it came while an object was removed, which Python ignores."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        # From another thread: here it would be ignored as well.
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def command() -> NoReturn:
    """Be the whole process: what `main` does, without tearing down torch, which takes seconds."""
    sys.unraisablehook = _interrupted_again
    status = OK
    try:
        main(started())
    except SystemExit as end:
        status = int(end.code or OK)
    try:
        sys.stdout.flush()
    except OSError as error:  # a closed pipe, a full disk
        sys.stderr.write(f"Error: what was printed could not be written: {error}\n")
        status = UNWRITTEN
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(status)
