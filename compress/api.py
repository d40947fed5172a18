"""What a Python user calls: `bench` for a suite, `run` for one chain."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import amounts
from compress.bench.execute.fork_client import early
from compress.bench.execute.limits import Limits
from compress.bench.execute.ray_executor import executor_named
from compress.bench.plan.metric import Function
from compress.bench.plan.plan import make_plan
from compress.bench.plan.suite import Named, Suite, checked, load_suite
from compress.bench.run import STORE, Bench, RunOptions
from compress.errors import UserError, unknown
from compress.report.columns import frame
from compress.report.curves import curve_rows
from compress.report.table import text
from compress.report.write import write_reports
from compress.results.record import Record, read_results
from compress.results.recover import judge
from compress.tasks.base import Data

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

DEFAULT_OUT = "compress-out"


@dataclass(frozen=True)
class Results:
    """The rows of a run, and the folder where its files lie."""

    out: Path
    rows: tuple[dict[str, Any], ...]
    about: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether every row is `ok`."""
        return bool(self.rows) and all(row["status"] == "ok" for row in self.rows)

    @property
    def frame(self) -> pd.DataFrame:
        """The table as a data frame, with the columns of `results.csv`."""
        return frame(self.rows)

    def __str__(self) -> str:
        return text(self.rows, self.about)


def prepare(
    suite: str | Path | Suite,
    *,
    out: str | Path | None = None,
    data: Data | None = None,
    model: nn.Module | None = None,
    metric: str | Function | None = None,
    teachers: Mapping[str, nn.Module | tuple[str, str]] | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    allow_code: Collection[str | Path] = (),
    store: str | Path | None = None,
    fresh: bool = False,
    step_timeout: float | None = None,
    step_memory: float | None = None,
    step_threads: int | None = None,
    executor: str = "local",
    progress: bool = True,
    command: str = "",
    on_record: Callable[[Record], None] = lambda record: None,
    **changes: Any,
) -> Bench:
    """Return a run of a suite, everything looked up and nothing computed. Options as in `bench`."""
    given: dict[str, Any] = {} if step_timeout is None else {"seconds": step_timeout}
    if step_memory is not None:
        if not 0 < step_memory < float("inf"):
            raise UserError(f"step_memory must be positive and finite, not {step_memory}")
        given["memory"] = int(step_memory * 1e9)
    root = None if data_root is None else Path(data_root)
    run_options = RunOptions(Limits(**given), store, fresh, root, executor_named(executor))
    chosen = suite if isinstance(suite, Suite) else load_suite(str(suite))
    if foreign := changes.keys() - {item.name for item in fields(Suite)}:
        raise unknown("option", sorted(foreign)[0], [item.name for item in fields(Suite)])
    changes["metric"] = metric if isinstance(metric, str) else None
    own, named = _teachers(teachers or {})
    changes["teachers"] = {**chosen.teachers, **named}
    chosen = checked(replace(chosen, **{k: v for k, v in changes.items() if v is not None}))
    plan = make_plan(
        chosen,
        data=data,
        model=model,
        metric=None if isinstance(metric, str) else metric,
        teachers=own,
        data_root=root,
        device=device,
        allow_code=tuple(Path(path) for path in allow_code),
        step_threads=step_threads,
    )
    folder = Path(out or Path(DEFAULT_OUT) / chosen.name)
    # Called from Python there is no command that gives the table again, so none is named.
    return Bench(plan, folder, command, progress, on_record, run_options)


def _teachers(
    given: Mapping[str, nn.Module | tuple[str, str]],
) -> tuple[dict[str, nn.Module], dict[str, Named]]:
    """Return those of the teachers that are modules, and what a suite says of all of them."""
    from torch import nn

    own, named = {}, {}
    for name, teacher in given.items():
        if isinstance(teacher, nn.Module):
            own[name], named[name] = teacher, Named(type(teacher).__name__)
        elif (
            isinstance(teacher, tuple | list)
            and len(teacher) == 2
            and all(isinstance(text, str) for text in teacher)
        ):
            named[name] = Named(*teacher)
        else:
            raise UserError(
                f"teacher {name!r} is an nn.Module, or a model's name and a file of its weights, "
                f"such as ('resnet56', 'best.safetensors'); not {teacher!r:.100}"
            )
    return own, named


def bench(suite: str | Path | Suite, **options: Any) -> Results:
    """Run a suite (a built-in name, a TOML file, or a `Suite`) and write its reports to `out`.

    Options, by keyword:

    - `out`: the folder of all outputs.
    - `data` and `model`: a `Data` and an `nn.Module` in place of what the suite names. `metric`: a
      further column, a function of outputs and targets (numpy arrays) or `FILE.py:NAME`.
    - `teachers`: name -> an `nn.Module`, or a model's name and a file of its weights, for
      `distill(teacher='NAME')`.
    - `data_root`, `device` (auto, cpu or cuda), `allow_code` (files of yours that may run).
    - Every step runs in a process of its own, which may take `step_timeout` seconds and
      `step_memory` gigabytes; it computes on `step_threads` CPU threads (default: all).
    - What steps make is kept in `store` (a folder, or a URL for fsspec; by default `.steps` in
      `out`) and not computed again, unless `fresh=True` asks for that.
    - `executor`: 'local', or 'ray' for a Ray cluster.
    - `progress`: bars on a terminal. `on_record` is called with every finished row, and again
      once it is compared and timed.
    - What is a key of suites overrides the suite's, such as `seeds=(0, 1)`.

    Raises UserError before any work if something cannot work; a chain that fails later is a row
    with status `failed`. Raises RunStopped if the disk is full; what was finished is kept.
    """
    if options.get("executor", "local") == "local":
        early()  # while this process makes the plan
    run = prepare(suite, **options)
    try:
        run.execute()
    except BaseException:
        # Also after Ctrl-C or on a full disk: the finished rows are worth their table.
        with contextlib.suppress(OSError, UserError):
            rewrite_reports(run.out)
        raise
    return rewrite_reports(run.out)


