"""A run: its stages one after another, from a plan to records of what was measured.

Build every row's model and measure it alone; then measure the memory of all files, time them
beside one another, and time them on the GPU. Each stage takes the records so far and returns those
that have gained something; reports are made of what `results.jsonl` holds (`compress.api`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.benchmark.execute.executor import Executor, ExecutorFactory, GpuJob, Outcome
from compress.benchmark.execute.job import record_of
from compress.benchmark.execute.local_executor import local_executor
from compress.benchmark.execute.run_spec import Limits, Stores, spec_of
from compress.benchmark.execute.schedule import Schedule
from compress.benchmark.measure.gpu import FOUND, RECORDS
from compress.benchmark.measure.gpu import time_on_gpu as time_on_gpu_here
from compress.benchmark.measure.latency import CHECKPOINT, memory_records, time_records
from compress.benchmark.plan.graph import ChainRun, Graph, make_graph
from compress.benchmark.plan.plan import Plan
from compress.benchmark.plan.provenance import about
from compress.benchmark.plan.teachers import judged_teachers, judged_weights
from compress.benchmark.store.outputs import Outputs
from compress.benchmark.store.store import Entry
from compress.errors import RunStopped, UserError
from compress.results.derive import row_alone
from compress.results.log import RunLog, Stage
from compress.results.record import Key, Record
from compress.results.timed import GPU
from compress.system.cuda import Cuda
from compress.system.files import write_json
from compress.system.progress import say, stage

STORE = ".steps"
LITTLE = 64 * 2**20
"""Bytes: with less than this left on the store's disk a run cannot go on."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out: what it computes does not depend on it."""

    limits: Limits = field(default_factory=Limits)
    store: str | Path | None = None
    """A folder or a URL; by default `.steps` in the run's folder."""
    fresh: bool = False
    """Whether to forget what the store has of this run, and compute all of it again."""
    data_root: Path | None = None
    executor: ExecutorFactory = local_executor
    command: str = ""
    """The command line that repeats the run; a run from Python has none."""
    progress: bool = True
    on_record: Callable[[Mapping[str, Any]], None] = lambda row: None
    """Called with the columns of every row, without comparisons, when it is finished."""
    private: Path | None = None
    """Where results lie that mean nothing to other processes; by default for this run alone."""

    def store_of(self, out: Path) -> str | Path:
        """Return where a run in a folder keeps results of steps."""
        return self.store or (out / STORE).resolve()


@dataclass(frozen=True)
class RunRecords:
    """The records of a run so far, written to its log as they come."""

    log: RunLog
    folder: Path
    on_record: Callable[[Mapping[str, Any]], None]
    by_key: dict[Key, Record] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take a row's record, or what it has gained."""
        self.by_key[record.key] = record
        self.log.record(record)

    def finish(self, record: Record) -> None:
        """Add the record of a finished row, and report the row."""
        self.add(record)
        self.on_record(row_alone(record, self.folder))


def run_plan(plan: Plan, out: Path, options: RunOptions | None = None) -> list[Record]:
    """Run every chain and seed of a plan, and measure what they make beside the baseline.

    Raises RunStopped where the disk is full; what was finished is kept.
    """
    options = options or RunOptions()
    outputs = Outputs(out, plan.suite.seeds)
    with stopped_by_a_full_disk(out), outputs.lock:
        _check_writable(options.store_of(out))
        with outputs.scratch() as scratch:
            return _run_stages(plan, outputs, options, Path(scratch))


