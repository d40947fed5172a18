"""What a Python user calls: `bench` for a suite, `run` for one chain."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.benchmark.execute.fork_client import start_base
from compress.benchmark.execute.local_executor import handed_over
from compress.benchmark.execute.ray_executor import executor_named
from compress.benchmark.execute.run_spec import Limits
from compress.benchmark.plan.metric import Function
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.rows import row_text
from compress.benchmark.plan.suite import (
    Named,
    NamedTeacher,
    Suite,
    check_margin,
    checked,
    load_suite,
)
from compress.benchmark.run import STORE, RunOptions, run_plan
from compress.errors import UserError, unknown
from compress.results.derive import read_results
from compress.results.record import BASELINE, Record
from compress.results.seeds import why_not_equivalent
from compress.results.table import Row, frame
from compress.system import amounts
from compress.system.progress import showing, stage
from compress.tasks import task_options
from compress.tasks.base import Data

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from compress.recommender.question import Found

DEFAULT_OUT = "compress-out"
DECIDED_BY_SEARCHES = frozenset(
    ("seeds", "timings", "controls", "margin", "require_equivalent", "fresh", "chain", "chains")
) | {"name", "splits", "suite"}
"""Options of `bench` that `recommend` has no use for."""
FOR_ONE_RUN = ("on_record", "fresh", "trials")
"""Options that a search which is taken up again does not have by itself."""


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
        return frame(self.rows, self.about)

    def equivalent(self, chain: str) -> bool:
        """Whether a chain's accuracy is better than the baseline's, or equivalent to it.

        Equivalent: it was shown to lose less than the margin of the run, over all its seeds.
        """
        return not self.why_not_equivalent(chain)

    def why_not_equivalent(self, chain: str) -> str:
        """Return why a chain is not `equivalent`, a sentence; '' if it is."""
        known = dict.fromkeys(row["chain"] for row in self.rows)
        chain = known_chain(chain, str(self.about.get("baseline", "")), known)
        return why_not_equivalent(self.rows, self.about, chain)

    def __str__(self) -> str:
        from compress.report.table import text

        return text(self.rows, self.about)


def known_chain(chain: str, baseline: str, known: Iterable[str]) -> str:
    """Return the text of a chain's row; raise UserError if none of the known rows has it."""
    chain = row_text(chain, baseline)
    chains = [name for name in known if name != BASELINE]
    if chain not in chains:
        raise unknown("chain", chain, chains)
    return chain


def prepare(
    suite: str | Path | Suite,
    *,
    out: str | Path | None = None,
    data: Data | None = None,
    model: nn.Module | None = None,
    metric: str | Function | None = None,
    teachers: Mapping[str, nn.Module | tuple[str, str]] | None = None,
    students: Mapping[str, tuple[str, str]] | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    allow_code: Collection[str | Path] = (),
    store: str | Path | None = None,
    fresh: bool = False,
    step_timeout: float | None = None,
    step_memory: float | None = None,
    step_threads: int | None = None,
    pixel_cache: float | None = None,
    executor: str = "local",
    progress: bool = True,
    command: str = "",
    on_record: Callable[[Row], None] = lambda row: None,
    require_equivalent: Sequence[str] = (),
    **changes: Any,
) -> tuple[Plan, Path, RunOptions]:
    """Return a suite's plan, the folder of its outputs, and how to run it; compute nothing.

    Options as in `bench`.
    """
    limits = _limits(step_timeout, step_memory, pixel_cache)
    factory = executor_named(executor)
    chosen = suite if isinstance(suite, Suite) else load_suite(str(suite))
    known = [*(item.name for item in fields(Suite)), *task_options()]
    if foreign := changes.keys() - set(known):
        raise unknown("option", min(foreign), known)
    options = {
        key: value for key in task_options() if (value := changes.pop(key, None)) is not None
    }
    modules, named = _teachers(teachers or {})
    changes |= {
        "options": {**chosen.options, **options},
        "metric": metric if isinstance(metric, str) else None,
        "teachers": {**chosen.teachers, **named},
        "students": {**chosen.students, **_students(students or {})},
    }
    chosen = checked(replace(chosen, **{k: v for k, v in changes.items() if v is not None}))
    root = None if data_root is None else Path(data_root)
    folder = Path(out or Path(DEFAULT_OUT) / chosen.name)
    writes = {"--out": folder}
    if store is not None and "://" not in str(store):
        writes["--store"] = Path(store)
    plan = make_plan(
        chosen,
        data=data,
        model=model,
        metric=None if isinstance(metric, str) else metric,
        teachers=modules,
        data_root=root,
        device=device,
        allow_code=tuple(map(Path, allow_code)),
        step_threads=step_threads,
        writes=writes,
    )
    if plan.ranks > 1 and (executor != "local" or handed_over(plan)[1]):
        plan = replace(plan, ranks=1)  # only processes that we fork share a training
    for chain in require_equivalent:
        known_chain(chain, plan.origin, (row.text for row in plan.rows))
    how = RunOptions(limits, store, fresh, root, factory, command, progress, on_record)
    return plan, folder, how


