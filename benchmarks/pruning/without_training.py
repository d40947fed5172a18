"""What pruning leaves of a trained net's accuracy where nothing is trained after it.

    python benchmarks/pruning/without_training.py --out reports/pruning [--root ../shared/data]
        [--table] [NET ...]

CIFAR-10 nets, and EfficientNet-Lite0 at 224 px on photographs: at several fractions of their MACs
as they are cut; with the statistics of batch norms estimated anew on 256 calibration items, which
is the usual remedy; as `prune_channels` does by default, with the layers that are left refitted on
the same items; by the criterion that looks at what readers lose; and as `search` finds widths and
blocks, where there are labels to judge them by. Channels chosen at random are the control. Accuracy
is that of the float32 module on all test items; rows are kept as they come, and the next run goes
on from there. `--table` writes the report of those that there are.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "int8"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from accuracy import setting
from kept_rows import KeptRows, Row, table_of, write_report

from compress import counts, training
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.int8.calibration import Calibration
from compress.model import Model
from compress.tasks.base import Data
from compress.techniques import chain
from compress.training.batch_norms import BATCH, batch_norms, reestimate

NETS = ("resnet20", "resnet56", "mobilenetv2-x05", "vit-tiny", "lite0")
FRACTIONS = (0.8, 0.5)
ITEMS = 256
STATISTICS, SEARCHED = "statistics anew", "searched, refitted"
WAYS = {
    "as it is cut": "prune_channels(macs={}, calibration=0)",
    STATISTICS: "prune_channels(macs={}, calibration=0)",
    "refitted": "prune_channels(macs={})",
    "refitted, channels at random": "prune_channels(macs={}, criterion='random')",
    "refitted, by reconstruction": "prune_channels(macs={}, criterion='reconstruction')",
    SEARCHED: "search(macs={}, candidates=64, judged=1000)",
}
COLUMNS = ("net", "MACs", "way", "accuracy %", "lost", "s")


def row_of(name: str, model: Model, data: Data, fraction: float, way: str) -> Row:
    context = StepContext(
        data.task,
        train=data.train,
        validation=data.validation,
        calibration=data.calibration,
        log=StepLog(),
    )
    started = time.perf_counter()
    result = run(chain(WAYS[way].format(fraction)), model, context)
    if way == STATISTICS:
        items = context.calibration_items(ITEMS)
        reestimate(result.module, Calibration(data.task, items, min(BATCH, len(items) // 2)))
    seconds = time.perf_counter() - started
    macs = [counts.macs(one.module, one.example) for one in (result, model)]
    return {
        "net": name,
        "kept": fraction,
        "way": way,
        "MACs": round(macs[0] / macs[1], 3),
        "accuracy %": percent(result, data),
        "s": round(seconds, 1),
    }


def percent(model: Model, data: Data) -> float:
    return round(
        100 * training.accuracy(model.module, data.task, data.test, torch.device("cpu")), 2
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    kept = KeptRows(options.out / "without_training.jsonl", "net", "kept", "way")
    for name in () if options.table else options.nets or NETS:
        model, data = setting(name, options.root)
        if (name, 1.0, "whole") not in kept.read():
            whole = {"net": name, "kept": 1.0, "way": "whole", "MACs": 1.0}
            kept.add({**whole, "accuracy %": percent(model, data)})
        for fraction in FRACTIONS:
            for way in WAYS:
                cannot = way == STATISTICS and not batch_norms(model.module)
                cannot = cannot or (way == SEARCHED and bool(data.untrainable))
                if (name, fraction, way) not in kept.read() and not cannot:
                    kept.add(row_of(name, model, data, fraction, way))
    every = [(n, 1.0, "whole") for n in NETS]
    every += [(n, f, w) for n in NETS for f in FRACTIONS for w in WAYS]
    rows = kept.ordered(sorted(every, key=lambda one: NETS.index(one[0])))
    whole = {row["net"]: row["accuracy %"] for row in rows if row["way"] == "whole"}
    lost = [{**row, "lost": f"{row['accuracy %'] - whole[row['net']]:+.2f}"} for row in rows]
    title = "Pruned, and not trained"
    command = "python benchmarks/pruning/without_training.py --out reports/pruning"
    write_report(options.out / "without_training.md", title, table_of(COLUMNS, lost), rows, command)


if __name__ == "__main__":
    main()