@contextlib.contextmanager
def stopped_by_a_full_disk(out: Path) -> Iterator[None]:
    """Raise RunStopped, with what to do, where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunStopped(
            f"the disk is full ({error.strerror}), so the run in {out} stopped. What was "
            f"finished is kept: free some space and run again"
        ) from error


def _run_stages(plan: Plan, outputs: Outputs, options: RunOptions, scratch: Path) -> list[Record]:
    graph = make_graph(plan)
    spec = spec_of(
        plan,
        graph.setting,
        options.store_of(outputs.folder),
        (options.private or scratch / "private").resolve(),
        limits=options.limits,
        data_root=options.data_root,
        since=time.time() if options.fresh else 0.0,
        progress=options.progress,
    )
    stores = spec.stores
    unsaved = spec.keep_pixels(plan)
    if unsaved and options.progress:
        say(unsaved)
    if options.fresh:
        forget(graph, stores, outputs)
    with contextlib.closing(options.executor(plan, spec, outputs.logs, scratch)) as executor:
        order = [[row.text, seed] for seed in plan.suite.seeds for row in plan.rows]
        description = about(plan, options.command)
        description |= {"order": order, "isolation": executor.about}
        judged = [*judged_weights(plan), *judged_teachers(plan)]
        for sentence in judged if options.progress else ():
            say(sentence)
        description["notes"] += filter(None, [unsaved, *judged])
        log = RunLog(outputs.folder / "results.jsonl", description)
        records = RunRecords(log, outputs.folder, options.on_record)
        with spec.decoding_ahead(plan):
            build_rows(graph, stores, outputs, executor, records)
        for record in memory_records(records.by_key, plan, outputs):
            records.add(record)
        deviating: list[Record] = []
        collector = executor.collect_timings
        for timed, found in time_records(records.by_key, plan, outputs, collector):
            for record in found:
                records.finish(record)
            # Last: without this line the seconds count for nothing, with it all of them do.
            log.timings(timed)
            deviating += found
        for record in deviating:  # when no further runtime needs their files
            outputs.withdraw(record)
        log.timings(time_on_gpu(records.by_key, plan, outputs, executor, scratch))
    return list(records.by_key.values())


def forget(graph: Graph, stores: Stores, outputs: Outputs) -> None:
    """Remove a run's results from the stores, except what another run computes or reads now."""
    for node in graph.nodes.values():
        store = stores.of(node)
        with store.claim(node.key) as mine:
            if mine:
                store.drop(node.key)
    for checkpoint in (outputs.folder / "raw").glob(CHECKPOINT.format("*")):
        checkpoint.unlink(missing_ok=True)


def build_rows(
    graph: Graph, stores: Stores, outputs: Outputs, executor: Executor, records: RunRecords
) -> None:
    """Make and measure the model of every row and seed; add each record when it is finished."""

    def end(chain_run: ChainRun, entry: Entry | None, outcome: Outcome) -> None:
        records.finish(row_record(chain_run, entry, outcome, outputs))
        rows.advance()
        folder = stores.shared.folder
        if "No space left" in outcome.error and shutil.disk_usage(folder).free < LITTLE:
            raise OSError(errno.ENOSPC, outcome.error)

    def name(chain_run: ChainRun) -> str:
        return outputs.model(*chain_run.key).name

    with stage("", len(graph.chain_runs), "rows", heading=True) as rows:
        Schedule(graph, stores, executor, end, name).run()


def row_record(
    chain_run: ChainRun, entry: Entry | None, outcome: Outcome, outputs: Outputs
) -> Record:
    """Make the record of a row of what was measured, or of what went wrong; publish its files."""
    row = chain_run.row
    if entry is None:
        record = Record(*chain_run.key, "failed", error=outcome.error, log=outcome.step_log)
    else:
        record = outputs.publish(entry.folder, record_of(entry))
        if row.uncontrolled:
            reason = {"control_verdict": row.uncontrolled}
            record = replace(record, missing={**record.missing, **reason})
    return replace(record, role=row.role, control=row.control, steps=row.steps)


def time_on_gpu(
    records: Mapping[Key, Record], plan: Plan, outputs: Outputs, executor: Executor, scratch: Path
) -> Stage:
    """Time modules and files on the GPU, in a process of its own where there is a GPU to break.

    Returns where the facts lie, or why there are none.
    """
    if Cuda().absent():
        return time_on_gpu_here(records, plan, outputs, {})
    folder = scratch / "gpu"
    folder.mkdir(exist_ok=True)
    request = {"out": str(outputs.folder.resolve()), "records": list(map(asdict, records.values()))}
    write_json(folder / RECORDS, request)
    outcome = executor.run_gpu_stage(GpuJob(str(folder.resolve())))
    if not outcome.ok:
        return Stage(runtime=GPU, reason=f"the timing on the GPU ended early: {outcome.error}")
    return Stage.from_json(json.loads((folder / FOUND).read_text()))


def _check_writable(place: str | Path) -> None:
    """Refuse a folder as a store that nothing can be written to, before any work."""
    if "://" in str(place):
        return
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the store {place}: {error.strerror}") from error
