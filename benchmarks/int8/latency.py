"""What int8 gains in latency: ours beside the quantizers of others, against the fastest float.

    python benchmarks/int8/latency.py --out reports/int8 [--root ../shared/data] [NAME ...]

Ten nets at 224 pixels, batch 1, all cores. Weights are random, and batch norms have the statistics
of photographs. All files of a net are timed in one interleaved run of fresh processes, the float
file at each of the optimization levels of the runtime. NNCF and Quark take part where they are
installed. Rows are kept as they come, and the next run goes on from there. `--files FOLDER` keeps
the files of all candidates but `quantize()`, which measures while it makes its own; with `--make`
nothing is timed, so that this need not be done on a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import KeptRows, Row, table, write_report
from speedups import FLOAT, speedup_of, timings_of, words

from compress.compressor import run, seed_everything
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.session import arrays
from compress.model import Model
from compress.system.amounts import decimal
from compress.system.files import write_atomic
from compress.tasks.base import Data, Split, Subset, Tensors, prepared_batches
from compress.techniques import chain
from compress.techniques.int8_placement import mostly_float
from compress.timing.executed import executed
from compress.zoo.data import load_data
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.weights import DEFAULT

NETS = (
    *("torchvision:resnet18", "torchvision:resnet50", "torchvision:vgg11_bn"),
    *("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0"),
    *("torchvision:vit_b_16", "torchvision:convnext_tiny", "torchvision:shufflenet_v2_x1_0"),
    "timm:tf_efficientnet_lite0",
)
CALIBRATION = 16
PLACED, WHOLE = "quantize()", "quantize(seconds=0)"
PEERS = ("ort_quantize()", "ort_quantize(defaults=True)", "nncf_quantize()", "quark_quantize()")
CANDIDATES = (PLACED, WHOLE, *PEERS)


def here(candidate: str) -> bool:
    """Whether what a candidate needs is installed."""
    module = candidate.partition("_")[0]
    return module not in ("nncf", "quark") or find_spec(module) is not None


def normalize(module: nn.Module, inputs: Tensors) -> None:
    """Give batch norms the statistics of photographs, so that activations are of a usual size."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        module(*inputs)
    module.eval()


@dataclass(frozen=True)
class Subject:
    """A net, its float file, and the items that candidates calibrate on."""

    name: str
    data: Data
    model: Model
    items: Split
    inputs: Tensors
    content: bytes

    @classmethod
    def of(cls, name: str, root: Path) -> Subject:
        known = pretrained(name, DEFAULT)
        assert known is not None, name
        data = load_data(f"imagefolder:{root / 'imagenet-sample'}", usual=known.settings)
        seed_everything(0)
        model = fresh(name, data.task)
        items = Subset(data.calibration, torch.arange(CALIBRATION))
        [inputs] = [inputs for inputs, _ in prepared_batches(data.task, items, CALIBRATION)]
        normalize(model.module, inputs)
        return cls(name, data, model, items, inputs, export(model))

    def lowered(self, candidate: str) -> tuple[bytes, float]:
        """Return the file that a candidate makes, and the seconds that it takes."""
        started = time.perf_counter()
        context = StepContext(self.data.task, calibration=self.items, log=StepLog())
        made = run(chain(candidate), self.model, context).onnx
        assert made is not None
        return made, round(time.perf_counter() - started, 1)

    def kept(self, candidate: str, folder: Path | None) -> tuple[bytes, float]:
        """Return what a candidate makes, from the folder if it is there already."""
        if folder is None or candidate == PLACED:
            return self.lowered(candidate)
        key = hashlib.sha256(f"{self.name} {candidate}".encode()).hexdigest()
        file, took = folder / f"{key}.onnx", folder / f"{key}.json"
        if not took.exists():
            made, seconds = self.lowered(candidate)
            write_atomic(file, made)
            write_atomic(took, json.dumps({"candidate": candidate, "seconds": seconds}))
        return file.read_bytes(), json.loads(took.read_text())["seconds"]


def make(name: str, root: Path, folder: Path) -> None:
    """Have the files of a net that need no quiet machine in a folder."""
    subject = Subject.of(name, root)
    for candidate in filter(here, CANDIDATES):
        if candidate != PLACED:
            _, seconds = subject.kept(candidate, folder)
            print(name, candidate, seconds, flush=True)


