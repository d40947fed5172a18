"""What quantizing takes, in seconds and memory: ours beside the quantizers of others.

    python benchmarks/int8/cost.py --out reports/int8 [--root ../shared/data] [NAME ...]

ResNet-20 on 512 and 4,096 images of CIFAR-10, and DenseNet-121 with random weights on 16 and 200
photographs at 224 pixels. Each row is a process of its own. `GB` is the most that it held beyond
what it held with libraries, model and data in memory; ours without the search for what is faster in
float, whose seconds the user sets. NNCF and Quark take part where they are installed. Rows are kept
as they come, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import KeptRows, in_process, table_of, write_report
from nets import built, data_of

from compress.compressor import run, seed_everything
from compress.context import StepContext
from compress.deploy.export import export
from compress.errors import StepFailed
from compress.model import Model
from compress.tasks.base import Data, Subset, stacked_inputs
from compress.techniques import chain
from compress.zoo.data import load_data
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.weights import DEFAULT

PANEL = {"resnet20": (512, 4096), "torchvision:densenet121": (16, 200)}
CANDIDATES = (
    *("quantize(seconds=0, calibration={})", "ort_quantize(calibration={})"),
    *("nncf_quantize(calibration={})", "quark_quantize(calibration={})"),
)
PAUSE = 0.01
GIGA = 1e9


def here(candidate: str) -> bool:
    module = candidate.partition("_")[0]
    return module not in ("nncf", "quark") or find_spec(module) is not None


def setting(name: str, root: Path) -> tuple[Model, Data]:
    """Return a net and its data."""
    if ":" not in name:
        data = data_of(name)
        return Model(built(name, root), stacked_inputs(data.task, data.train, 2)), data
    known = pretrained(name, DEFAULT)
    assert known is not None, name
    data = load_data(f"imagefolder:{root / 'imagenet-sample'}", usual=known.settings)
    seed_everything(0)
    return fresh(name, data.task), data


class Watch(threading.Thread):
    """Looks, again and again, at how much memory this process holds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process()
        self.before = self.most = self.process.memory_info().rss
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(PAUSE):
            self.most = max(self.most, self.process.memory_info().rss)

    def end(self) -> float:
        """Return the most bytes held beyond those held at first."""
        self.over.set()
        self.join()
        return self.most - self.before


def tried(name: str, candidate: str, count: int, root: Path) -> dict[str, Any]:
    model, data = setting(name, root)
    export(model)  # all candidates need it, and the first export imports for seconds
    step = chain(candidate.format(count))
    source = data.calibration if count <= len(data.calibration) else data.train
    items = min(count, len(source))
    context = StepContext(
        data.task,
        calibration=Subset(source, torch.arange(items)),
        validation=data.validation,
    )
    watch = Watch()
    watch.start()
    started, computed = time.perf_counter(), time.process_time()
    error = ""
    try:
        run(step, model, context)
    except StepFailed as failure:
        error = str(failure)
    seconds, computed = time.perf_counter() - started, time.process_time() - computed
    return {
        "net": name,
        "candidate": candidate.partition("(")[0],
        "images": items,
        "seconds": round(seconds, 1),
        "processor seconds": round(computed, 1),
        "GB": round(watch.end() / GIGA, 2),
        "error": error,
    }


COLUMNS = ("net", "images", "candidate", "seconds", "processor seconds", "GB", "error")


def write(kept: KeptRows, out: Path) -> None:
    rows = kept.ordered(
        (name, count, candidate.partition("(")[0])
        for name, counts in PANEL.items()
        for count in counts
        for candidate in CANDIDATES
    )
    note = (
        "`GB`: the most held beyond libraries, model and data. `processor seconds` are those of "
        "all threads together, and hold on a busy machine, too, where `seconds` do not."
    )
    command = f"python benchmarks/int8/cost.py --out {out}"
    lines = [*table_of(COLUMNS, rows), "", note]
    write_report(out / "cost.md", "What quantizing takes", lines, rows, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--one", nargs=3, help="One row, in this process.")
    options = parser.parse_args()
    if options.one:
        name, candidate, count = options.one
        print(json.dumps(tried(name, candidate, int(count), options.root)))
        return
    kept = KeptRows(options.out / "cost.jsonl", "net", "images", "candidate")
    for name in options.names or PANEL:
        for count in PANEL[name]:
            for candidate in filter(here, CANDIDATES):
                if (name, count, candidate.partition("(")[0]) not in kept.read():
                    words = (name, candidate, str(count))
                    kept.add(in_process(__file__, words, options.root))
                    write(kept, options.out)
    write(kept, options.out)


if __name__ == "__main__":
    main()
