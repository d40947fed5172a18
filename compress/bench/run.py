"""The harness: runs a plan, measures every file beside the baseline's, writes every row."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from compress.bench.execute.job import Job, Outcome, Stores, record_of
from compress.bench.execute.limits import Limits
from compress.bench.execute.local_executor import Site, executor_for, recipe_of
from compress.bench.execute.schedule import Executor, Schedule
from compress.bench.measure.gpu import FOUND, RECORDS, time_on_gpu
from compress.bench.measure.latency import KEPT, time_records
from compress.bench.measure.memory import memory_records
from compress.bench.plan.graph import ChainRun, Graph, make_graph
from compress.bench.plan.plan import Plan
from compress.bench.plan.provenance import about
from compress.bench.store.outputs import Outputs
from compress.bench.store.store import Entry
from compress.errors import RunStopped, UserError
from compress.results.derive import row_alone
from compress.results.log import RunLog, Stage
from compress.results.record import Key, Record
from compress.results.timed import GPU
from compress.system.cuda import Cuda
from compress.system.files import write_json
from compress.system.progress import bar

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
    executor: Callable[[Site, Limits], Executor] = executor_for


@dataclass
class Bench:
    """One run of a plan, with its folder of outputs."""

    plan: Plan
    out: Path
    command: str = ""
    progress: bool = True
    on_record: Callable[[Mapping[str, Any]], None] = lambda row: None
    run_options: RunOptions = field(default_factory=RunOptions)
    records: dict[Key, Record] = field(default_factory=dict)

    @property
    def place(self) -> str | Path:
        """Where results of steps are kept."""
        return self.run_options.store or (self.out / STORE).resolve()

    def execute(self) -> list[Record]:
        """Run every chain and seed, then time all files together.

        Raises RunStopped where the disk is full; what was finished is kept.
        """
        self.outputs = Outputs(self.out, self.plan.suite.seeds)
        with self.outputs.lock, _disk_may_be_full(self.out):
            _check_writable(self.place)
            scratch = self.outputs.scratch()
            try:
                self._execute(scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return list(self.records.values())

    def _execute(self, scratch: Path) -> None:
        graph = make_graph(self.plan)
        order = [list(chain_run.key) for chain_run in _in_order(graph, self.plan)]
        private = (scratch / "private").resolve()
        since = time.time() if self.run_options.fresh else 0.0
        recipe = recipe_of(
            self.plan,
            graph.setting,
            self.place,
            private,
            self.progress,
            self.run_options.data_root,
            since,
        )
        self.site = site = Site(recipe, self.out / "logs", scratch, self.plan)
        stores = site.stores
        if self.run_options.fresh:
            for node in graph.nodes.values():
                store = stores.of(node)
                with store.claim(node.key) as mine:
                    if mine:  # else another run computes or reads it at this moment
                        store.drop(node.key)
            (self.out / "raw" / KEPT).unlink(missing_ok=True)
        executor = self.run_options.executor(site, self.run_options.limits)
        told = {**about(self.plan, self.command), "order": order, "isolation": executor.about}
        self.log = RunLog(self.out / "results.jsonl", told)
        with contextlib.closing(executor):
            self._build_all(graph, stores, executor)
            for record in memory_records(self.records, self.plan, self.outputs):
                self.records[record.key] = record
                self.log.record(record)
            collector = getattr(executor, "gather", None)
            caught, stage = time_records(
                self.records, self.plan, self.outputs, self.progress, collector
            )
            for record in caught:
                self._keep(record)
                self.outputs.withdraw(record)
            # Last: without this line the seconds count for nothing, with it all of them do.
            self.log.timings(stage)
            self.log.timings(self._on_gpu(executor, scratch))

    def _on_gpu(self, executor: Executor, scratch: Path) -> Stage:
        """Run the GPU stage, in a process of its own where there is a GPU to break."""
        if Cuda().absent():
            return time_on_gpu(self.records, self.plan, self.outputs, {}, self.progress)
        folder = scratch / "gpu"
        folder.mkdir(exist_ok=True)
        asked = {
            "out": str(self.out.resolve()),
            "records": list(map(asdict, self.records.values())),
        }
        write_json(folder / RECORDS, asked)
        job = Job(0, 0, 0, "gpu", str(folder.resolve()))
        with contextlib.ExitStack() as held:
            if hasattr(executor, "gather"):  # of another machine; this GPU is here
                executor = executor_for(self.site, self.run_options.limits)
                held.enter_context(contextlib.closing(executor))
            executor.submit(job, "gpu")
            [(_, outcome)] = executor.wait()
        if not outcome.ok:
            return Stage(runtime=GPU, reason=f"the timing on the GPU ended early: {outcome.error}")
        return Stage.from_json(json.loads((folder / FOUND).read_text()))

    def _build_all(self, graph: Graph, stores: Stores, executor: Executor) -> None:
        shown = bar(self.progress, total=len(graph.chain_runs), unit="chain")

        def end(chain_run: ChainRun, entry: Entry | None, outcome: Outcome) -> None:
            self._end(chain_run, entry, outcome)
            shown.set_description(chain_run.row.text[:40])
            shown.update()
            if "No space left" in outcome.error and _little_space(stores.shared.folder):
                raise OSError(errno.ENOSPC, outcome.error)

        def name(chain_run: ChainRun) -> str:
            return self.outputs.model(*chain_run.key).name

        with shown:
            wait = partial(shown.set_description, "waiting for another run on this store")
            Schedule(graph, stores, executor, end, name, wait).run()

    def _end(self, chain_run: ChainRun, entry: Entry | None, outcome: Outcome) -> None:
        """Make a row of what was measured in a chain run, or of what went wrong."""
        row = chain_run.row
        if entry is None:
            record = Record(
                row.text, chain_run.seed, "failed", error=outcome.error, log=outcome.step_log
            )
        else:
            record = self.outputs.publish(entry.folder, record_of(entry))
            if row.uncontrolled:
                why = {"control_verdict": row.uncontrolled}
                record = replace(record, missing={**record.missing, **why})
        self._keep(replace(record, role=row.role, control=row.control, steps=row.steps))

    def _keep(self, record: Record) -> None:
        self.records[record.key] = record
        self.log.record(record)
        self.on_record(row_alone(record, self.out))


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


def _in_order(graph: Graph, plan: Plan) -> list[ChainRun]:
    """Return the chain runs as a table shows them: by seed, in the order of the plan's rows."""
    return [graph.chain_run((row.text, seed)) for seed in plan.suite.seeds for row in plan.rows]


def _little_space(folder: Path) -> bool:
    return shutil.disk_usage(folder if folder.exists() else Path()).free < LITTLE


@contextlib.contextmanager
def _disk_may_be_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunStopped(
            f"the disk is full ({error.strerror}), so the run in {folder} stopped. What was "
            f"finished is kept: free some space and run again"
        ) from error
