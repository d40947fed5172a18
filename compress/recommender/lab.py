"""Where a search measures its chains: rows of a benchmark whose test split is for validation."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from compress.benchmark.execute.executor import OVER_BUDGET, Executor, Outcome
from compress.benchmark.execute.run_spec import Stores, spec_of
from compress.benchmark.execute.schedule import Schedule
from compress.benchmark.plan.graph import ChainRun, Node, make_graph
from compress.benchmark.plan.plan import Plan, with_chains
from compress.benchmark.plan.provenance import about as described
from compress.benchmark.run import RunOptions, row_record
from compress.benchmark.store.outputs import SAMPLES, TIMED, Outputs
from compress.benchmark.store.store import ENTRY, Entry
from compress.compressor import Compressor
from compress.counts import macs as macs_of
from compress.errors import UserError, first_line
from compress.recommender.cost import QUICK, CostModel
from compress.recommender.measured import Measured
from compress.results.accuracy import read_answers
from compress.results.log import RunLog, read_run
from compress.results.raw import Missing
from compress.results.record import BASELINE, Record
from compress.stats.pairs import difference
from compress.system.progress import say, stage
from compress.tasks.base import stacked_inputs
from compress.techniques import chain as parse
from compress.timing.collect import Effort, TimingRequest
from compress.timing.launch import WorkerFailed
from compress.timing.summary import summarise
from compress.training import Training

SETTING = "cpu"
"""One item at a time on all threads: what a search calls latency."""
PROCESSES = 3
RESULTS = "results.jsonl"
"""Of a quick timing; the finalists' has more."""


class Lab(Protocol):
    """Measures chains; a search asks nothing else of the world."""

    baseline: Measured

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        """Make and measure chains; what is not done at the deadline (`now`) has failed."""

    def time(self, measured: Sequence[Measured]) -> list[Measured]:
        """Return chains with the speed-ups of their files over the baseline's."""

    def predict(self, chain: Compressor, macs: float) -> float:
        """Return the seconds that a chain will take, less what is there already.

        `macs` are those of its result, over the baseline's.
        """

    def epoch(self) -> float:
        """Return the seconds of an epoch of the baseline's size."""

    def now(self) -> float:
        """Return the seconds of a clock."""


