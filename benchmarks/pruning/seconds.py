"""How long pruning and factorizing take.

    python benchmarks/pruning/seconds.py --out reports/pruning [--threads 1] [NAME ...]

By default ResNet-50 at 224 px, random weights whose rows fall off (`subjects.py`),
256 calibration items, `prune_channels(macs=0.5)` and `factorize(macs=0.5)`: seconds of CPU time and
of the clock, and what was reached. On a busy machine the CPU time says more.
"""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
import time
from pathlib import Path

import torch
from subjects import subject

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import Row, machine, table_of, write_report

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.system.memory import reuse_freed_memory
from compress.tasks.base import TensorSplit
from compress.techniques import chain

SIZE, ITEMS = 224, 256
COLUMNS = ("net", "step", "s of CPU", "s", "MACs left", "notes")
STEPS = ("prune_channels(macs=0.5)", "factorize(macs=0.5)")


def row_of(name: str, step: str) -> Row:
    given = subject(name, decaying=True, size=SIZE)
    raw = given.raw.repeat(ITEMS // len(given.raw), 1, 1, 1)
    items = TensorSplit((raw,), torch.zeros(len(raw), dtype=torch.int64))
    context = StepContext(given.task, calibration=items, log=StepLog())
    clock, cpu = time.perf_counter(), cpu_seconds()
    result = run(chain(step), given.model, context)
    clock, cpu = time.perf_counter() - clock, cpu_seconds() - cpu
    macs = [counts.macs(one.module, one.example) for one in (result, given.model)]
    return {
        "net": name,
        "step": f"`{step}`",
        "s of CPU": round(cpu, 1),
        "s": round(clock, 1),
        "MACs left": round(macs[0] / macs[1], 3),
        "notes": " ".join(context.log.notes),
        "cpu": machine(),
    }


def cpu_seconds() -> float:
    """Return the processor time of this process and of those it waited for, which time files."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["torchvision:resnet50"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step", action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reuse_freed_memory()  # as processes of steps do
    rows = []
    for name in options.names:
        for step in options.step or STEPS:
            rows.append(row_of(name, step))
            print(rows[-1], flush=True)
    lines = [
        *table_of(COLUMNS, rows),
        "",
        f"{options.threads} thread{'s' * (options.threads > 1)}, {SIZE} px, {ITEMS} items. The CPU "
        f"time says more than the clock's where other work runs beside it. `factorize` times the "
        f"file that it makes beside the one that entered, which is in its seconds.",
    ]
    command = shlex.join(["python", *sys.argv])
    write_report(
        options.out / "seconds.md", "How long pruning and factorizing take", lines, rows, command
    )


if __name__ == "__main__":
    main()
