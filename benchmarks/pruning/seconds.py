"""How long pruning and factorizing take.

    python benchmarks/pruning/seconds.py [--threads 1] [NAME ...]

By default ResNet-50 at 224 px, random weights whose rows fall off (`subjects.py`),
256 calibration items, `prune_channels(macs=0.5)` and `factorize(macs=0.5)`: seconds of CPU time and
of the clock, and what was reached. On a busy machine the CPU time says more.
"""

from __future__ import annotations

import argparse
import time

import torch
from subjects import subject

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.system.environment import cpu_info
from compress.tasks.base import TensorSplit
from compress.techniques import chain

SIZE, ITEMS = 224, 256
STEPS = ("prune_channels(macs=0.5)", "factorize(macs=0.5)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["torchvision:resnet50"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step", action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{cpu_info()[0]}, {options.threads} threads")
    for name in options.names:
        for step in options.step or STEPS:
            given = subject(name, decaying=True, size=SIZE)
            raw = given.raw.repeat(ITEMS // len(given.raw), 1, 1, 1)
            items = TensorSplit((raw,), torch.zeros(len(raw), dtype=torch.int64))
            context = StepContext(given.task, calibration=items, log=StepLog())
            clock, cpu = time.perf_counter(), time.process_time()
            result = run(chain(step), given.model, context)
            clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
            macs = [counts.macs(one.module, one.example) for one in (result, given.model)]
            share = macs[0] / macs[1]
            print(f"{name} {step}: {cpu:.1f} s of CPU, {clock:.1f} s; {share:.3f} of the MACs left")
            for note in context.log.notes:
                print(f"  {note}")


if __name__ == "__main__":
    main()
