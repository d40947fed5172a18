"""The commands. Thin: everything they do can be done from Python (`compress.api`)."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from compress import __version__
from compress.errors import RunStopped, UserError
from compress.system.amounts import duration
from compress.tasks import OPTIONS, Option

OK, SOME_ROWS_FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130
TERMINATED = 143
UNWRITTEN = 120
"""As Python itself exits when its output cannot be written."""


def _numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    kind: Callable[[str], Any] = int if parameter.name == "seeds" else float
    try:
        return tuple(kind(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is not a list of numbers such as "
            f"{'0,1,2' if kind is int else '0.485,0.456,0.406'}"
        ) from error


def _names(_: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    return None if value is None else tuple(part.strip() for part in value.split(","))


def _by_name(_: click.Context, parameter: click.Parameter, value: Any) -> Any:
    found = {name: (model, weights) for name, model, weights in value}
    if len(found) < len(value):
        raise click.BadParameter("a name stands twice")
    return found or None


def _task_option(name: str, option: Option) -> Callable[..., Any]:
    if option.kind == "floats":
        return click.option(f"--{name}", callback=_numbers, help=option.help)
    kind = click.IntRange(min=1) if option.kind == "int" else str
    return click.option(f"--{name}", type=kind, help=option.help)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--out", type=click.Path(path_type=Path), help="Folder for all outputs."),
        click.option(
            "--data-root",
            type=click.Path(path_type=Path),
            help="Where data sets lie; else $COMPRESS_DATA_ROOT, else your cache folder.",
        ),
        click.option("--weights", help="A .safetensors or .pt file, or DEFAULT (torchvision)."),
        click.option(
            "--teacher",
            "teachers",
            nargs=3,
            multiple=True,
            callback=_by_name,
            metavar="NAME MODEL WEIGHTS",
            help="A further model, for chains with distill(teacher='NAME').",
        ),
        *(_task_option(name, option) for name, option in OPTIONS.items()),
        click.option("--seeds", callback=_numbers, help="One run of every chain each, e.g. 0,1,2."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the timing."),
        click.option("--timing-seconds", type=float, help="Budget of the timing, in seconds."),
        click.option(
            "--timings",
            callback=_names,
            metavar="NAMES",
            help="Latencies to time: cpu[THREADS][_batchN]. Default: cpu,cpu1,cpu_batch32.",
        ),
        click.option("--device", default="auto", help="auto, cpu or cuda: where to train."),
        click.option("--precision", help="auto, float32 or bfloat16: of the training."),
        click.option(
            "--controls/--no-controls",
            default=None,
            help="Whether chains that train get a control of equal cost as a further row: the "
            "same training without the technique. By default bench adds them, run does not.",
        ),
        click.option(
            "--margin",
            type=float,
            metavar="POINTS",
            help="A row is equivalent if a loss of accuracy of this or more is ruled out. "
            "Default: 1.",
        ),
        click.option(
            "--require-equivalent",
            multiple=True,
            metavar="CHAIN",
            help="Exit with 1 unless this chain of the table is equivalent to the baseline, or "
            "better. May be given several times.",
        ),
        click.option(
            "--metric",
            metavar="FILE.py:NAME",
            help="A function of yours that makes a number of outputs and targets (numpy arrays): "
            "a column beside accuracy. Needs --allow-code FILE.py.",
        ),
        click.option(
            "--store",
            metavar="PLACE",
            help="Where results of steps are kept: a folder, or a URL such as s3://bucket/runs. "
            "By default .steps in the run's folder.",
        ),
        click.option("--fresh", is_flag=True, help="Compute again what the store has already."),
        click.option(
            "--dry-run", is_flag=True, help="Show what is done and what is left; compute nothing."
        ),
        click.option(
            "--step-timeout", type=float, metavar="SECONDS", help="Of one step. Default: 43200."
        ),
        click.option(
            "--step-memory",
            type=float,
            metavar="GB",
            help="Of one step and all that it starts. Default: nine tenths of what is free.",
        ),
        click.option(
            "--step-threads",
            type=click.IntRange(min=1),
            help="CPU threads that a step computes on. Default: all.",
        ),
        click.option(
            "--executor",
            default="local",
            metavar="NAME",
            help="local, or ray[:ADDRESS] for a Ray cluster that is already there.",
        ),
        click.option(
            "--allow-code",
            multiple=True,
            type=click.Path(path_type=Path),
            metavar="FILE.py",
            help="A file of yours that may be run because a model or the metric names it.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="compress-models")
def cli() -> None:
    """Compress a trained network with chains of techniques, and measure every one."""


@cli.command()
@click.argument("suite")
@_shared
def bench(suite: str, **options: Any) -> None:
    """Run SUITE, a built-in name or a TOML file, and write its tables, plots and models."""
    _import_in_parallel(options)
    from compress.api import bench as run_suite
    from compress.api import preview

    if options.pop("dry_run"):
        click.echo(preview(suite, **options))
        return
    _finish(run_suite(suite, **_options(options)), options["require_equivalent"])


@cli.command()
@click.option("--data", default="digits", show_default=True, help="See: list data.")
@click.option("--model", default="cnn-small", show_default=True, help="See: list models.")
@click.option("--chain", "chains", required=True, multiple=True, help="Such as 'a() -> b()'.")
@_shared
def run(data: str, model: str, chains: tuple[str, ...], **options: Any) -> None:
    """Run one chain (or several) beside its baseline."""
    _import_in_parallel(options)
    from compress.api import preview
    from compress.api import run as run_chains

    if options.pop("dry_run"):
        click.echo(preview(data=data, model=model, chain=chains, **options))
        return
    results = run_chains(data=data, model=model, chain=chains, **_options(options))
    _finish(results, options["require_equivalent"])


def _import_in_parallel(options: dict[str, Any]) -> None:
    """Start the process that forks the steps' before this one spends seconds on its imports."""
    if not options["dry_run"] and options["executor"] == "local":
        from compress.benchmark.execute.fork_client import start_base

        start_base()


