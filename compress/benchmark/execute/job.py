"""One process's work: a chain run of the graph, from what lies in the store up to a node.

This runs in a process of its own (`compress.benchmark.execute.fork_server`), on another machine
(`compress.benchmark.execute.ray_executor`), or, where neither is possible, in the caller's process.
"""

from __future__ import annotations

import datetime
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compress.benchmark.execute.executor import ChainJob, GpuJob, Job, Outcome
from compress.benchmark.execute.run_spec import Stores
from compress.benchmark.measure.gpu import gpu_stage
from compress.benchmark.measure.row import Built, measure_row
from compress.benchmark.plan.graph import ChainRun, Graph, Node, make_graph
from compress.benchmark.plan.keys import code_digest, technique_modules
from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.store import Entry, StoredStepCache
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.errors import CannotSave
from compress.results.record import Record, candidate_name
from compress.system.files import write_json
from compress.system.progress import stage

OUTCOME = "outcome.json"
RECORD = "record"


def failure(error: BaseException, step_log: list[dict[str, Any]]) -> Outcome:
    """Return the outcome of a job that raised."""
    text = "".join(traceback.format_exception(error))[-4000:]
    said = str(error) or "no reason was given"
    rows = [*step_log, {"kind": "traceback", "text": text}]
    return Outcome(f"{type(error).__name__}: {said}", tuple(rows))


def perform(job: Job, plan: Plan, stores: Stores, progress: bool = False) -> Outcome:
    """Do a job; whatever goes wrong is in the outcome, but for Ctrl-C."""
    work = _ChainWork(plan, make_graph(plan), stores, progress)
    try:
        if isinstance(job, GpuJob):
            gpu_stage(plan, work.graph, stores.get, Path(job.folder))
        else:
            work.bring(job)
    except Exception as error:  # a step is somebody's code: it may raise anything
        return failure(error, work.step_log.rows)
    return Outcome(unsaved=work.unsaved)


class _ChainWork:
    """The work on one chain run."""

    def __init__(self, plan: Plan, graph: Graph, stores: Stores, progress: bool) -> None:
        self.plan, self.graph, self.stores, self.progress = plan, graph, stores, progress
        self.step_log = StepLog()
        """Of the step that is running, or ran last."""
        self.unsaved = ""

    def bring(self, job: ChainJob) -> None:
        chain_run = self.graph.chain_run(job.key)
        last = len(chain_run.nodes) - 2
        built = self._built(chain_run, min(job.until, last))
        if job.until <= last:
            if not self.unsaved:
                return
            # No file can hold what this step made, so this process goes on with it to the end.
            built = self._steps(chain_run, job.until, last, built)
        self._measure(chain_run, built)

    def _built(self, chain_run: ChainRun, until: int) -> Built:
        """Return what the steps up to a number make, from the last one that the store has."""
        done, built = self._stored(chain_run, until) or (-1, self._start(chain_run))
        return self._steps(chain_run, done, until, built)

    def _steps(self, chain_run: ChainRun, done: int, until: int, built: Built) -> Built:
        for number in range(done + 1, until + 1):
            built = self._step(chain_run, chain_run.nodes[number], built)
        return built

    def _stored(self, chain_run: ChainRun, until: int) -> tuple[int, Built] | None:
        """Return the last of a chain run's results that the store has, and its number."""
        for number in range(until, -1, -1):
            node = chain_run.nodes[number]
            entry = self.stores.get(node)
            if entry is not None:
                rows = [*entry.about["before"], *entry.step_log]
                return number, Built(entry.model(self.plan.build), node.key, StepLog(rows))
        return None

    def _start(self, chain_run: ChainRun) -> Built:
        """Return what enters a chain run: the baseline, or the plan's own model."""
        if chain_run.start == self.graph.start:
            return Built(self.plan.start, chain_run.start, StepLog())
        baseline = self.graph.baseline(chain_run.seed)
        built = replace(self._built(baseline, len(baseline.nodes) - 2), log=StepLog())
        if self.unsaved:
            built.log.note("the baseline cannot be kept, so it was made anew for this row")
        return built

    def _step(self, chain_run: ChainRun, node: Node, before: Built) -> Built:
        assert node.step is not None, "the measuring is no step"
        context = self._bench(chain_run, node)
        self.step_log = context.log
        say("begin", node)
        number, count = chain_run.nodes.index(node) + 1, len(chain_run.nodes) - 1
        row = stage(candidate_name(chain_run.key), heading=True)
        with row, stage(f"step {number} of {count}, {node.text}"):
            model = run(node.step, before.model, context)
        try:
            about = {
                "step": node.text,
                "before": before.log.rows,
                "step_log": context.log.rows,
            }
            self.stores.of(node).put_model(node.key, model, self.plan.build, about)
            say("kept", node)
        except CannotSave as error:
            # Checkpoints stay: another row that needs this step need not train from the start.
            self.unsaved = str(error)
        else:
            if isinstance(context.cache, StoredStepCache):
                context.cache.clear()
        return Built(model, node.key, StepLog([*before.log.rows, *context.log.rows]))

    def _bench(self, chain_run: ChainRun, node: Node) -> StepContext:
        context = self.plan.step_context(chain_run.seed, self.progress)
        cache = StoredStepCache(self.stores.of(node), node.key, self.stores.since)
        context = replace(
            context,
            position=node.position,
            log=StepLog(),
            cache=cache,
            scope=node.key,
            setting=self.graph.setting,
            code=code_digest(technique_modules()),
        )
        assert node.step is not None, "the measuring is no step"
        if "teacher" not in node.step.needs:
            return context
        baseline = self.graph.baseline(chain_run.seed)
        return replace(context, teacher=self._built(baseline, len(baseline.nodes) - 2).model)

    def _measure(self, chain_run: ChainRun, built: Built) -> None:
        node = chain_run.measured
        self.step_log = built.log

        def fill(folder: Path) -> Mapping[str, Any]:
            record = measure_row(self.plan, folder, chain_run.row, chain_run.seed, built)
            return {RECORD: asdict(record)}

        say("begin", node)
        with stage(candidate_name(chain_run.key), heading=True):
            self.stores.of(node).put(node.key, fill)
        say("kept", node)


def say(what: str, node: Node) -> None:
    """Write to the log of this process what begins, and what is kept."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    print(f"{now} {what} {node.key[:16]} {node.text}", flush=True)


def record_of(entry: Entry) -> Record:
    """Return the record that a measuring has kept."""
    return Record.from_json(entry.about[RECORD])


def write_outcome(folder: Path, outcome: Outcome) -> None:
    write_json(folder / OUTCOME, asdict(outcome))


def read_outcome(folder: Path) -> Outcome | None:
    """Return what a job has said of itself; None if it did not come to that."""
    try:
        return Outcome.from_json(json.loads((folder / OUTCOME).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