def _students(students: Mapping[str, tuple[str, str]]) -> dict[str, Named]:
    """Return students as a suite names them."""
    for name, given in students.items():
        if not (isinstance(given, tuple | list) and len(given) == 2):
            raise UserError(
                f"student {name!r} is a model's name and a file of its weights, such as "
                f"('resnet20', 'best.safetensors'); not {given!r:.100}"
            )
    return {name: Named(*given) for name, given in students.items()}


def _limits(
    step_timeout: float | None, step_memory: float | None, pixel_cache: float | None
) -> Limits:
    """Return the limits of a run, in seconds and gigabytes; where None is given, the usual ones."""
    if step_memory is not None and not 0 < step_memory < float("inf"):
        raise UserError(f"step_memory must be positive and finite, not {step_memory}")
    if pixel_cache is not None and not 0 <= pixel_cache < float("inf"):
        raise UserError(
            f"pixel_cache is a finite number of gigabytes, 0 or more, not {pixel_cache}"
        )
    memory = None if step_memory is None else int(step_memory * 1e9)
    pixels = None if pixel_cache is None else int(pixel_cache * 1e9)
    usual = Limits(memory=memory, pixels=pixels)
    return usual if step_timeout is None else replace(usual, seconds=step_timeout)


def _teachers(
    teachers: Mapping[str, nn.Module | tuple[str, str]],
) -> tuple[dict[str, nn.Module], dict[str, NamedTeacher]]:
    """Return those of the teachers that are modules, and all of them as a suite names them."""
    from torch import nn

    modules, named = {}, {}
    for name, teacher in teachers.items():
        match teacher:
            case nn.Module():
                modules[name], named[name] = teacher, NamedTeacher(type(teacher).__name__)
            case [str(model), str(weights)]:
                named[name] = NamedTeacher(model, weights)
            case _:
                raise UserError(
                    f"teacher {name!r} is an nn.Module, or a model's name and a file of its "
                    f"weights, such as ('resnet56', 'best.safetensors'); not {teacher!r:.100}"
                )
    return modules, named


def bench(suite: str | Path | Suite, **options: Any) -> Results:
    """Run a suite (a built-in name, a TOML file, or a `Suite`) and write its reports to `out`.

    Options, by keyword:

    - `out`: the folder of all outputs.
    - `data` and `model`: a `Data` and an `nn.Module` in place of what the suite names. `metric`: a
      further column, a function of outputs and targets (numpy arrays) or `FILE.py:NAME`.
    - `teachers`: name -> an `nn.Module`, or a model's name and a file of its weights, for
      `distill(teacher='NAME')`. `students`: name -> a model's name and a file of its weights, for
      `distill(student='NAME')`; weights for other classes get a new head.
    - `data_root`, `device` (auto, cpu or cuda), `allow_code` (files of yours that may run).
    - Every step runs in a process of its own, which may take `step_timeout` seconds and
      `step_memory` gigabytes; it computes on `step_threads` CPU threads (default: all).
    - Results of steps are stored in `store` (a folder, or a URL for fsspec; by default `.steps`
      in `out`) and not computed again, unless `fresh=True`. Decoded images lie there too: at most
      `pixel_cache` gigabytes (0: none), by default half of the room that is free on the disk.
    - `executor`: 'local', or 'ray' for a Ray cluster.
    - `progress`: on standard error, what is being done and for how long: lines in a log, one that
      changes on a terminal. `on_record` is called with every finished row (a dict by column, see
      `compress-models list columns`), and again once it is compared and timed.
    - `require_equivalent`: chains that the suite must have, else they are refused now; whether
      they are equivalent to the baseline is a question to `Results.equivalent`.
    - Every key of suites, such as `seeds=(0, 1)`, overrides the suite's.

    Raises UserError before any work if something cannot work; a chain that fails later is a row
    with status `failed`. Raises RunStopped if the disk is full; what was finished is kept.
    """
    if options.get("executor", "local") == "local":
        start_base()  # while this process makes the plan
    with showing(options.get("progress", True)):
        plan, out, run_options = prepare(suite, **options)
        try:
            run_plan(plan, out, run_options)
        except BaseException:
            # Also after Ctrl-C or on a full disk: the finished rows are worth their table.
            with contextlib.suppress(OSError, UserError):
                rewrite_reports(out)
            raise
        results = rewrite_reports(out)
    for row in results.rows:
        run_options.on_record(row)
    return results


