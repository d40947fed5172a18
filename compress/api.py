"""What a Python user calls: `bench` for a suite, `run` for one chain."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import unknown
from compress.harness.bench import Bench
from compress.harness.metric import Function
from compress.harness.plan import make_plan
from compress.harness.record import Record, read_results
from compress.harness.suite import Suite, checked, load_suite
from compress.report.columns import frame
from compress.report.table import text
from compress.report.write import write_reports
from compress.task import Data

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


def bench(
    suite: str | Path | Suite,
    *,
    out: str | Path | None = None,
    data: Data | None = None,
    model: nn.Module | None = None,
    metric: str | Function | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    allow_code: Collection[str | Path] = (),
    progress: bool = True,
    command: str = "",
    on_record: Callable[[Record], None] | None = None,
    **changes: Any,
) -> Results:
    """Run a suite (a built-in name, a TOML file, or a `Suite`) and write its reports to `out`.

    `data` and `model` stand in for what the suite names; `metric` is a further column, a function
    of outputs and targets (numpy arrays) or `FILE.py:NAME`; `changes` override the suite's keys,
    such as `seeds=(0, 1)`. `on_record` is called with every finished row, and again once it is
    compared and timed.
    Raises UserError before any work if something cannot work; a chain that
    fails later is a row with status `failed`.
    """
    chosen = suite if isinstance(suite, Suite) else load_suite(str(suite))
    if foreign := changes.keys() - {item.name for item in fields(Suite)}:
        raise unknown("option", sorted(foreign)[0], [item.name for item in fields(Suite)])
    changes["metric"] = metric if isinstance(metric, str) else None
    chosen = checked(replace(chosen, **{k: v for k, v in changes.items() if v is not None}))
    plan = make_plan(
        chosen,
        data=data,
        model=model,
        metric=None if isinstance(metric, str) else metric,
        data_root=None if data_root is None else Path(data_root),
        device=device,
        allow_code=tuple(Path(path) for path in allow_code),
    )
    folder = Path(out or Path(DEFAULT_OUT) / chosen.name)
    # Called from Python there is no command that gives the table again, so none is named.
    run = Bench(plan, folder, command, progress)
    run.on_record = on_record or run.on_record
    try:
        run.execute()
    finally:
        # Also after Ctrl-C: the finished rows are worth their table.
        results = rewrite_reports(folder)
    return results


def run(
    *,
    chain: str | Sequence[str],
    data: str | Data = "digits",
    model: str | nn.Module = "cnn-small",
    weights: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Results:
    """Measure one chain (or several) beside its baseline; takes the options of `bench` too.

    Unlike `bench` it adds no controls of equal cost, unless `controls=True` asks for them.
    `data` is a name or a `Data` (see `compress.from_arrays`), `model` a name or an
    `nn.Module`, which is taken with the weights it has unless a chain begins with `train(...)`.
    """
    from torch import nn

    chains = (chain,) if isinstance(chain, str) else tuple(chain)
    instance = model if isinstance(model, nn.Module) else None
    suite = Suite(
        name="run",
        data=data if isinstance(data, str) else data.task.name,
        model=model if isinstance(model, str) else type(model).__name__,
        chains=chains,
        weights=weights,
        controls=False,
    )
    return bench(
        suite,
        out=out,
        data=None if isinstance(data, str) else data,
        model=instance,
        **options,
    )


def rewrite_reports(out: str | Path) -> Results:
    """Write the reports of a folder anew from its `results.jsonl`, and return the rows."""
    folder = Path(out)
    records, about = read_results(folder / "results.jsonl")
    rows = [record.row() for record in records]
    write_reports(rows, about, folder)
    return Results(folder, tuple(rows), about)


def pack(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the files of a run and what times them into one zip for another machine.

    Its path is returned, by default `pack.zip` in the run's folder. There, it is unpacked and
    `python time_here.py` needs numpy and onnxruntime alone; `merge` brings back what it writes.
    """
    from compress.harness.pack import pack as write

    return write(Path(run), None if out is None else Path(out))


def merge(run: str | Path, files: str | Path | Sequence[str | Path]) -> Results:
    """Add what `time_here.py` has written on other machines to a run, and write its reports anew.

    The rows gain columns `on_<machine>_<setting>_<figure>`. Raises UserError, and changes
    nothing, if a file is not about the files of this run.
    """
    from compress.harness.merge import merge as add

    given = [files] if isinstance(files, str | Path) else files
    add(Path(run), [Path(file) for file in given])
    return rewrite_reports(run)


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as it can be typed again."""
    return shlex.join(["compress-models", *arguments])