def preview(suite: str | Path | Suite | None = None, **options: Any) -> str:
    """Return what `bench` would do: every step once, what is done, and an estimate of the rest.

    Without a suite, what `run` would do with these options.
    """
    from compress.bench.plan.preview import preview as show

    if suite is None:
        suite, options = _suite_of(**options)
    planned = prepare(suite, **options)
    return show(planned.plan, planned.place, planned.run_options.fresh)


def run(**options: Any) -> Results:
    """Measure one chain (or several) beside its baseline.

    - `chain`: a text, or a sequence of them.
    - `data`: a name or a `Data` (see `compress.from_arrays`); by default 'digits'.
    - `model`: a name or an `nn.Module`, which is taken with the weights it has unless a chain
      begins with `train(...)`; by default 'cnn-small'. `weights`: a file of its weights.
    - `out`, and every other option of `bench`.

    Unlike `bench` it adds no controls of equal cost, unless `controls=True` asks for them.
    """
    suite, others = _suite_of(**options)
    return bench(suite, **others)


def _suite_of(
    *,
    chain: str | Sequence[str],
    data: str | Data = "digits",
    model: str | nn.Module = "cnn-small",
    weights: str | None = None,
    **options: Any,
) -> tuple[Suite, dict[str, Any]]:
    """Return the suite of `run`'s options, and the options of `bench`."""
    from torch import nn

    chains = (chain,) if isinstance(chain, str) else tuple(chain)
    suite = Suite(
        name="run",
        data=data if isinstance(data, str) else data.task.name,
        model=model if isinstance(model, str) else type(model).__name__,
        chains=chains,
        weights=weights,
        controls=False,
    )
    given = {
        "data": None if isinstance(data, str) else data,
        "model": model if isinstance(model, nn.Module) else None,
    }
    return suite, {**options, **given}


def rewrite_reports(out: str | Path) -> Results:
    """Write the reports of a folder anew from its `results.jsonl`, and return the rows.

    Rows of a run that was killed before it had compared them are compared first.
    """
    folder = Path(out)
    judge(folder)
    records, about = read_results(folder / "results.jsonl")
    rows = [record.row() for record in records]
    epochs = curve_rows((record.chain, record.seed, record.step_log) for record in records)
    write_reports(rows, about, folder, epochs)
    return Results(folder, tuple(rows), about)


def clean_store(
    place: str | Path,
    clean: bool = False,
    older_than: float | None = None,
    keep: float | None = None,
) -> str:
    """Return the size of a store in words; clean it before if that is asked for.

    `place` is a store's folder, or that of a run. `clean` removes damaged entries and leftovers;
    `older_than` (days) also entries not used since; `keep` (gigabytes) the least recently used
    ones until no more is left.
    """
    from compress.bench.store.store import Store

    if "://" in str(place):
        raise UserError(
            f"{place} is an object store, whose own tools show its size and expire what is old; "
            f"any entry (a folder named by a hash) may be removed, and is then computed again"
        )
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"there is no folder {place}")
    folder = folder / STORE if (folder / STORE).is_dir() else folder
    store, told = Store(folder), ""
    if clean or older_than is not None or keep is not None:
        days = None if older_than is None else older_than * 86_400
        count, freed = store.clean(days, None if keep is None else int(keep * 1e9))
        told = f"Removed {count} results; {amounts.size(freed)} are free again.\n"
    count, size = store.size()
    return f"{told}{folder}: {count} results, {amounts.size(size)}"


def pack(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the files of a run and what times them into one zip for another machine.

    Its path is returned, by default `pack.zip` in the run's folder. There, it is unpacked and
    `python time_here.py` needs numpy and onnxruntime alone; `merge` brings back what it writes.
    """
    from compress.bench.portable.pack import pack as write

    return write(Path(run), None if out is None else Path(out))


def merge(run: str | Path, files: str | Path | Sequence[str | Path], name: str = "") -> Results:
    """Add what `time_here.py` has written on other machines to a run, and write its reports anew.

    The rows gain columns `on_<machine>_<setting>_<figure>`. `name` names the machine of a single
    file; else it is called by its processor and threads. Raises UserError, and changes nothing, if
    a file is not about the files of this run, or if two are of machines that are alike.
    """
    from compress.bench.portable.merge import merge as add

    given = [files] if isinstance(files, str | Path) else files
    add(Path(run), [Path(file) for file in given], name)
    return rewrite_reports(run)


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as it can be typed again."""
    return shlex.join(["compress-models", *arguments])