@dataclass
class BenchLab:
    """A lab on an executor, a store and a folder."""

    plan: Plan
    outputs: Outputs
    executor: Executor
    stores: Stores
    costs: CostModel
    timing_seconds: float
    records: dict[str, Record] = field(default_factory=dict)
    log: RunLog | None = None
    built: dict[str, float] = field(default_factory=dict)
    """The MACs of students, over the baseline's."""

    def __post_init__(self) -> None:
        [self.seed] = self.plan.suite.seeds
        self.baseline = Measured(BASELINE)
        self.right: np.ndarray = np.zeros(0, bool)

    def begin(self, deadline: float | None = None) -> None:
        """Make and measure the baseline. Raises UserError, with the reason, if that fails."""
        self._run([], deadline)
        record = self.records[BASELINE]
        if OVER_BUDGET in record.error:
            raise UserError(
                "the budget ended before the baseline was measured; what was computed is kept: "
                "give a larger one"
            )
        if record.status != "ok":
            raise UserError(f"the baseline is {record.status}: {record.error}")
        try:
            self.right = read_answers(record, self.outputs.folder).correct
        except Missing as error:
            raise UserError(f"the baseline has no accuracy: {error}") from error
        self.baseline = self._measured(BASELINE, 0.0)

    def now(self) -> float:
        return time.monotonic()

    def epoch(self) -> float:
        return self.costs.epoch()

    def remember(self, path: Path) -> None:
        """Take in the records of an earlier search here, and have new ones written down."""
        name = ""
        if path.exists():
            with contextlib.suppress(UserError):  # it ended before its first row
                run = read_run(path)
                name = run.name
                self.records |= {record.chain: record for record in run.records.values()}
        self.log = RunLog(path, described(self.plan, ""), name)
        if BASELINE in self.records:
            for record in self.records.values():
                self.learn(record)

    # --- measuring -------------------------------------------------------------------------

    def measure(self, chains: Sequence[str], deadline: float) -> list[Measured]:
        started = self.now()
        refused: dict[str, str] = {}
        legal = []
        for text in dict.fromkeys(chains):
            try:
                with_chains(self.plan, [text])
                legal.append(text)
            except UserError as error:
                refused[text] = str(error)
        if legal:
            self._run(legal, deadline)
        seconds = (self.now() - started) / max(1, len(chains))
        return [
            Measured(text, "failed", refused[text])
            if text in refused
            else self._measured(text, seconds)
            for text in chains
        ]

    def _run(self, texts: Sequence[str], deadline: float | None = None) -> None:
        """Take chains to the end, beside the baseline, of which all is there."""
        plan = with_chains(self.plan, texts)
        graph = make_graph(plan)

        def end(chain_run: ChainRun, entry: Entry | None, outcome: Outcome) -> None:
            if "No space left" in outcome.error:  # nothing is wrong with the chain
                raise OSError(errno.ENOSPC, "No space left")
            record = row_record(chain_run, entry, outcome, self.outputs)
            fresh = record != self.records.get(record.chain)
            self.records[record.chain] = record
            if fresh:
                self.learn(record)
                if self.log is not None:
                    self.log.record(record)

        def name(chain_run: ChainRun) -> str:
            return self.outputs.model(*chain_run.key).name

        with stage("", heading=True):
            Schedule(graph, self.stores, self.executor, end, name, deadline).run()

    def learn(self, record: Record) -> None:
        """Take in what a row's steps and its measuring took."""
        baseline = self.plan.baseline
        steps = (baseline.steps if baseline else ()) if record.chain == BASELINE else ()
        steps = steps or (() if record.chain == BASELINE else steps_of(record.chain))
        result = self._macs(record)
        made = [(step, self._made(step, result)) for step in steps]
        self.costs.learn_log(record.chain, made, record.log)

    def _made(self, step: Compressor, result: float) -> float:
        """Return the MACs of what a step of a chain makes, over the baseline's.

        A student may be cut by what comes after it; trainings of other kinds come behind all cuts.
        """
        base = self.records.get(BASELINE)
        whole = base.measured.get("macs") if base else None
        if not (isinstance(step, Training) and step.builds and whole):
            return result
        if repr(step.untrained) not in self.built:
            with torch.random.fork_rng(devices=[]):
                student = step.learner(self.plan.check_context)
            assert student is not None, "what builds knows its student"
            self.built[repr(step.untrained)] = macs_of(student.module, student.example) / whole
        return self.built[repr(step.untrained)]

    def _macs(self, record: Record) -> float:
        base = self.records.get(BASELINE)
        ours, theirs = (one and one.measured.get("macs") for one in (record, base))
        return ours / theirs if ours and theirs else 1.0

    def _measured(self, text: str, seconds: float) -> Measured:
        record = self.records[text]
        one = Measured(text, record.status, first_line(record.error or "-"), seconds=seconds)
        if record.status != "ok":
            return one
        try:
            correct = read_answers(record, self.outputs.folder).correct
        except Missing as error:
            return replace(one, status="failed", error=str(error))
        paired = difference(self.right, correct)
        figures = record.measured
        return replace(
            one,
            error="",
            items=len(correct),
            right=int(correct.sum()),
            lost=int(paired.lost),
            gained=int(paired.gained),
            onnx_bytes=int(figures["onnx_bytes"]),
            macs=int(figures["macs"]),
            params=int(figures["params"]),
        )

    # --- timing ----------------------------------------------------------------------------

    def time(self, measured: Sequence[Measured]) -> list[Measured]:
        sound = {one.chain for one in measured if one.status == "ok"}
        records = [self.records[text] for text in dict.fromkeys([BASELINE, *sound])]
        if len(records) == 1:
            return list(measured)
        inputs = stacked_inputs(self.plan.data.task, self.plan.data.test, SAMPLES)
        request = TimingRequest(
            files={r.name: self.outputs.folder / r.files["onnx"] for r in records},
            samples=[tensor.numpy() for tensor in inputs],
            expected={
                r.name: self.outputs.stored(self.outputs.model(*r.key).name)[TIMED] for r in records
            },
            baseline=records[0].name,
            settings=(SETTING,),
            effort=Effort(seconds=self.timing_seconds, processes=PROCESSES, precision=0.03),
            threads=self.plan.threads,
        )
        checkpoint = self.outputs.folder / "raw" / "timing-so-far.jsonl"
        try:
            with stage(f"timing {len(sound)} file(s)"):
                raw = self.executor.collect_timings(
                    request, progress=lambda words: None, checkpoint=checkpoint
                )
        except WorkerFailed as error:
            return [replace(one, error=f"not timed: {error}") for one in measured]
        checkpoint.unlink(missing_ok=True)
        rows = summarise(raw)
        found = []
        for one in measured:
            if one.chain not in sound:
                found.append(one)
                continue
            row = rows[self.records[one.chain].name, SETTING]
            if row.wrong:
                found.append(replace(one, status="unverified", error=row.error))
                continue
            found.append(
                replace(
                    one,
                    speedup=row.speedup,
                    speedup_low=row.low,
                    speedup_high=row.high,
                    ms=row.p50_ms,
                    timed=one.chain if row.speedup else "",
                )
            )
        return found

    # --- predicting ------------------------------------------------------------------------

    def predict(self, chain: Compressor, macs: float) -> float:
        plan = with_chains(self.plan, [repr(chain)])
        left = self._left(make_graph(plan).chain_run((repr(chain), self.seed)).nodes)
        return sum(
            self.costs.measuring() if node.step is None else self._seconds(node.step, macs)
            for node in left
        )

    def _seconds(self, step: Compressor, result: float) -> float:
        return self.costs.seconds(step, self._made(step, result))

    def remaking(self, chains: Sequence[str]) -> float:
        """Return the seconds of those steps of measured chains that are not in the store."""
        graph = make_graph(with_chains(self.plan, chains))
        seconds: dict[str, float] = {}
        for text in dict.fromkeys(chains):
            macs = self._macs(self.records[text]) if text in self.records else 1.0
            steps = graph.chain_run((text, self.seed)).nodes[:-1]
            for node in self._left(steps):
                assert node.step is not None, "only the last node of a chain run measures"
                seconds[node.key] = self._seconds(node.step, macs)
        return sum(seconds.values())

    def _left(self, nodes: Sequence[Node]) -> Sequence[Node]:
        """Return the nodes behind the last one that is in the store."""
        done = [n for n, node in enumerate(nodes) if self._is_there(node.key, node.private)]
        return nodes[max(done, default=-1) + 1 :]

    def _is_there(self, key: str, private: bool) -> bool:
        store = self.stores.private if private else self.stores.shared
        return (store.folder / key / ENTRY).exists()

    def file_of(self, one: Measured) -> Path:
        """Return the folder of a chain's files."""
        return self.outputs.model(one.chain, self.seed)