def tried(name: str, root: Path, seconds: float, folder: Path | None) -> dict[str, Any]:
    subject = Subject.of(name, root)
    content, inputs = subject.content, subject.inputs
    files, took = {FLOAT: content}, {}
    for candidate in filter(here, CANDIDATES):
        files[candidate], took[candidate] = subject.kept(candidate, folder)
    samples = arrays(tuple(tensor[:8] for tensor in inputs))
    timings = timings_of(files, samples, seconds)
    row: dict[str, Any] = {"net": name, "float ms": timings[FLOAT].p50_ms}
    for one in took:
        found: dict[str, Any] = {"error": timings[one].error}
        if speedup := speedup_of(timings[one]):
            found = {"speedup": speedup}
        share = executed(files[one], arrays(tuple(t[:1] for t in inputs))).int8_macs_share
        found |= {
            "bytes": round(len(files[one]) / len(content), 3),
            "int8 MACs": None if share is None else round(share, 3),
            "seconds": took[one],
        }
        row[one] = found
    return row


def geometric(rows: list[dict[str, Any]], candidate: str) -> str:
    """Return the geometric mean of speed-ups; a mostly float file counts as 1."""
    values = []
    for row in rows:
        one = row.get(candidate, {})
        if "speedup" not in one:
            return ""
        mostly = mostly_float(one["int8 MACs"], one["bytes"])
        values.append(min(1.0, one["speedup"][0]) if mostly else one["speedup"][0])
    return f"{np.exp(np.log(values).mean()):.2f}"


def write(rows: list[Row], out: Path, seconds: float) -> None:
    """Write the table; a folder holds the rows of one machine."""
    body = []
    for row in rows:
        cells = [row["net"], f"{row['float ms']:.2f}"]
        for one in CANDIDATES:
            found = row.get(one, {"error": "not run"})
            if "speedup" in found:
                mostly = mostly_float(found["int8 MACs"], found["bytes"])
                cells.append(words(found["speedup"]) + ", mostly float" * mostly)
            else:
                cells.append(found["error"])
        ours = row[PLACED]
        body.append([*cells, ours["int8 MACs"], ours["bytes"], ours["seconds"]])
    means = [geometric(rows, one) for one in CANDIDATES]
    body.append(["geometric mean", "", *means, "", "", ""])
    columns = ("net", "float ms", *CANDIDATES, "int8 MACs", "bytes", "seconds to quantize")
    lines = [
        *table(columns, body),
        "",
        "Speed-ups over the fastest float file, with 95 % intervals. A file with less than 80 % of",
        "its MACs in int8, or over 0.35 of the float bytes, is mostly float, and counts as at most",
        "1 in the mean. Weights are random, so there is no accuracy to bound: `quantize()` has no",
        "validation items here. The mean is left out where a candidate lacks a net.",
        "",
        f"{len(rows)} of {len(NETS)} nets so far.",
    ]
    budget = f"--timing-seconds {decimal(seconds)}"
    command = f"python benchmarks/int8/latency.py --out {out} {budget}"
    write_report(out / "latency.md", "int8 latency at 224 pixels, batch 1", lines, rows, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--timing-seconds", type=float, default=40)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--make", action="store_true", help="Time nothing; needs --files.")
    parser.add_argument("--table", action="store_true", help="Write the table of what there is.")
    options = parser.parse_args()
    if options.files is not None:
        options.files.mkdir(parents=True, exist_ok=True)
    elif options.make:
        parser.error("--make needs --files")
    kept = KeptRows(options.out / "latency.jsonl", "net")
    every = [(name,) for name in NETS]
    for name in [] if options.table else options.names or NETS:
        if (name,) in kept.read() and not options.names:
            continue
        if options.make:
            make(name, options.root, options.files)
        else:
            kept.add(tried(name, options.root, options.timing_seconds, options.files))
            write(kept.ordered(every), options.out, options.timing_seconds)
    if not options.make:
        write(kept.ordered(every), options.out, options.timing_seconds)


if __name__ == "__main__":
    main()
