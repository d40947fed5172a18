"""One process's work: a lane of the graph, from what lies in the store up to a node.

This runs in a process of its own (`compress.harness.server`), on another machine
(`compress.harness.cluster`), or, where neither is possible, in the caller's process.
"""

from __future__ import annotations

import datetime
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compress.compressor import run
from compress.errors import CannotSave
from compress.files import write_json
from compress.harness.gpu import gpu_stage
from compress.harness.graph import Graph, Lane, Node, make_graph
from compress.harness.measuring import Built, measure_row
from compress.harness.plan import Plan
from compress.harness.record import Record
from compress.harness.shelf import StepShelf
from compress.harness.store import Entry, Store
from compress.workbench import Journal, Workbench

OUTCOME = "outcome.json"
RECORD = "record"


@dataclass(frozen=True)
class Job:
    """Bring the lane of a row (its number) and seed as far as a node (its number).

    `kind` 'gpu' instead runs the GPU stage on the records in `folder`.
    """

    row: int
    seed: int
    until: int
    kind: str = "lane"
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Stores:
    """Where results lie: those that mean something to other runs, and those that do not."""

    shared: Store
    private: Store
    since: float = 0.0
    """Steps use nothing that they kept before (seconds of the epoch)."""

    def of(self, node: Node) -> Store:
        return self.private if node.private else self.shared

    def get(self, node: Node) -> Entry | None:
        return self.of(node).get(node.key)


def stores_of(recipe: Mapping[str, Any]) -> Stores:
    """Return the stores that a run's recipe names."""
    return Stores(Store(recipe["shared"]), Store(recipe["private"]), recipe["since"])


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, or with an error that a row can show."""

    error: str = ""
    journal: tuple[Mapping[str, Any], ...] = ()
    unkept: str = ""
    """Why what a step made could not be kept; then the job went on to the end of its lane."""

    @property
    def ok(self) -> bool:
        return not self.error

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Outcome:
        return Outcome(values["error"], tuple(values["journal"]), values["unkept"])


def failure(error: BaseException, journal: list[dict[str, Any]] | None = None) -> Outcome:
    """Return the outcome of a job that raised."""
    text = "".join(traceback.format_exception(error))[-4000:]
    said = str(error) or "no reason was given"
    rows = [*(journal or []), {"kind": "traceback", "text": text}]
    return Outcome(f"{type(error).__name__}: {said}", tuple(rows))


def perform(job: Job, plan: Plan, stores: Stores, progress: bool = False) -> Outcome:
    """Do a job; whatever goes wrong is in the outcome, but for Ctrl-C."""
    if job.kind == "gpu":
        try:
            gpu_stage(plan, make_graph(plan), stores.get, Path(job.folder), progress)
        except Exception as error:
            return failure(error)
        return Outcome()
    made = _Lane(plan, make_graph(plan), stores, progress)
    try:
        made.bring(job)
    except Exception as error:  # a step is somebody's code: it may raise anything
        return failure(error, made.journal.rows)
    return Outcome(unkept=made.unkept)


class _Lane:
    """The work on one lane."""

    def __init__(self, plan: Plan, graph: Graph, stores: Stores, progress: bool) -> None:
        self.plan, self.graph, self.stores, self.progress = plan, graph, stores, progress
        self.journal = Journal()
        """Of the step that is running, or ran last."""
        self.unkept = ""

    def bring(self, job: Job) -> None:
        lane = self.graph.lane((self.plan.rows[job.row].text, job.seed))
        until = job.until
        if until < len(lane.nodes) - 1:
            built = self._built(lane, until)
            if not self.unkept:
                return
            # No file can hold what this step made, so this process goes on with it to the end.
            self._measure(lane, self._built(lane, len(lane.nodes) - 2, (until, built)))
        else:
            self._measure(lane, self._built(lane, until - 1))

    def _built(self, lane: Lane, until: int, have: tuple[int, Built] | None = None) -> Built:
        """Return what the steps up to a number make, from the last one that the store has."""
        if have is None:
            have = self._stored(lane, until)
        done, built = have if have is not None else (-1, self._start(lane))
        for number in range(done + 1, until + 1):
            built = self._step(lane, lane.nodes[number], built)
        return built

    def _stored(self, lane: Lane, until: int) -> tuple[int, Built] | None:
        """Return the last of a lane's results that the store has, and its number."""
        for number in range(until, -1, -1):
            node = lane.nodes[number]
            entry = self.stores.get(node)
            if entry is not None:
                rows = [*entry.about["before"], *entry.journal]
                return number, Built(entry.model(self.plan.build), node.key, Journal(rows))
        return None

    def _start(self, lane: Lane) -> Built:
        """Return what enters a lane: the baseline, or the plan's own model."""
        if lane.start == self.graph.start:
            return Built(self.plan.start, lane.start, Journal())
        baseline = self.graph.baseline(lane.seed)
        built = replace(self._built(baseline, len(baseline.nodes) - 2), journal=Journal())
        if self.unkept:
            built.journal.note("the baseline cannot be kept, so it was made anew for this row")
        return built

    def _step(self, lane: Lane, node: Node, before: Built) -> Built:
        assert node.step is not None, "the measuring is no step"
        bench = self._bench(lane, node)
        self.journal = bench.journal
        say("begin", node)
        model = run(node.step, before.model, bench)
        try:
            about = {
                "step": node.text,
                "before": before.journal.rows,
                "journal": bench.journal.rows,
            }
            self.stores.of(node).put_model(node.key, model, self.plan.build, about)
            say("kept", node)
        except CannotSave as error:
            # Checkpoints stay: another row that needs this step need not train from the start.
            self.unkept = str(error)
        else:
            if isinstance(bench.shelf, StepShelf):
                bench.shelf.clear()
        return Built(model, node.key, Journal([*before.journal.rows, *bench.journal.rows]))

    def _bench(self, lane: Lane, node: Node) -> Workbench:
        bench = self.plan.workbench(lane.seed, self.progress)
        shelf = StepShelf(self.stores.of(node), node.key, self.stores.since)
        bench = replace(
            bench, journal=Journal(), shelf=shelf, scope=node.key, setting=self.graph.setting
        )
        assert node.step is not None, "the measuring is no step"
        if "teacher" not in node.step.needs:
            return bench
        baseline = self.graph.baseline(lane.seed)
        return replace(bench, teacher=self._built(baseline, len(baseline.nodes) - 2).model)

    def _measure(self, lane: Lane, built: Built) -> None:
        node = lane.measured
        self.journal = built.journal

        def fill(folder: Path) -> Mapping[str, Any]:
            record = measure_row(self.plan, folder, lane.row, lane.seed, built)
            return {RECORD: asdict(record)}

        say("begin", node)
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
    write_json(folder / OUTCOME, outcome.to_json())


def read_outcome(folder: Path) -> Outcome | None:
    """Return what a job has said of itself; None if it did not come to that."""
    try:
        return Outcome.from_json(json.loads((folder / OUTCOME).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
