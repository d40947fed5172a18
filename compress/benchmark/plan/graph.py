"""The plan as a graph: chains share their common beginnings, and everything has a key.

A chain run is what one row and seed need: its steps one after another, then the measuring of what
they made. Nodes with equal keys are one node, so `distill(...)` runs once for `distill(...)`,
`distill(...) -> quantize()` and `distill(...) -> prune_channels(...) -> quantize()`.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress.benchmark.plan.keys import (
    foreign_sources,
    measuring_modules,
    step_key,
    step_modules,
    technique_modules,
    versions,
)
from compress.benchmark.plan.plan import Plan
from compress.benchmark.plan.provenance import metadata
from compress.benchmark.plan.rows import Row
from compress.benchmark.plan.sources import code_digest
from compress.compressor import Compressor, leaves
from compress.model import identity, weights_hash
from compress.results.record import BASELINE, SCHEMA, Key
from compress.system.environment import cpu_info
from compress.system.files import digest

MEASURE = "measure"


@dataclass(frozen=True)
class Node:
    """One thing to compute."""

    key: str
    text: str
    """The step's text, or `measure`."""
    step: Compressor | None
    """None for the measuring."""
    private: bool = False
    """Whether its result means nothing outside this run: its key names an object of a process."""
    position: int = 0
    """How many steps of the chain come before it, the baseline's own included."""

    @property
    def measures(self) -> bool:
        return self.step is None


@dataclass(frozen=True)
class ChainRun:
    """A row's way through the graph, for one seed."""

    row: Row
    seed: int
    nodes: tuple[Node, ...]
    """Of the steps, then of the measuring."""
    start: str
    """Key of the model that enters the first step: the baseline's, or that of the start."""

    @property
    def key(self) -> Key:
        return self.row.text, self.seed

    @property
    def model(self) -> str:
        """The key of the model that is measured."""
        return self.nodes[-2].key if len(self.nodes) > 1 else self.start

    @property
    def measured(self) -> Node:
        return self.nodes[-1]


@dataclass(frozen=True)
class Graph:
    """All chain runs of a plan, those of a seed after its baseline's."""

    start: str
    """Key of the plan's own model, which no step has made."""
    chain_runs: tuple[ChainRun, ...]
    setting: str
    """A hash of what steps depend on: data but for the test split, task, device, threads,
    versions, code of all steps."""

    @property
    def nodes(self) -> dict[str, Node]:
        """Every node once, by key, inputs before what needs them."""
        return {node.key: node for chain_run in self.chain_runs for node in chain_run.nodes}

    def chain_run(self, key: Key) -> ChainRun:
        return next(chain_run for chain_run in self.chain_runs if chain_run.key == key)

    def baseline(self, seed: int) -> ChainRun:
        return self.chain_run((BASELINE, seed))


def make_graph(plan: Plan) -> Graph:
    """Give everything that a plan computes its key."""
    given = None if plan.baseline is not None else weights_hash(plan.start.module)
    common = {**plan.step_inputs, "versions": versions()}
    setting = digest({**common, "ours": code_digest(technique_modules())})
    # What is measured of given weights depends on all of that too, with no step in between.
    entering = {**common, "ours": code_digest(step_modules())}
    start = digest({"model": plan.suite.model, "weights": given, "setting": digest(entering)})
    chain_runs = []
    for seed in plan.suite.seeds:
        maker = _Maker(plan, seed)
        first = maker.chain_run(plan.rows[0], plan.baseline, start, "")
        chain_runs.append(first)
        position = 0 if plan.baseline is None else len(leaves(plan.baseline))
        chain_runs += [
            maker.chain_run(row, row.chain, first.model, first.model, position)
            for row in plan.rows[1:]
            if row.chain is not None
        ]
    return Graph(start, tuple(chain_runs), setting)


class _Maker:
    """Makes the chain runs of one seed."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.private = plan.instance is not None
        self.teachers = {name: identity(model) for name, model in plan.teachers.items()}
        self.context = {**plan.step_inputs, "versions": versions(), "seed": seed}
        self.judged = {
            "test": plan.data.test_identity(),
            "metric": None if plan.metric is None else plan.metric.identity(),
            "threads": plan.threads,
            "cpu": plan.cpu or cpu_info(),
            "ours": code_digest(measuring_modules()),
            "schema": SCHEMA,
        }

    def chain_run(
        self, row: Row, chain: Compressor | None, start: str, baseline: str, position: int = 0
    ) -> ChainRun:
        nodes: list[Node] = []
        parent, private = start, self.private
        for step in () if chain is None else chain.steps:
            private = private or not step.teachers.isdisjoint(self.plan.own_teachers)
            nodes.append(self._step(step, parent, baseline, private, position))
            parent = nodes[-1].key
            position += len(leaves(step))
        about = {**self.judged, "of": parent, "metadata": metadata(self.plan, row, self.seed)}
        key = digest({MEASURE: about})
        private = private or (self.plan.metric is not None and self.plan.metric.file is None)
        nodes.append(Node(key, MEASURE, None, private))
        return ChainRun(row, self.seed, tuple(nodes), start)

    def _step(
        self, step: Compressor, parent: str, baseline: str, private: bool, position: int
    ) -> Node:
        taught = "teacher" in step.needs
        # Of what enters, a student from fresh weights has nothing.
        alone = step.restarts and bool(step.students) and not self.private
        about = self.context | {
            "ours": code_digest(step_modules(step)),
            "foreign": foreign_sources(step),
        }
        about["position"] = position
        about |= {"baseline": baseline} if taught else {}
        named = {n: self.teachers[n] for n in sorted(step.teachers) if n in self.teachers}
        about |= {"teachers": named} if named else {}
        sets = {name: self.plan.transfers[name].fingerprint for name in sorted(step.transfers)}
        about |= {"transfers": sets} if sets else {}
        key = step_key("" if alone else parent, repr(step), about)
        return Node(key, repr(step), step, private, position)