def macs_over(one: Measured, baseline: Measured) -> float:
    return one.macs / baseline.macs if one.macs and baseline.macs else 1.0


def steps_of(text: str) -> tuple[Compressor, ...]:
    """Return the steps of a chain's text."""
    return parse(text).steps


@contextlib.contextmanager
def opened(
    plan: Plan,
    folder: Path,
    store: str | Path,
    timing_seconds: float,
    *,
    costs: CostModel | None = None,
    private: Path | None = None,
    options: RunOptions | None = None,
) -> Iterator[BenchLab]:
    """Yield a lab in a folder that no other process has, with an executor, and end that.

    What an earlier one has measured there is known to it, and what it measures is written down.
    """
    options, outputs = options or RunOptions(progress=False), Outputs(folder, plan.suite.seeds)
    with outputs.lock, outputs.scratch() as scratch:
        spec = spec_of(
            plan,
            make_graph(plan).setting,
            store,
            private or Path(scratch) / "private",
            limits=options.limits,
            data_root=options.data_root,
            progress=options.progress,
        )
        unsaved = spec.keep_pixels(plan)
        if unsaved and options.progress:
            say(unsaved)
        executor = options.executor(plan, spec, outputs.logs, Path(scratch))
        with contextlib.closing(executor):
            lab = BenchLab(
                plan, outputs, executor, spec.stores, costs or CostModel(QUICK), timing_seconds
            )
            lab.remember(folder / RESULTS)
            yield lab
