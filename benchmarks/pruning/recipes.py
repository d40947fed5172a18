"""Criteria and recipes of structured pruning at equal cost: the same MACs, items and seeds.

    python benchmarks/pruning/recipes.py --out reports/pruning [--root ../shared/data]
        [--net resnet20] [--items 5000] [--seeds 3] [--only TEXT]

CIFAR-10, a trained net. Every recipe is a chain; those that train see `items` training images twice
in all (the first ones of the training split), in bfloat16. Accuracy is that of the last epoch, on
all test items, of the module in float32. Rows are kept as they come, and the next run goes on from
there. Criteria are compared with `random`, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "int8"))

from nets import built, data_of

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.model import Model
from compress.system.environment import cpu_info
from compress.system.files import write_atomic
from compress.tasks.base import Data, Subset, stacked_inputs
from compress.techniques import chain
from compress.training import accuracy

SGD = "optimizer='sgd', learning_rate=0.01"
TRAINED = f"finetune(epochs=2, {SGD})"
ONE = f"finetune(epochs=1, {SGD})"
PRUNED, AS_CUT = "prune_channels(macs=0.5)", "prune_channels(macs=0.5, calibration=0)"
CRITERIA = ("l2", "l1", "bn_scale", "fpgm", "taylor", "fisher", "random")
RECIPES = {
    **{f"criterion {name}": f"prune_channels(macs=0.5, criterion='{name}') -> {TRAINED}"
       for name in CRITERIA},
    "untrained": PRUNED,
    "untrained, not fitted": AS_CUT,
    "not fitted": f"{AS_CUT} -> {TRAINED}",
    "in two rounds": f"repeat(2, {PRUNED} -> {ONE})",
    "sparsify first": f"sparsify(epochs=1) -> {PRUNED} -> {ONE}",
    "trained first": f"{ONE} -> {PRUNED} -> {ONE}",
    "distilled": f"{PRUNED} -> distill(epochs=2, {SGD})",
    "scope global, fisher":
        f"prune_channels(macs=0.5, criterion='fisher', scope='global') -> {TRAINED}",
}  # fmt: skip


def context_of(data: Data, model: Model, items: int, seed: int) -> StepContext:
    train = Subset(data.train, torch.arange(min(items, len(data.train))))
    return StepContext(
        task=data.task,
        train=train,
        validation=data.validation,
        calibration=data.calibration,
        teacher=model,
        precision="bfloat16",
        seed=seed,
        log=StepLog(),
    )


def row_of(text: str, model: Model, data: Data, items: int, seed: int) -> dict[str, Any]:
    context = context_of(data, model, items, seed)
    started = time.perf_counter()
    result = run(chain(text), model, context)
    seconds = time.perf_counter() - started
    example = model.example
    return {
        "accuracy": accuracy(result.module, data.task, data.test, torch.device("cpu")),
        "macs": counts.macs(result.module, example) / counts.macs(model.module, example),
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]], net: str, items: int) -> str:
    mine = [row for row in rows if (row["net"], row["items"]) == (net, items)]
    count = 1 + max((row["seed"] for row in mine), default=0)
    command = f"--out reports/pruning --net {net} --items {items} --seeds {count}"
    left = [name for name in RECIPES if name not in {row["name"] for row in mine}]
    lines = [
        f"# Criteria and recipes, {net} on CIFAR-10",
        "",
        f"`python benchmarks/pruning/recipes.py {command}`, {cpu_info()[0]}. Accuracy after the "
        f"last epoch, on all test items: the mean over seeds and their range. Not run yet: "
        f"{', '.join(left) or 'none'}.",
        "",
        "| recipe | chain | MACs kept | seeds | accuracy % | over `random`, points |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for row in mine:
        by_name.setdefault(row["name"], {})[row["seed"]] = row
    control = by_name.get("criterion random", {})
    for name, seeds in by_name.items():
        values = [100 * row["accuracy"] for row in seeds.values()]
        spread = f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        gains = [
            100 * (seeds[seed]["accuracy"] - control[seed]["accuracy"])
            for seed in seeds.keys() & control.keys()
        ]
        trained = "finetune" in next(iter(seeds.values()))["chain"] and name != "criterion random"
        over = f"{statistics.mean(gains):+.2f}" if gains and trained else "-"
        first = next(iter(seeds.values()))
        cells = [name, f"`{first['chain']}`", f"{first['macs']:.3f}", str(len(seeds)), spread, over]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--net", choices=("resnet20", "resnet56"), default="resnet20")
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="recipes whose name has this in it")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data = data_of(given.net)
    model = Model(built(given.net, given.root), stacked_inputs(data.task, data.train, 2))
    kept = given.out / "recipes.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    done = {(row["net"], row["items"], row["name"], row["seed"], row["chain"]) for row in rows}
    for seed in range(given.seeds):
        for name, text in RECIPES.items():
            key = {"net": given.net, "items": given.items, "name": name, "seed": seed}
            changes = "finetune" in text or "distill" in text
            skip = (*key.values(), text) in done or (seed and not changes)
            if skip or given.only not in name:
                continue
            rows.append({**key, "chain": text, **row_of(text, model, data, given.items, seed)})
            write_atomic(kept, json.dumps(rows, indent=1) + "\n")
            write_atomic(given.out / "recipes.md", table(rows, given.net, given.items))
            print(name, seed, rows[-1]["accuracy"], rows[-1]["seconds"], flush=True)
    write_atomic(given.out / "recipes.md", table(rows, given.net, given.items))


if __name__ == "__main__":
    main()