@cli.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--margin", type=float, metavar="POINTS", help="Instead of the run's own.")
def report(out: Path, margin: float | None) -> None:
    """Write the tables and plots of a run anew from what it has measured."""
    from compress.api import rewrite_reports

    _finish(rewrite_reports(out, margin))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.zip",
    help="By default pack.zip in the run's folder.",
)
def pack(run: Path, out: Path | None) -> None:
    """Pack the files of RUN, a run's folder, to be timed on another machine.

    There, numpy and onnxruntime are all that is needed: unpack it and run python time_here.py.
    """
    from compress.api import pack as write

    click.echo(f"Written to {write(run, out)}: the models, some test items, and time_here.py.")
    click.echo("On the other machine: unpack it and run python time_here.py (see its README.txt).")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
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
    for slug, there in results.about["elsewhere"].items():
        machine = there["environment"]
        name, threads = machine["cpu"] or "unnamed processor", machine["threads"]
        click.echo(f"Columns on_{slug}_...: {name}, threads: {threads}, timed {machine['date']}")
    _finish(results)


@cli.command()
@click.argument("place")
@click.option("--clean", is_flag=True, help="Remove damaged entries and leftovers of dead runs.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Not used since.")
@click.option(
    "--keep",
    type=click.FloatRange(min=0),
    metavar="GB",
    help="Remove the least recently used until no more than this is left.",
)
def store(place: str, clean: bool, older_than: float | None, keep: float | None) -> None:
    """Show the size of PLACE, a run's folder or a store, and clean it if that is asked for."""
    from compress.api import clean_store

    click.echo(clean_store(place, clean, older_than, keep))


@cli.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
def check(files: tuple[Path, ...]) -> None:
    """Tell what FILES hold and whether they are safe to read; nothing in them is run.

    ONNX files, weights (.safetensors, .pt) and folders of saved models.
    """
    from compress.benchmark.portable.check import check_file

    for path in files:
        click.echo("\n".join(check_file(path)))


@cli.command(name="list")
@click.argument(
    "what",
    type=click.Choice(["techniques", "losses", "hints", "models", "data", "suites", "columns"]),
)
def list_names(what: str) -> None:
    """List what can be named."""
    found = _known(what)
    for name in found if what == "columns" else sorted(found):
        click.echo(f"{name}\n    {found[name]}")


def _known(what: str) -> dict[str, str]:
    if what in ("techniques", "losses", "hints"):
        from compress.techniques import hints, losses, techniques

        table = {"techniques": techniques, "losses": losses, "hints": hints}[what]
        return {_signature(cls): _first_line(cls) for cls in table().values()}
    if what == "models":
        from compress.zoo.models import MODELS

        return dict(MODELS)
    if what == "data":
        from compress.zoo.data import DATA

        return dict(DATA)
    if what == "columns":
        from compress.results.columns import described

        return described()
    from compress.benchmark.plan.suite import suite_names

    return suite_names()


def _signature(cls: Any) -> str:
    from dataclasses import MISSING

    from compress.parts import settings_of

    shown = [
        item.name if item.default is MISSING else f"{item.name}={item.default!r}"
        for item in settings_of(cls)
    ]
    return f"{cls.name()}({', '.join(shown)})"


def _first_line(cls: Any) -> str:
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def _options(options: dict[str, Any]) -> dict[str, Any]:
    from compress.api import command_line

    return {**options, "command": command_line(sys.argv[1:]), "on_record": _teller()}


def _teller() -> Callable[[Any], None]:
    """Return what writes a line for a finished row, and one more only if its status changes."""
    told: set[tuple[str, int, str]] = set()

    def tell(row: Any) -> None:
        key = (row["chain"], row["seed"], row["status"])
        if key not in told:
            told.add(key)
            _say(row)

    return tell


def _say(row: Any) -> None:
    """Write a row's line, so that a log of a long run shows how far it is."""
    from compress.system.progress import say

    accuracy = row.get("accuracy")
    figures = "" if accuracy is None else f", {100 * accuracy:.2f} %"
    seconds = row.get("seconds")
    took = "" if seconds is None else f", {duration(seconds)}"
    why = f": {row['error']}" if row["error"] else ""
    say(f"{row['chain']} [seed {row['seed']}]: {row['status']}{figures}{took}{why}")


def _finish(results: Any, equivalent: Sequence[str] = ()) -> None:
    click.echo(str(results))
    files = "table.md, results.csv, pareto.png, speedups.png, models/"
    click.echo(f"Written to {results.out}: {files}")
    reasons = [why for chain in equivalent if (why := results.why_not_equivalent(chain))]
    for why in reasons:
        click.echo(f"Not equivalent: {why}.", err=True)
    sys.exit(SOME_ROWS_FAILED if reasons or not results.ok else OK)


def main() -> None:
    """Run the command line; exit with 0 (all rows ok), 1 (some not), 2 (a wrong call)."""
    stopped = []

    def stop(*_: object) -> None:
        stopped.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(cli(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(WRONG_CALL)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(WRONG_CALL)
    except RunStopped as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(SOME_ROWS_FAILED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped. What was finished is kept; run again to go on.", err=True)
        sys.exit(TERMINATED if stopped else INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def command() -> NoReturn:
    """Be the whole process: what `main` does, without tearing down torch, which takes seconds."""
    status = OK
    try:
        main()
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


if __name__ == "__main__":
    command()
