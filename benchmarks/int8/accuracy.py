"""What int8 costs in accuracy: ours beside the quantizers of others.

    python benchmarks/int8/accuracy.py --out reports/int8 [--root ../shared/data] [NAME ...]

CIFAR-10 nets, their hardened twins (the same function, channels rescaled), and EfficientNet-Lite0
on the photographs that calibration does not use. NNCF and Quark take part where they are
installed. Every candidate is one file made
from the same calibration images, ours without placement by latency; answers are counted on all test
items. Rows are kept as they come, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import KeptRows, Row, in_process, table, table_of, write_report
from nets import CIFAR, TWINS, built, data_of, twin

from compress.compressor import run
from compress.context import StepContext
from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.errors import StepFailed
from compress.int8.calibration import Calibration
from compress.int8.lower import lower
from compress.int8.settings import Settings
from compress.model import Model
from compress.system.amounts import decimal
from compress.tasks.base import Data, prepared_batches, stacked_inputs
from compress.techniques import chain
from compress.zoo.data import load_data
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.weights import DEFAULT, load_weights

CALIBRATION = 256
BATCH = 32
LITE = "timm:tf_efficientnet_lite0"
SIGMAS = (0.5, 1.0, 1.5, 2.0)
UNOPTIMIZED = 1000
"""Items that are answered without graph optimizations, too."""


ADAROUND = "quark_quantize(adaround=True)"
STEPS = (
    *("ort_quantize(defaults=True)", "ort_quantize()"),
    *("nncf_quantize()", "nncf_quantize(preset='mixed')", "nncf_quantize(accurate=True)"),
    *("nncf_quantize(transformer=True)", "quark_quantize()", ADAROUND),
    *("quantize(seconds=0)", "quantize(seconds=0, max_drop=None)"),
)
ABLATIONS: dict[str, dict[str, Any]] = {
    "without equalization": {"equalize": False},
    "without compensated rounding": {"compensate": False},
    "without bias correction": {"correct": False},
    "with ranges of extremes": {"method": "minmax"},
}
CANDIDATES = (*STEPS, *ABLATIONS)
SLOW = (ADAROUND, "nncf_quantize(accurate=True)")
"""These take minutes, and are tried on some nets alone."""
FEW = ("resnet20", "mobilenetv2-x05", "resnet20 twin 2/0", "lite0")


def tries(name: str, candidate: str) -> bool:
    """Whether a candidate can be had here, and is meant for a net."""
    if candidate.startswith(("nncf", "quark")) and not find_spec(candidate.partition("_")[0]):
        return False
    if "transformer" in candidate:
        return name.startswith("vit")
    return candidate not in SLOW or name in FEW


def names() -> list[str]:
    found = []
    for name in CIFAR:
        found.append(name)
        if name in TWINS:
            found += [
                f"{name} twin {decimal(sigma)}/{seed}" for sigma in SIGMAS for seed in (0, 1, 2)
            ]
    return [*found, "lite0"]


def setting(name: str, root: Path) -> tuple[Model, Data]:
    """Return a net and its data."""
    if name == "lite0":
        known = pretrained(LITE, DEFAULT)
        assert known is not None
        data = load_data(f"imagefolder:{root / 'imagenet-sample'}", usual=known.settings)
        model = fresh(LITE, data.task)
        load_weights(
            model.module, str(root / "weights" / "tf_efficientnet_lite0-imagenet.safetensors"), LITE
        )
        return model, data
    plain, _, of = name.partition(" twin ")
    module = built(plain, root)
    if of:
        sigma, seed = of.split("/")
        other = twin(plain, module, float(sigma), int(seed))
        assert other is not None
        module = other
    data = data_of(plain)
    return Model(module, stacked_inputs(data.task, data.train, 2)), data


def tried(name: str, candidate: str, root: Path) -> dict[str, Any]:
    model, data = setting(name, root)
    content = export(model)
    test = [x for x, _ in prepared_batches(data.task, data.test, BATCH)]
    targets = torch.cat([y for _, y in data.test.batches(BATCH)]).numpy()
    before = predict(session(content), test)
    started = time.perf_counter()
    try:
        made = lowered(model, data, candidate)
    except StepFailed as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    after = predict(session(made), test)
    plain = predict(session(made, optimize=False), test[: UNOPTIMIZED // BATCH + 1])
    right_before, right_after = before.argmax(1) == targets, after.argmax(1) == targets
    lost = int((right_before & ~right_after).sum())
    won = int((right_after & ~right_before).sum())
    spread = ((before - before.mean(0)) ** 2).sum()
    return {
        "items": len(targets),
        "float": round(100 * float(right_before.mean()), 2),
        "int8": round(100 * float(right_after.mean()), 2),
        "lost": lost,
        "won": won,
        "p": float(binomtest(won, lost + won).pvalue) if lost + won else 1.0,
        "as float": round(100 * float((before.argmax(1) == after.argmax(1)).mean()), 2),
        "SQNR": round(10 * float(np.log10(spread / ((before - after) ** 2).sum())), 1),
        "unoptimized": round(
            100 * float((plain.argmax(1) == after[: len(plain)].argmax(1)).mean()), 2
        ),
        "bytes": round(len(made) / len(content), 3),
        "seconds": round(seconds, 1),
        "GB": round(memory, 2),
    }


def lowered(model: Model, data: Data, candidate: str) -> bytes:
    """Return the int8 file that a candidate makes of a net."""
    context = StepContext(data.task, calibration=data.calibration, validation=data.validation)
    if candidate in ABLATIONS:
        calibration = Calibration(data.task, context.calibration_items(CALIBRATION))
        return lower(export(model), calibration, Settings(**ABLATIONS[candidate])).content
    made = run(chain(candidate), model, context).onnx
    assert made is not None
    return made


COLUMNS = (
    *("float", "int8", "lost", "won", "as float", "SQNR", "unoptimized", "bytes", "seconds"),
    *("GB", "error"),
)


def write(rows: list[Row], out: Path) -> None:
    lines = table_of(("net", "candidate", *COLUMNS), rows)
    lines += ["", "## Points lost, by candidate", ""]
    losses = [[candidate, *_losses(rows, candidate)] for candidate in CANDIDATES]
    lines += table(("candidate", "plain nets: mean", "worst", "twins: mean", "worst"), losses)
    lines += [
        "",
        "`lost` and `won` are answers that were right and are wrong, and the reverse. `as float`",
        "is the share of answers that are the float file's, `unoptimized` that of the file's own",
        "answers without graph optimizations, on 1,000 items. `bytes` is a share of the float",
        "file's.",
        "",
        f"{len({row['net'] for row in rows})} of {len(names())} nets so far.",
    ]
    command = f"python benchmarks/int8/accuracy.py --out {out}"
    write_report(out / "accuracy.md", "int8 accuracy", lines, rows, command)


def _losses(rows: list[Row], candidate: str) -> list[str]:
    """Return the mean and the worst loss in points of a candidate, on plain nets and on twins."""
    cells = []
    for twins in (False, True):
        some = [
            row["float"] - row["int8"]
            for row in rows
            if row["candidate"] == candidate and ("twin" in row["net"]) == twins and "int8" in row
        ]
        cells += [f"{np.mean(some):.2f}", f"{max(some):.2f}"] if some else ["", ""]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--candidate", action="append", choices=CANDIDATES)
    parser.add_argument("--one", nargs=2, help="One row, in this process.")
    options = parser.parse_args()
    if options.one:
        name, candidate = options.one
        print(json.dumps(tried(name, candidate, options.root)))
        return
    kept = KeptRows(options.out / "accuracy.jsonl", "net", "candidate")
    every = [(name, one) for name in names() for one in CANDIDATES]
    started = time.perf_counter()
    for name, candidate in every:
        wanted = name in (options.names or names()) and candidate in (
            options.candidate or CANDIDATES
        )
        if not wanted or not tries(name, candidate) or (name, candidate) in kept.read():
            continue
        if time.perf_counter() - started > options.seconds:
            break
        row = in_process(__file__, (name, candidate), options.root)
        kept.add({"net": name, "candidate": candidate, **row})
        write(kept.ordered(every), options.out)
    write(kept.ordered(every), options.out)


if __name__ == "__main__":
    main()
