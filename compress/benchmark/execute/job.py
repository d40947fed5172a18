"""One process's work: a chain run of the graph, from what lies in the store up to a node.

This runs in a process of its own (`compress.benchmark.execute.fork_server`), on another machine
(`compress.benchmark.execute.ray_executor`), or, where neither is possible, in the caller's process.
"""

from __future__ import annotations

import datetime
import json
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from compress.benchmark.execute.executor import Job, Outcome
from compress.benchmark.execute.run_spec import Stores
from compress.benchmark.measure.gpu import gpu_stage
from compress.benchmark.measure.row import Built, measure_row
from compress.benchmark.plan.graph import ChainRun, Graph, Node, make_graph
from compress.benchmark.plan.keys import code_digest, technique_modules
from compress.benchmark.plan.plan import Plan, with_chains
from compress.benchmark.store.store import Entry, StoredStepCache
from compress.compressor import run
from compress.context import CacheEntry, StepCache, StepContext, StepLog
from compress.errors import CannotSave, StepFailed, UserError
from compress.model import Model
from compress.ranks import leave, ranks
from compress.results.record import Key, Record, candidate_name
from compress.system.files import write_json
from compress.system.progress import stage
from compress.training.out_of_memory import ran_out_of_memory

OUTCOME = "outcome.json"
RECORD = "record"
MEMORY = "Raise the limit with --step-memory, or, if it trains, take a smaller batch_size"


def perform(job: Job, plan: Plan, stores: Stores, progress: bool = False) -> Outcome:
    """Do a job; whatever goes wrong is in the outcome, except Ctrl-C."""
    try:
        # A search draws chains that its plan did not have.
        if not {row.text for row in plan.rows}.issuperset(job.chains):
            plan = with_chains(plan, job.chains)
    except UserError as error:
        return Outcome(f"{type(error).__name__}: {error}")
    work = _Work(plan, make_graph(plan), stores, progress)
    try:
        job.do(work)
    except Exception as error:  # a step is foreign code: it may raise anything
        text = "".join(traceback.format_exception(error))[-4000:]
        rows = (*work.step_log.rows, {"kind": "traceback", "text": text})
        reason = str(error) or "no reason was given"
        if ran_out_of_memory(error) and "CUDA" not in reason:
            reason += f". {MEMORY}"
        return Outcome(f"{type(error).__name__}: {reason}", rows)
    return Outcome(unsaved=work.unsaved)


class OnlookerCache:
    """The cache of a step for those of its processes that are not the first: they only look."""

    def __init__(self, cache: StoredStepCache) -> None:
        self.cache = cache

    def get(self, key: str, temporary: bool = False) -> CacheEntry | None:
        return self.cache.get(key, temporary)

    def put(
        self, key: str, fill: Callable[[Path], Mapping[str, Any]], temporary: bool = False
    ) -> CacheEntry | None:
        return None

    def drop(self, key: str) -> None:
        pass


