"""Which job is next: chain runs through the graph, shared nodes once, an executor does the work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compress.benchmark.execute.executor import OVER_BUDGET, ChainJob, Executor, Outcome
from compress.benchmark.execute.run_spec import Stores
from compress.benchmark.plan.graph import ChainRun, Graph, Node
from compress.benchmark.store.store import Entry
from compress.results.record import BASELINE
from compress.system.progress import stage

ATTEMPTS = 3
"""How often a chain run whose results vanish is computed again: others clean the store."""
PATIENCE = 0.5
"""Seconds between two looks at what another run is computing."""
NO_BASELINE = "StepFailed: the baseline failed, so there is nothing to start from"
OTHERS = f"StepEnded: {OVER_BUDGET}: another run on this store was computing what it needs"
VANISHED = "StepFailed: the row's measurement vanished from the store repeatedly"


@dataclass
class _State:
    """How far a chain run is."""

    chain_run: ChainRun
    next: int = 0
    """The number of the node that is next."""
    over: bool = False
    running: bool = False
    attempts: int = 0
    """How often its measurement had vanished."""

    @property
    def is_baseline(self) -> bool:
        return self.chain_run.row.text == BASELINE

    @property
    def last(self) -> int:
        """The number of the node that measures."""
        return len(self.chain_run.nodes) - 1


class Schedule:
    """Takes every chain run of a graph to its end; `on_end` gets its measurement, or the error.

    They start once their seed's baseline is there, and end after it is measured. Each step runs
    once: what others share is there when they come to it, or failed for them too.
    """

    def __init__(
        self,
        graph: Graph,
        stores: Stores,
        executor: Executor,
        on_end: Callable[[ChainRun, Entry | None, Outcome], None],
        name: Callable[[ChainRun], str],
        deadline: float | None = None,
    ) -> None:
        self.stores, self.executor = stores, executor
        self.on_end, self.name = on_end, name
        self.deadline = deadline
        """When jobs are ended that still run, and what another run computes is waited for no
        longer (`time.monotonic`)."""
        self.states = [_State(chain_run) for chain_run in graph.chain_runs]
        self.first = {s.chain_run.seed: s for s in self.states if s.is_baseline}
        self.failed: dict[str, Outcome] = {}
        self.unsaved: set[str] = set()
        self.measured_baselines: set[int] = set()
        """Their seeds."""
        self.claims: dict[str, contextlib.ExitStack] = {}

    def run(self) -> None:
        """Do all there is to do. What is finished when this is stopped stays in the stores."""
        for state in self.states:
            self._look(state)
        try:
            while not all(state.over for state in self.states):
                self._fill()
                if self._stuck():
                    with stage("waiting for another run on this store"):
                        while self._stuck():
                            time.sleep(PATIENCE)
                            self._fill()
                            self._give_up_at_the_deadline()
                if any(state.running for state in self.states):
                    for job, outcome in self.executor.wait():
                        self._finish_job(job, outcome)
        finally:
            for claim in self.claims.values():
                claim.close()

    def _stuck(self) -> bool:
        """Whether all that is left is being computed by another run."""
        return not all(state.over for state in self.states) and not any(
            state.running for state in self.states
        )

    def _give_up_at_the_deadline(self) -> None:
        """End what still waits for another run when there is no time left to wait."""
        if self.deadline is not None and time.monotonic() >= self.deadline and self._stuck():
            for state in self.states:
                if not state.over:
                    self._end(state, None, Outcome(OTHERS))

    def _look(self, state: _State) -> None:
        """Find the first node of a chain run that is still to be computed."""
        nodes = state.chain_run.nodes
        stored = (n for n in range(state.last, -1, -1) if self.stores.get(nodes[n]) is not None)
        state.next = next(stored, -1) + 1

    def _fill(self) -> None:
        """Give the executor as much as it takes."""
        for state in self._waiting():
            self._start(state)

    def _start(self, state: _State) -> None:
        """Take a chain run on from what is there, and start a job for it if there is a worker."""
        nodes = state.chain_run.nodes
        while state.next < len(nodes):
            node = nodes[state.next]
            if node.key in self.failed:
                self._end(state, None, self.failed[node.key])
                return
            busy = sum(other.running for other in self.states)
            if busy >= self.executor.workers or node.key in self.claims or not self._claim(node):
                return
            if self.stores.get(node) is None:
                break
            self._release(node)  # another run has just finished it
            state.next += 1
        else:
            self._hand_out(state)
            return
        until = state.last if node.key in self.unsaved else state.next
        left = None if self.deadline is None else max(1.0, self.deadline - time.monotonic())
        job = ChainJob(*state.chain_run.key, until, seconds=left)
        self.executor.submit(job, self.name(state.chain_run))
        state.running = True

    def _waiting(self) -> Iterator[_State]:
        """Yield the chain runs that can go on: the first of a seed is its baseline's."""
        for state in self.states:
            seed = state.chain_run.seed
            first = self.first[seed]
            if state.over or state.running:
                continue
            if state is not first and first.over and seed not in self.measured_baselines:
                self._end(state, None, Outcome(NO_BASELINE))
            elif state is first or first.over:
                yield state
            elif first.next == first.last and state.next <= state.last:
                yield state  # its model is there, and is being measured

    def _claim(self, node: Node) -> bool:
        claim = contextlib.ExitStack()
        if not claim.enter_context(self.stores.of(node).claim(node.key)):
            claim.close()
            return False
        self.claims[node.key] = claim
        return True

    def _release(self, node: Node) -> None:
        if claim := self.claims.pop(node.key, None):
            claim.close()

    def _finish_job(self, job: ChainJob, outcome: Outcome) -> None:
        state = next(s for s in self.states if s.running and s.chain_run.key == job.key)
        state.running = False
        node = state.chain_run.nodes[state.next]
        self._release(node)
        if not outcome.ok:
            # What shares this node fails with it, for the same reason.
            self.failed[node.key] = outcome
            self._end(state, None, outcome)
        elif outcome.unsaved or job.until > state.next:  # it went on to the end
            if outcome.unsaved and not node.measures:
                self.unsaved.add(node.key)
            state.next = len(state.chain_run.nodes)
        else:
            state.next += 1

    def _hand_out(self, state: _State) -> None:
        """Hand out a measurement; under its claim, so that no other run removes it meanwhile."""
        node = state.chain_run.measured
        if not self._claim(node):
            return  # another run hands it out, or removes it, at this moment
        try:
            entry = self.stores.get(node)
            if entry is not None:
                self._end(state, entry, Outcome())
            elif state.attempts < ATTEMPTS:
                state.attempts += 1
                self._look(state)
            else:
                self._end(state, None, Outcome(VANISHED))
        finally:
            self._release(node)

    def _end(self, state: _State, entry: Entry | None, outcome: Outcome) -> None:
        state.over = True
        if state.is_baseline and entry is not None:
            self.measured_baselines.add(state.chain_run.seed)
        self.on_end(state.chain_run, entry, outcome)
