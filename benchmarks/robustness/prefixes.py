"""What shared beginnings save, and what a process of its own costs a step.

    python benchmarks/robustness/prefixes.py --out reports/robustness

Twelve chains that share prefixes run as one suite, and each on a store of its own, as if nothing
were shared; steps alone, without measuring and timing. Then steps that do next to nothing run in
processes of their own and in this one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import publish, table

from compress.benchmark.execute.executor import ChainJob
from compress.benchmark.execute.local_executor import InProcessExecutor, LocalExecutor
from compress.benchmark.execute.run_spec import Limits, RunSpec, spec_of
from compress.benchmark.plan.graph import Graph, make_graph
from compress.benchmark.plan.plan import Plan, make_plan
from compress.benchmark.plan.suite import Suite

TAUGHT = "distill(student='cnn-small(width=32)', epochs=6)"
CHAINS = (
    "train(epochs=10) -> quantize()",
    TAUGHT,
    f"{TAUGHT} -> quantize()",
    f"{TAUGHT} -> prune_weights(sparsity=0.5)",
    f"{TAUGHT} -> prune_weights(sparsity=0.5) -> finetune(epochs=3)",
    f"{TAUGHT} -> prune_weights(sparsity=0.5) -> finetune(epochs=3) -> quantize()",
    f"{TAUGHT} -> prune_channels(macs=0.5) -> finetune(epochs=3)",
    f"{TAUGHT} -> prune_channels(macs=0.5) -> finetune(epochs=3) -> quantize()",
    "prune_channels(macs=0.5) -> finetune(epochs=4)",
    "prune_channels(macs=0.5) -> finetune(epochs=4) -> quantize()",
    "factorize(rank=0.5) -> finetune(epochs=4)",
    "factorize(rank=0.5) -> finetune(epochs=4) -> quantize()",
)


def plan_of(chains: tuple[str, ...]) -> Plan:
    return make_plan(Suite("twelve", "digits", "cnn-small", chains, controls=False))


def spec(plan: Plan, graph: Graph, store: Path, folder: Path) -> RunSpec:
    return spec_of(plan, graph.setting, store, folder / "private", limits=Limits())


def steps(plan: Plan, graph: Graph, store: Path, folder: Path) -> float:
    """Run all steps of a graph that the store has not, in this process; return the seconds."""
    run = spec(plan, graph, store, folder)
    executor, stores = InProcessExecutor(plan, run, "asked for"), run.stores
    began = time.perf_counter()
    for chain_run in graph.chain_runs:
        for number, node in enumerate(chain_run.nodes[:-1]):
            if stores.get(node) is None:
                outcome = executor.run(ChainJob(*chain_run.key, number), "log")
                assert outcome.ok, outcome.error
    return time.perf_counter() - began


def sharing(folder: Path) -> list[tuple[object, ...]]:
    plan = plan_of(CHAINS)
    graph = make_graph(plan)
    together = steps(plan, graph, folder / "shared", folder)
    counts = [sum(not node.measures for node in graph.nodes.values())]
    apart, alone = 0.0, 0
    for number, chain in enumerate(CHAINS):
        own = plan_of(("train(epochs=10)", chain) if number else (chain,))
        wanted = make_graph(own)
        alone += sum(not node.measures for node in wanted.nodes.values())
        apart += steps(own, wanted, folder / f"own-{number}", folder)
    return [
        ("twelve chains as one suite", counts[0], f"{together:.1f}"),
        ("each chain for itself", alone, f"{apart:.1f}"),
        ("ratio", f"{alone / counts[0]:.2f}", f"{apart / together:.2f}"),
    ]


def isolation(folder: Path, repetitions: int = 20) -> list[tuple[object, ...]]:
    """Time steps that do next to nothing, here and in processes of their own, in turns."""
    chains = tuple(f"prune_weights(sparsity=0.{number:03d})" for number in range(1, 400))
    plan = plan_of(("train(epochs=1)", *chains))
    graph = make_graph(plan)
    run = spec(plan, graph, folder / "trivial", folder)
    executors = {
        "here": InProcessExecutor(plan, run, "asked for"),
        "apart": LocalExecutor(run, folder, folder),
    }
    assert executors["here"].run(ChainJob("baseline", 0, 0), "log").ok
    chain_runs = [chain_run for chain_run in graph.chain_runs if chain_run.row.chain is not None]
    took: dict[str, list[float]] = {"here": [], "apart": []}
    first = 0.0
    for number in range(2 * repetitions + 1):
        kind = "apart" if number % 2 == 0 else "here"
        began = time.perf_counter()
        outcome = executors[kind].run(ChainJob(*chain_runs[number].key, 0), "log")
        assert outcome.ok, outcome.error
        seconds = time.perf_counter() - began
        if number == 0:
            first = seconds
        else:
            took[kind].append(seconds)
    executors["apart"].close()
    medians = {kind: statistics.median(values) for kind, values in took.items()}
    return [
        ("a step that does next to nothing, in this process", f"{medians['here']:.3f}"),
        ("the same in a process of its own", f"{medians['apart']:.3f}"),
        ("cost of the process", f"{medians['apart'] - medians['here']:.3f}"),
        ("the first, which also starts the server (torch, data)", f"{first:.2f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        shared, cost = sharing(Path(place)), isolation(Path(place))
    publish(
        options.out / "prefixes.md",
        "Shared beginnings, and processes of their own",
        [
            table(("twelve chains", "steps", "seconds"), shared),
            table(("a process for every step", "seconds"), cost),
            "Medians of 20, the two ways in turns.\n",
        ],
        "python benchmarks/robustness/prefixes.py --out reports/robustness",
    )


if __name__ == "__main__":
    main()
