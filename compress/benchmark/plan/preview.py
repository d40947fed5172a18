"""What a run would do: the graph as a tree, what is done, and an estimate of what is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from compress.benchmark.plan.graph import MEASURE, Graph, Node, make_graph
from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.store import Store
from compress.compressor import Compressor, leaves
from compress.system.amounts import duration, plural
from compress.training import Training

WIDTH = 76
"""Columns of a step's text; behind it stands how far it is."""


class Estimates:
    """How long things took whose results are in a store, on average over seeds and inputs."""

    def __init__(self, store: Store, graph: Graph) -> None:
        steps = {node.text: node.step for node in graph.nodes.values()}
        self.measured: dict[object, list[float]] = defaultdict(list)
        """Seconds by a step's text or `measure`; of an epoch by technique and students."""
        for about in store.unchecked():
            if "record" in about:
                rows = about["record"]["log"]
                taken = [row["seconds"] for row in rows if row["kind"] == "measuring"]
                self.measured[MEASURE] += taken
            elif "step" in about:  # what a step keeps beside its result has none
                taken = [row["seconds"] for row in about["step_log"] if row["kind"] == "step"]
                self.measured[about["step"]].append(sum(taken))
                step = steps.get(about["step"])
                if isinstance(step, Training) and taken:
                    self.measured[_kind(step)].append(sum(taken) / step.epochs)

    def seconds(self, node: Node) -> float | None:
        """Return how long a node may take; None where nothing like it was done."""
        if node.step is None or node.text in self.measured:
            return self._mean(node.text)
        parts = [self._part(step, times) for step, times in leaves(node.step)]
        return None if None in parts else sum(part for part in parts if part is not None)

    def _part(self, step: Compressor, times: int) -> float | None:
        if isinstance(step, Training):
            times, mean = times * step.epochs, self._mean(_kind(step))
        else:
            mean = self._mean(repr(step))
        return None if mean is None else mean * times

    def _mean(self, kind: object) -> float | None:
        return fmean(self.measured[kind]) if self.measured.get(kind) else None


def _kind(step: Compressor) -> tuple[str, frozenset[str]]:
    return step.name(), step.students


def preview(plan: Plan, place: str | Path, fresh: bool = False) -> str:
    """Return the tree of a plan's steps with what is done, and what is left in seconds.

    `fresh` takes nothing for done.
    """
    graph, store = make_graph(plan), Store(place)
    done = {
        key
        for key, node in graph.nodes.items()
        if not fresh and not node.private and store.get(key) is not None
    }
    for chain_run in graph.chain_runs:
        # What lies before something that is done need not be done again.
        reached = [number for number, node in enumerate(chain_run.nodes) if node.key in done]
        done |= {node.key for node in chain_run.nodes[: max(reached, default=0)]}
    estimates = Estimates(store, graph)
    lines = []
    for seed in plan.suite.seeds:
        lines.append(plan.suite.name + (f", seed {seed}" if len(plan.suite.seeds) > 1 else ""))
        ways = [(run.row.text, run.nodes) for run in graph.chain_runs if run.seed == seed]
        lines += _tree(ways, done, estimates)
    left = [node for key, node in graph.nodes.items() if key not in done]
    return "\n".join([*lines, "", _sum(graph, left, estimates, plan.suite.timing_seconds)])


def _tree(
    ways: Sequence[tuple[str, Sequence[Node]]], done: set[str], estimates: Estimates, depth: int = 1
) -> list[str]:
    """Return a line per node; what several rows share stands once, as their common stem."""
    lines: list[str] = []
    branches: dict[str, list[tuple[str, Sequence[Node]]]] = defaultdict(list)
    for row, nodes in ways:
        if nodes:
            branches[nodes[0].key].append((row, nodes))
    for members in branches.values():
        row, (node, *_) = members[0]
        text = "  " * depth + (f"= {row}" if node.measures else node.text)
        text = text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
        state = "done" if node.key in done else _left(estimates.seconds(node))
        lines.append(f"{text:<{WIDTH}}  {state}")
        lines += _tree([(row, nodes[1:]) for row, nodes in members], done, estimates, depth + 1)
    return lines


def _left(seconds: float | None) -> str:
    return "left, unknown" if seconds is None else f"left, about {duration(seconds)}"


def _sum(graph: Graph, left: list[Node], estimates: Estimates, timing: float) -> str:
    steps = plural(len(graph.nodes), "result")
    rows = plural(len(graph.chain_runs), "row")
    if not left:
        return f"{rows}, all computed; what is left is the timing, about {duration(timing)}."
    known = [seconds for node in left if (seconds := estimates.seconds(node)) is not None]
    text = f"{rows}, {steps}, {len(left)} left"
    if known:
        text += f": about {duration(sum(known))}"
    if unknown := len(left) - len(known):
        text += f"{' and' if known else ':'} {unknown} whose time no earlier run tells"
    return f"{text}; then the timing, about {duration(timing)}."
