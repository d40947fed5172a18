"""The plan as a graph: chains share their common beginnings, and everything has a key.

A chain run is what one row and seed need: its steps one after another, then the measuring of their
result. Nodes with equal keys are one node, so `distill(...)` runs once for `distill(...)`,
`distill(...) -> quantize()` and `distill(...) -> prune_channels(...) -> quantize()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.benchmark.plan.keys import (
    code_digest,
    foreign_sources,
    measuring_modules,
    own_versions,
    step_key,
    step_modules,
    technique_modules,
    versions,
)
from compress.benchmark.plan.plan import Plan
from compress.benchmark.plan.provenance import metadata
from compress.benchmark.plan.rows import Row
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
    """Key of the plan's own model, which no step has changed."""
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
    inputs = {**plan.step_inputs, "versions": versions()}
    setting = digest({**inputs, "ours": code_digest(technique_modules())})
    # Of weights from a file all of that matters to the measuring too, with no step in between.
    entering = {**inputs, "ours": code_digest(step_modules())}
    restarts = plan.baseline is not None and plan.baseline.restarts
    weights = None if restarts else weights_hash(plan.start.module)
    start = digest({"model": plan.suite.model, "weights": weights, "entering": entering})
    keys = _Keys(plan, inputs)
    chain_runs = []
    for seed in plan.suite.seeds:
        baseline = keys.chain_run(plan.rows[0], seed, start)
        others = [keys.chain_run(row, seed, baseline.model) for row in plan.rows[1:]]
        chain_runs += [baseline, *others]
    return Graph(start, tuple(chain_runs), setting)


class _Keys:
    """Gives keys to the steps and the measuring of a plan's rows."""

    def __init__(self, plan: Plan, inputs: Mapping[str, Any]) -> None:
        self.plan, self.inputs = plan, inputs
        self.teachers = {name: identity(model) for name, model in plan.teachers.items()}
        self.students = {name: identity(model) for name, model in plan.students.items()}
        self.transfers = {name: data.fingerprint for name, data in plan.transfers.items()}
        self.measuring = {
            "test": plan.data.test_identity(),
            **plan.code_of_data,
            "metric": None if plan.metric is None else plan.metric.identity(),
            "threads": plan.threads,
            "opset": plan.suite.opset,
            "cpu": plan.cpu or cpu_info(),
            "ours": code_digest(measuring_modules()),
            "schema": SCHEMA,
        }

    def chain_run(self, row: Row, seed: int, start: str) -> ChainRun:
        """Return a row's chain run from the model of a key: of all but the baseline, its model."""
        plan, key, position = self.plan, start, 0
        chain = plan.baseline if row.chain is None else row.chain
        if row.chain is not None and plan.baseline is not None:
            position = len(leaves(plan.baseline))
        nodes, private = [], plan.instance is not None
        for step in () if chain is None else chain.steps:
            # Of what enters, a student from fresh weights has nothing.
            alone = step.restarts and bool(step.students) and plan.instance is None
            private = private or not step.teachers.isdisjoint(plan.own_teachers)
            context = {
                **self.inputs,
                "seed": seed,
                "position": position,
                "ours": code_digest(step_modules(step)),
                "foreign": foreign_sources(step),
                "libraries": own_versions(step),
                "baseline": start if "teacher" in step.needs else None,
                "teachers": {n: self.teachers[n] for n in step.teachers & self.teachers.keys()},
                "students": {n: self.students[n] for n in step.students & self.students.keys()},
                "transfers": {name: self.transfers[name] for name in step.transfers},
            }
            key = step_key("" if alone else key, repr(step), context)
            nodes.append(Node(key, repr(step), step, private, position))
            position += len(leaves(step))
        measuring = {**self.measuring, "of": key, "metadata": metadata(plan, row, seed)}
        if plan.metric is not None and not plan.metric.of_task:
            private = private or plan.metric.file is None
        nodes.append(Node(digest({MEASURE: measuring}), MEASURE, None, private))
        return ChainRun(row, seed, tuple(nodes), start)
