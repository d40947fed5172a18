"""What a run would do: the graph as a tree, what is done, and an estimate of what is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.benchmark.plan.graph import ChainRun, Graph, Node, make_graph
from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.store import Store
from compress.compressor import Compressor, leaves
from compress.system.amounts import duration
from compress.training import Training

WIDTH = 76
"""Columns of a step's text; behind it stands how far it is."""


@dataclass(frozen=True)
class Known:
    """Seconds that were measured before, of steps in the store and of measuring rows."""

    exact: Mapping[str, float]
    """Text of a step -> seconds, the mean over its results (other seeds, other inputs)."""
    epochs: Mapping[tuple[str, str], float]
    """Technique and student ('' for none) -> seconds of an epoch."""
    measuring: float | None

    def seconds(self, node: Node) -> float | None:
        """Return how long a node may take; None where nothing like it was done."""
        if node.step is None:
            return self.measuring
        if node.text in self.exact:
            return self.exact[node.text]
        cost = [self._epochs(step, times) for step, times in leaves(node.step)]
        return None if not cost or None in cost else sum(c for c in cost if c is not None)

    def _epochs(self, step: Compressor, times: int) -> float | None:
        if not isinstance(step, Training):
            found = self.exact.get(repr(step))
            return None if found is None else found * times
        rate = self.epochs.get(_kind(step))
        return None if rate is None else rate * step.epochs * times


def _kind(step: Compressor) -> tuple[str, str]:
    return step.name(), ",".join(sorted(step.students))


def known(store: Store, graph: Graph) -> Known:
    """Read from the store how long things took."""
    steps = {node.text: node.step for node in graph.nodes.values() if node.step is not None}
    exact: dict[str, list[float]] = defaultdict(list)
    epochs: dict[tuple[str, str], list[float]] = defaultdict(list)
    measuring: list[float] = []
    for about in store.told():
        if "record" in about:
            rows: Iterable[Mapping[str, Any]] = about["record"]["log"]
            measuring += [row["seconds"] for row in rows if row["kind"] == "measuring"]
            continue
        if "step" not in about:
            continue  # what a step keeps beside its result
        taken = [row["seconds"] for row in about["step_log"] if row["kind"] == "step"]
        exact[about["step"]].append(sum(taken))
        step = steps.get(about["step"])
        if isinstance(step, Training) and taken:
            epochs[_kind(step)].append(sum(taken) / step.epochs)
    return Known(
        {text: _mean(values) for text, values in exact.items()},
        {kind: _mean(values) for kind, values in epochs.items()},
        _mean(measuring) if measuring else None,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


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
    guess = known(store, graph)
    lines = []
    for seed in plan.suite.seeds:
        title = plan.suite.name + (f", seed {seed}" if len(plan.suite.seeds) > 1 else "")
        lines += [
            title,
            *_tree(
                [chain_run for chain_run in graph.chain_runs if chain_run.seed == seed], done, guess
            ),
        ]
    left = [node for key, node in graph.nodes.items() if key not in done]
    lines += ["", _sum(graph, left, guess, plan.suite.timing_seconds)]
    return "\n".join(lines)


def _tree(chain_runs: list[ChainRun], done: set[str], guess: Known) -> list[str]:
    """Return a line per node; what several chain runs share stands once, as their common stem."""
    lines: list[str] = []

    def grow(group: list[tuple[str, tuple[Node, ...]]], indent: int) -> None:
        branches: dict[str, list[tuple[str, tuple[Node, ...]]]] = {}
        for row, nodes in group:
            branches.setdefault(nodes[0].key, []).append((row, nodes))
        for members in branches.values():
            row, nodes = members[0]
            node = nodes[0]
            text = f"= {row}" if node.measures else node.text
            state = "done" if node.key in done else _about(guess.seconds(node))
            lines.append(f"{_cut('  ' * indent + text):<{WIDTH}}  {state}")
            rest = [(r, n[1:]) for r, n in members if len(n) > 1]
            if rest:
                grow(rest, indent + 1)

    grow([(chain_run.row.text, chain_run.nodes) for chain_run in chain_runs], 1)
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def _about(seconds: float | None) -> str:
    return "left, unknown" if seconds is None else f"left, about {duration(seconds)}"


def _sum(graph: Graph, left: list[Node], guess: Known, timing: float) -> str:
    steps, rows = len(graph.nodes), len(graph.chain_runs)
    if not left:
        return f"{rows} rows, all computed; what is left is the timing, about {duration(timing)}."
    known_seconds = [s for node in left if (s := guess.seconds(node)) is not None]
    unknown = len(left) - len(known_seconds)
    text = f"{rows} rows, {steps} results, {len(left)} left"
    if known_seconds:
        text += f": about {duration(sum(known_seconds))}"
    if unknown:
        text += f"{' and' if known_seconds else ':'} {unknown} of which nothing like it was done"
    return f"{text}; then the timing, about {duration(timing)}."
