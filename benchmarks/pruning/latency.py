"""Is a net pruned for latency faster than one that Torch-Pruning makes at equal MACs?

    python benchmarks/pruning/latency.py --out reports/pruning [--macs 0.5] [NAME ...]

For each net at 224 px (random weights; times do not depend on them): `prune_channels(latency=...)`
at a latency found by bisection so that the MACs are those asked for (±2 %, one counter), and plain
Torch-Pruning (`MagnitudePruner`, output ignored) with `round_to` of 1, 8 and 16 at the ratio that
gives the same MACs. All files of a net are then timed in turns in one run, in fresh processes
(`timing.trial`), and each row has the speed-up over the whole net and the share of the MACs' gain
that became a gain in time: (speed-up - 1) / (MACs ratio - 1). Accuracy is not measured: the nets
are not trained. Needs a quiet machine: nothing else may run. Rows are kept as they come, and the
next run goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.session import arrays
from compress.errors import StepFailed
from compress.model import Model
from compress.surgery import output_layers
from compress.system.environment import cpu_info, cpu_threads
from compress.system.files import write_atomic
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.timing.trial import seconds_of
from compress.zoo.models import fresh

NETS = ("torchvision:resnet18", "torchvision:mobilenet_v2", "timm:tf_efficientnet_lite0")
ROUNDED = (1, 8, 16)
NEAR = 0.02
"""By how much of the MACs that are asked for those of a row may differ."""
HALVINGS = 8
PROCESSES = 5
SIZE = 224
OURS = "prune_channels(latency=...)"
WHOLE = "whole"


class Memory:
    """A step's cache that lives as long as this process, so that no layer is timed twice."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def get(self, key: str, temporary: bool = False) -> Any:
        return self.known.get(key)

    def put(self, key: str, fill: Callable[[Path], Any], temporary: bool = False) -> Any:
        self.known[key] = type("Entry", (), {"about": fill(Path()), "folder": Path()})()
        return self.known[key]

    def drop(self, key: str) -> None:
        self.known.pop(key, None)


def prepared(name: str, size: int) -> Model:
    """Return a net with random weights whose batch norms saw some noise."""
    torch.manual_seed(0)
    levels = ((0.5,) * 3, (0.25,) * 3)
    task = ImageClassification(
        "made", tuple(map(str, range(1000))), Preprocessing(3, (size, size), *levels)
    )
    model = fresh(name, task)
    with torch.no_grad():
        model.module.train()
        model.module(torch.randn(8, 3, size, size))
    return Model(model.module.eval(), (torch.randn(2, 3, size, size),))


def share(module: nn.Module, model: Model) -> float:
    return counts.macs(module, model.example) / counts.macs(model.module, model.example)


def bisected(make: Callable[[float], nn.Module | None], model: Model, macs: float) -> nn.Module:
    """Return what a setting in (0, 1), more of which keeps more, makes at the MACs asked for.

    The nearest of all that were tried, where none is near; the report marks it. Exits where every
    setting is refused.
    """
    low, high = 0.0, 1.0
    tried: list[tuple[float, nn.Module]] = []
    setting = macs
    for _ in range(HALVINGS):
        if (module := make(setting)) is None:
            low = setting
        else:
            reached = share(module, model)
            tried.append((abs(reached - macs), module))
            if tried[-1][0] <= NEAR * macs:
                break
            low, high = (low, setting) if reached > macs else (setting, high)
        setting = (low + high) / 2
    if not tried:
        raise SystemExit(
            f"every setting down to {setting:.3f} was refused: {macs} cannot be reached"
        )
    return min(tried, key=lambda one: one[0])[1]


def ours(model: Model, macs: float) -> nn.Module:
    task = ImageClassification(
        "made", ("0", "1"), Preprocessing(3, (8, 8), (0.5,) * 3, (0.25,) * 3)
    )
    context = StepContext(task, log=StepLog(), cache=Memory())  # type: ignore[arg-type]

    def make(latency: float) -> nn.Module | None:
        try:
            step = chain(f"prune_channels(latency={latency!r}, calibration=0)")
            return run(step, model, context).module
        except StepFailed:
            return None

    return bisected(make, model, macs)


def torch_pruning(model: Model, macs: float, rounded: int) -> nn.Module:
    import torch_pruning

    def make(keeps: float) -> nn.Module:
        module = copy.deepcopy(model.module)
        ignored = [module.get_submodule(path) for path in output_layers(module, model.example)]
        torch_pruning.pruner.MagnitudePruner(
            module,
            model.example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=1 - keeps,
            ignored_layers=ignored,
            round_to=rounded,
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        ).step()
        return module.eval()

    return bisected(make, model, macs)


def rows_of(name: str, macs: float, seconds: float, size: int) -> list[dict[str, Any]]:
    model = prepared(name, size)
    started = time.perf_counter()
    modules = {WHOLE: model.module, OURS: ours(model, macs)}
    taken = {OURS: time.perf_counter() - started}
    for rounded in ROUNDED:
        started = time.perf_counter()
        row = f"Torch-Pruning, round_to={rounded}"
        modules[row] = torch_pruning(model, macs, rounded)
        taken[row] = time.perf_counter() - started
    files = {row: export(replace(model, module=module)) for row, module in modules.items()}
    ratios: dict[str, list[float]] = {row: [] for row in files}
    for number in range(PROCESSES):
        found = seconds_of(files, arrays(model.example), seconds / PROCESSES, seed=number)
        for row, values in found.items():
            ratios[row].append(float(np.median(found[WHOLE] / values)))
    rows = []
    for row, module in modules.items():
        kept, speedup = share(module, model), statistics.median(ratios[row])
        gain = (speedup - 1) / (1 / kept - 1) if kept < 1 else None
        rows.append(
            {
                "net": name,
                "by": row,
                "macs": kept,
                "speedup": speedup,
                "least": min(ratios[row]),
                "most": max(ratios[row]),
                "gain": gain,
                "prepared_seconds": taken.get(row),
                "size": size,
                "target": macs,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Pruned for latency, and by Torch-Pruning at equal MACs",
        "",
        f"`python benchmarks/pruning/latency.py --out reports/pruning`, {cpu_info()[0]}, "
        f"{cpu_threads()} threads, one item of {rows[0]['size']} px; medians of {PROCESSES} "
        f"processes, and their range.",
        "",
        "| net | by | MACs kept | speed-up | of the MACs' gain |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["by"] != WHOLE:
            spread = f"{row['speedup']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
            near = abs(row["macs"] - row["target"]) <= NEAR * row["target"]
            macs = f"{row['macs']:.3f}" + ("" if near else " (!)")
            gain = "-" if row["gain"] is None else f"{row['gain']:.0%}"
            cells = [row["net"], row["by"], macs, spread, gain]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"(!): over {NEAR:.0%} off the MACs asked for, so not at equal MACs."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=NETS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--size", type=int, default=SIZE)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "latency.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for name in given.names:
        if any((r["net"], r["target"], r["size"]) == (name, given.macs, given.size) for r in rows):
            continue
        rows += rows_of(name, given.macs, given.seconds, given.size)
        write_atomic(kept, json.dumps(rows, indent=1) + "\n")
        write_atomic(given.out / "latency.md", table(rows))
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