def preview(suite: str | Path | Suite | None = None, **options: Any) -> str:
    """Return what `bench` would do: every step once, what is done, and an estimate of the rest.

    Without a suite, what `run` would do with these options.
    """
    from compress.benchmark.plan.preview import preview as show

    if suite is None:
        suite, options = _suite_of(**options)
    with showing(options.get("progress", True)):
        plan, out, run_options = prepare(suite, **options)
    return show(plan, run_options.store_of(out), run_options.fresh)


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
    chain: str | Sequence[str] | None = None,
    data: str | Data = "digits",
    model: str | nn.Module = "cnn-small",
    weights: str | None = None,
    **options: Any,
) -> tuple[Suite, dict[str, Any]]:
    """Return the suite of `run`'s options, and the options of `bench`."""
    from torch import nn

    if chain is None:
        raise UserError("no chain is given: write chain='quantize()', or a sequence of chains")
    suite = Suite(
        name="run",
        data=data if isinstance(data, str) else data.task.name,
        model=model if isinstance(model, str) else type(model).__name__,
        chains=(chain,) if isinstance(chain, str) else tuple(chain),
        weights=weights,
        controls=False,
    )
    options["data"] = None if isinstance(data, str) else data
    options["model"] = model if isinstance(model, nn.Module) else None
    return suite, options


def recommend(
    out: str | Path | None = None,
    *,
    budget: float | str,
    data: str | Data | None = None,
    model: str | nn.Module | None = None,
    weights: str | None = None,
    baseline: str | None = None,
    max_drop: float | None = None,
    target_ms: float | None = None,
    by: str | None = None,
    space: str | Path | None = None,
    only: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    trials: int | None = None,
    like: Sequence[str | Path] = (),
    seed: int | None = None,
    since: float | None = None,
    **options: Any,
) -> Found:
    """Search for a chain: the cheapest within a loss of accuracy, or the best within a latency.

    - `budget`: seconds, or a text such as '2h'. It is kept, from this call on, or `since` a time by
      `time.monotonic()`; the best file so far is always at the top of `out`.
    - `data`, `model` and `weights` or `baseline` as in `bench`. Without them, the search in `out`
      goes on, with what it was called with.
    - `max_drop`: points of accuracy that may be lost (by default 1), shown by a test of equivalence
      on the test split, which the search itself does not see; or `target_ms`: milliseconds that an
      item may take (median), and what is sought is accuracy.
    - `by`: what is made small: 'latency' (default), 'size', 'macs' or 'params'.
    - `space`: a TOML file of techniques and values to try; `only` and `without`: techniques.
    - `trials`: at most so many, those of earlier runs included; a search that goes on is given it
      anew. `like`: folders of searches on models like this one, whose best
      draws come first. `seed`: of the sampler and of all steps.
    - Options of `bench` about devices, limits, code, stores and executors, and keys of suites.

    Raises UserError before any work if something cannot work.
    """
    since = time.monotonic() if since is None else since
    from compress.recommender.arguments import (
        asked,
        folder_of,
        keep_space,
        names_of,
        recalled,
        remembered,
        search_in,
        seconds_of,
    )

    if unknown_here := sorted(DECIDED_BY_SEARCHES & options.keys()):
        raise UserError(f"recommend takes no {', '.join(unknown_here)}: the search decides that")
    folder, seconds = folder_of(out or Path(DEFAULT_OUT) / "recommend"), seconds_of(budget)
    given = {
        "data": data,
        "model": model,
        "weights": weights,
        "baseline": baseline,
        "max_drop": max_drop,
        "target_ms": target_ms,
        "by": by,
        "space": space,
        "only": names_of("only", only) or None,
        "without": names_of("without", without) or None,
        "trials": trials,
        "like": tuple(map(search_in, names_of("like", like))) or None,
        "seed": seed,
        **options,
    }
    if data is None or model is None:
        given = recalled(folder, given)
    if options.get("executor", "local") == "local":
        start_base()
    shown = given.pop("progress", True)
    kept = remembered({k: v for k, v in given.items() if k not in FOR_ONE_RUN})
    with showing(shown):
        suite, request, others = asked(given)
        plan, _, how = prepare(suite, out=folder, progress=shown, **others)
        from compress.recommender.search import search

        request = replace(request, budget=seconds, since=since, arguments=kept)
        return search(plan, folder, request, how, partial(keep_space, given, folder))