class _Work:
    """The work of one process: what its job may ask for."""

    def __init__(self, plan: Plan, graph: Graph, stores: Stores, progress: bool) -> None:
        self.plan, self.graph, self.stores, self.progress = plan, graph, stores, progress
        self.step_log = StepLog()
        """Of the step that is running, or ran last."""
        self.unsaved = ""

    def run_gpu_stage(self, folder: Path) -> None:
        gpu_stage(self.plan, self.graph, self.stores.get, folder)

    def advance(self, key: Key, until: int) -> None:
        chain_run = self.graph.chain_run(key)
        last = len(chain_run.nodes) - 2
        built = self._built(chain_run, min(until, last))
        if until <= last:
            if not self.unsaved:
                return
            # No file can hold this step's result, so this process goes on with it to the end.
            built = self._steps(chain_run, until, last, built)
        self._measure(chain_run, built)

    def _built(self, chain_run: ChainRun, until: int) -> Built:
        """Return the result of the steps up to a number, from the last one that is stored."""

        def stored(number: int) -> Entry | None:
            return self.stores.get(chain_run.nodes[number])

        # Another process of the step may already have stored something when this one looks.
        number = ranks().agreed(
            lambda: next((n for n in range(until, -1, -1) if stored(n) is not None), -1)
        )
        if number < 0:
            return self._steps(chain_run, -1, until, self._start(chain_run))
        if (entry := stored(number)) is None:
            raise StepFailed("the store has lost a step's result while it was read")
        rows = [*entry.about["before"], *entry.step_log]
        model = self._tried_on_real_inputs(entry.model(self.plan.build))
        built = Built(model, chain_run.nodes[number].key, StepLog(rows))
        return self._steps(chain_run, number, until, built)

    def _tried_on_real_inputs(self, model: Model) -> Model:
        """Return a stored model with the task's own probe: files keep no inputs that are floats."""
        real = self.plan.start.probe
        if [one.shape for one in real] != [one.shape for one in model.probe]:
            return model
        return replace(model, probe=real)

    def _steps(self, chain_run: ChainRun, done: int, until: int, built: Built) -> Built:
        for number in range(done + 1, until + 1):
            built = self._step(chain_run, number, built)
        return built

    def _start(self, chain_run: ChainRun) -> Built:
        """Return what enters a chain run: the baseline, or the plan's own model."""
        if chain_run.start == self.graph.start:
            return Built(self.plan.start, chain_run.start, StepLog())
        built = replace(self._baseline(chain_run.seed), log=StepLog())
        if self.unsaved:
            built.log.note("the baseline cannot be saved, so it was made again for this row")
        return built

    def _step(self, chain_run: ChainRun, number: int, before: Built) -> Built:
        node = chain_run.nodes[number]
        assert node.step is not None, "the measuring is no step"
        context = self._context(chain_run, node, node.step.needs)
        self.step_log = context.log
        print_event("begin", node)
        row = stage(candidate_name(chain_run.key), heading=True)
        with row, stage(f"step {number + 1} of {len(chain_run.nodes) - 1}, {node.text}"):
            model = run(node.step, before.model, context)
        about = {"step": node.text, "before": before.log.rows, "step_log": context.log.rows}
        unsaved = ranks().agreed(lambda: self._keep(node, model, about, context.cache))
        self.unsaved = unsaved or self.unsaved
        return Built(model, node.key, StepLog([*before.log.rows, *context.log.rows]))

    def _keep(
        self, node: Node, model: Model, about: Mapping[str, Any], cache: StepCache | None
    ) -> str:
        """Store a step's result; return why no file can hold it, '' if it is stored."""
        try:
            self.stores.of(node).put_model(node.key, model, self.plan.build, about)
        except CannotSave as error:
            # Checkpoints stay: another row that needs this step need not train from the start.
            return str(error)
        print_event("kept", node)
        if isinstance(cache, StoredStepCache):
            cache.clear()
        return ""

    def _context(self, chain_run: ChainRun, node: Node, needs: Collection[str]) -> StepContext:
        cache = StoredStepCache(self.stores.of(node), node.key, self.stores.since)
        context = replace(
            self.plan.step_context(chain_run.seed, self.progress),
            device=ranks().device if ranks().count > 1 else self.plan.device,
            position=node.position,
            cache=cache if ranks().first else OnlookerCache(cache),
            scope=node.key,
            setting=self.graph.setting,
            code=code_digest(technique_modules()),
        )
        if "teacher" not in needs:
            return context
        return replace(context, teacher=self._baseline(chain_run.seed).model)

    def _baseline(self, seed: int) -> Built:
        baseline = self.graph.baseline(seed)
        return self._built(baseline, len(baseline.nodes) - 2)

    def _measure(self, chain_run: ChainRun, built: Built) -> None:
        if not ranks().first:
            return
        leave()
        node = chain_run.measured
        self.step_log = built.log

        def fill(folder: Path) -> Mapping[str, Any]:
            record = measure_row(self.plan, folder, chain_run.row, chain_run.seed, built)
            return {RECORD: asdict(record)}

        print_event("begin", node)
        with stage(candidate_name(chain_run.key), heading=True):
            self.stores.of(node).put(node.key, fill)
        print_event("kept", node)


def print_event(event: str, node: Node) -> None:
    """Write to this process's log which node begins, or is stored."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    print(f"{now} {event} {node.key[:16]} {node.text}", flush=True)


def record_of(entry: Entry) -> Record:
    """Return the record that a measuring has stored."""
    return Record.from_json(entry.about[RECORD])


def write_outcome(folder: Path, outcome: Outcome) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / OUTCOME, asdict(outcome))


def cause_of(scratch: Path) -> Outcome | None:
    """Return how the first of a step's other processes that ended in an error did so."""
    made = sorted(scratch.glob(f"*/{OUTCOME}"), key=lambda path: path.stat().st_mtime_ns)
    return read_outcome(made[0].parent) if made else None


def read_outcome(folder: Path) -> Outcome | None:
    """Return the outcome that a job has written; None if it did not get that far."""
    try:
        return msgspec.convert(json.loads((folder / OUTCOME).read_text()), Outcome)
    except (OSError, ValueError, RecursionError):
        return None