def rewrite_reports(out: str | Path, margin: float | None = None) -> Results:
    """Write the reports of a folder anew from what its run wrote down, and return the results.

    `margin` (points of accuracy) takes the place of the run's own. Raises UserError where a copy
    of a folder lacks what figures are derived from: the reports there would lose them.
    """
    # Only now: drawing imports for a second, which no first row should wait for.
    from compress.report.curves import curve_rows
    from compress.report.write import write_reports

    folder = Path(out)
    if margin is not None:
        check_margin(margin)
    with stage(f"writing the reports to {folder}"):
        results = read_results(folder, margin)
        _check_answers(folder, results.records)
        epochs = curve_rows((record.chain, record.seed, record.log) for record in results.records)
        write_reports(results.rows, results.about, folder, epochs)
    return Results(folder, results.rows, results.about)


def _check_answers(folder: Path, records: Sequence[Record]) -> None:
    """Refuse a copy of a run's folder from which the answers were left out, all of them."""
    answers = [record.files["answers"] for record in records if "answers" in record.files]
    if answers and not any((folder / place).exists() for place in answers):
        raise UserError(
            f"{folder} has none of its run's answers ({answers[0]}, ...), from which accuracy is "
            f"derived: its reports stay as they are. Copy raw/ there, too"
        )


def clean_store(
    place: str | Path,
    clean: bool = False,
    older_than: float | None = None,
    keep: float | None = None,
) -> str:
    """Clean a store where an option says so, and return its size in words, decoded images apart.

    `place` is a store's folder, or that of a run. `clean` removes damaged entries and leftovers;
    `older_than` (days) also entries not used since; `keep` (gigabytes) the least recently used
    ones until no more is left.
    """
    from compress.benchmark.store.store import Store

    if "://" in str(place):
        raise UserError(
            f"{place} is an object store, whose own tools show its size and expire what is old; "
            f"any entry (a folder named by a hash) may be removed, and is then computed again"
        )
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"there is no folder {place}")
    folder = folder / STORE if (folder / STORE).is_dir() else folder
    store, removed = Store(folder), ""
    if clean or older_than is not None or keep is not None:
        seconds = None if older_than is None else older_than * 86_400
        count, freed = store.clean(seconds, None if keep is None else int(keep * 1e9))
        entries = "1 entry" if count == 1 else f"{count:,} entries"
        removed = f"Removed {entries}; {amounts.size(freed)} are free again.\n"
    count, size = store.size()
    text = f"{removed}{folder}: {amounts.plural(count, 'result')}, {amounts.size(size)} in all"
    images, taken = store.images()
    if images or taken:
        text += f"\nof these, {images:,} decoded images: {amounts.size(taken)}"
    return text


def pack(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the files of a run and what times them into one zip for another machine.

    Its path is returned, by default `pack.zip` in the run's folder. There, it is unpacked and
    `python time_here.py` needs numpy and onnxruntime alone; `merge` brings back what it writes.
    """
    from compress.benchmark.portable.pack import pack as write

    return write(Path(run), None if out is None else Path(out))


def merge(run: str | Path, files: str | Path | Sequence[str | Path], name: str = "") -> Results:
    """Add what `time_here.py` has written on other machines to a run, and write its reports anew.

    The rows gain columns `on_<machine>_<setting>_<figure>`. `name` names the machine of a single
    file; else it is called by its processor and threads. Raises UserError, and changes nothing, if
    a file is not about the files of this run, or if two are of machines that are alike.
    """
    from compress.benchmark.portable.merge import merge as add

    several = [files] if isinstance(files, str | Path) else files
    _check_answers(Path(run), read_results(Path(run)).records)
    add(Path(run), [Path(file) for file in several], name)
    return rewrite_reports(run)
