"""What int8 costs in accuracy: ours beside the quantizers of others.

    python benchmarks/int8/accuracy.py --out reports/int8 [--root ../shared/data] [NAME ...]
        [--placed] [--calibration N] [--corrupted]

CIFAR-10 nets, their hardened twins (the same function, channels rescaled), and EfficientNet-Lite0
on the photographs that calibration does not use. NNCF and Quark take part where they are
installed. Every candidate is one file made from the same calibration images; answers are counted on
all test items. Rows are kept as they come, and the next run goes on from there.

`--placed` adds the file of `quantize()` with nothing left out, so with placement by latency, timed
beside the float file in the same row: for a quiet machine, and nets whose placement is measured at
all. `--calibration` gives another number of calibration images than 256, `--corrupted` replaces one
in fifty of them with saturated noise: such rows have a table of their own.
"""

from __future__ import annotations

import argparse
import base64
import json
import resource
import sys
import time
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from in_sequence import in_sequence
from kept_rows import KeptRows, Row, in_process, table, table_of, write_report
from nets import CIFAR, TWINS, built, data_of, twin
from speedups import FLOAT, speedup_of, timings_of, words

from compress.compressor import run
from compress.context import StepContext
from compress.deploy.export import export
from compress.deploy.graphs import parsed
from compress.deploy.session import arrays, predict, session
from compress.deploy.verify import TOLERANCE, output_step, same_answer
from compress.errors import StepFailed
from compress.int8.calibration import Calibration
from compress.int8.lower import draft
from compress.int8.settings import Settings
from compress.model import Model
from compress.stats.pairs import Difference, difference
from compress.system.amounts import decimal
from compress.tasks.base import Data, Split, Subset, Tensors, prepared_batches, stacked_inputs
from compress.techniques import chain
from compress.techniques.int8_placement import mostly_float
from compress.techniques.timed_files import is_large
from compress.timing.executed import executed
from compress.zoo.data import load_data
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.weights import DEFAULT, load_weights

CALIBRATION = 256
BATCH = 32
LITE = "timm:tf_efficientnet_lite0"
SIGMAS = (0.5, 1.0, 1.5, 2.0)
UNOPTIMIZED = 1024
"""Items that are answered without graph optimizations, too: all, where there are fewer."""
FIFTY, FIRST = 50, 25
"""Of so many calibration images one is corrupted, the one of this number."""
TIMED = 20.0
"""Seconds for which `quantize()` is timed beside the float file."""
PLACED, WHOLE = "quantize()", "quantize(seconds=0)"

WEIGHTS = ("quantize(weight_only=True)", "quantize(weight_only=True, bits=4)")
ADAROUND = "quark_quantize(adaround=True)"
AUTO_SEARCH = "quark_quantize(search_seconds=600)"
STEPS = (
    *("ort_quantize(defaults=True)", "ort_quantize()"),
    *("nncf_quantize()", "nncf_quantize(preset='mixed')", "nncf_quantize(accurate=True)"),
    *("nncf_quantize(transformer=True)", "quark_quantize()", ADAROUND, AUTO_SEARCH),
    *(PLACED, WHOLE, "quantize(seconds=0, max_drop=None)", *WEIGHTS),
)
ABLATIONS: dict[str, dict[str, Any]] = {
    "without equalization": {"equalize": False},
    "without compensated rounding": {"compensate": False},
    "without bias correction": {"correct": False},
    "with ranges of extremes": {"method": "minmax"},
    "with weights of 4 bits": {"bits": 4},
}
SEQUENCE = {"biases in sequence": {}, "biases in sequence, weights of 4 bits": {"bits": 4}}
"""Ablations whose biases are corrected on the inputs that products have in the int8 net."""
CORRECTED_ON = 128
"""Calibration images for that: the whole net runs on them once for each product."""
CANDIDATES = (*STEPS, *ABLATIONS, *SEQUENCE)
SLOW = (ADAROUND, AUTO_SEARCH, "nncf_quantize(accurate=True)", *SEQUENCE)
"""These take minutes, and are tried on some nets alone."""
FEW = ("resnet20", "mobilenetv2-x05", "resnet20 twin 2/0", "lite0")
PLAIN = (*CIFAR, "lite0")
"""Nets of which weights alone are stored as well; a twin's rescaled channels have scales too."""


def tries(name: str, candidate: str) -> bool:
    """Whether a candidate can be had here, and is meant for a net."""
    if candidate.startswith(("nncf", "quark")) and not find_spec(candidate.partition("_")[0]):
        return False
    if "transformer" in candidate:
        return name.startswith("vit")
    if candidate in WEIGHTS:
        return name in PLAIN
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


class Corrupted(Split):
    """A split of images, one in fifty of which is saturated noise."""

    def __init__(self, whole: Split) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs, targets = self.whole.fetch(index)
        [images] = inputs
        top = 1.0 if images.is_floating_point() else torch.iinfo(images.dtype).max
        images = images.clone()
        for place, number in enumerate(index.tolist()):
            if number % FIFTY == FIRST:
                generator = torch.Generator().manual_seed(number)
                noise = torch.randint(0, 2, images[place].shape, generator=generator) * top
                images[place] = noise.to(images.dtype)
        return (images,), targets


def calibration(data: Data, count: int, corrupted: bool) -> Split:
    """Return so many images to calibrate on."""
    enough = count <= len(data.calibration) or not len(data.train)
    source = data.calibration if enough else data.train
    some = Subset(source, torch.arange(min(count, len(source))))
    return Corrupted(some) if corrupted else some


def varied(count: int, corrupted: bool) -> str:
    """Return what the name of a net says of unusual calibration images."""
    if count == CALIBRATION and not corrupted:
        return ""
    return f" with {count} images" + ", corrupted" * corrupted


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


def tried(
    name: str, candidate: str, root: Path, count: int = CALIBRATION, corrupted: bool = False
) -> dict[str, Any]:
    model, data = setting(name, root)
    content = export(model)
    test = [x for x, _ in prepared_batches(data.task, data.test, BATCH)]
    targets = torch.cat([y for _, y in data.test.batches(BATCH)]).numpy()
    before = predict(session(content), test)
    started = time.perf_counter()
    try:
        made = lowered(model, data, candidate, calibration(data, count, corrupted))
    except StepFailed as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    after = predict(session(made), test)
    plain = predict(session(made, optimize=False), test[: UNOPTIMIZED // BATCH])
    usual = after[: len(plain)]
    # What counts as a tie is what it is where files are verified.
    step = output_step(onnx.load_from_string(made)) or 2 * TOLERANCE * float(np.abs(before).max())
    right_before, right_after = before.argmax(1) == targets, after.argmax(1) == targets
    flips = difference(right_before, right_after)
    spread = ((before - before.mean(0)) ** 2).sum()
    first = arrays(tuple(tensor[:1] for tensor in test[0]))
    share = executed(made, first).int8_macs_share
    row: Row = {
        "items": len(targets),
        "float": percent(right_before),
        "int8": percent(right_after),
        "lost": flips.lost,
        "won": flips.gained,
        "p": flips.p,
        "as float": percent(before.argmax(1) == after.argmax(1)),
        "SQNR": round(10 * float(np.log10(spread / ((before - after) ** 2).sum())), 1),
        "compared": len(plain),
        "unoptimized": percent(plain.argmax(1) == usual.argmax(1)),
        "but ties": percent(same_answer(plain, usual, step)),
        "int8 MACs": None if share is None else round(share, 3),
        "bytes": round(len(made) / len(content), 3),
        "seconds": round(seconds, 1),
        "GB": round(memory, 2),
        "right": packed(right_after),
    }
    if candidate == PLACED:
        samples = arrays(tuple(tensor[:8] for tensor in test[0]))
        timed = timings_of({FLOAT: content, PLACED: made}, samples, TIMED)
        row |= {"speedup": speedup_of(timed[PLACED]), "float ms": timed[FLOAT].p50_ms}
    return row


def percent(which: np.ndarray) -> float:
    return round(100 * float(which.mean()), 2)


def packed(right: np.ndarray) -> str:
    """Return which answers are right, as text."""
    return base64.b64encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode()


def unpacked(row: Row) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(row["right"])), np.uint8)
    return np.unpackbits(bits, count=row["items"]).astype(bool)


def lowered(model: Model, data: Data, candidate: str, items: Split) -> bytes:
    """Return the int8 file that a candidate makes of a net."""
    context = StepContext(data.task, calibration=items, validation=data.validation)
    if (settings := {**ABLATIONS, **SEQUENCE}.get(candidate)) is not None:
        batches = Calibration(data.task, context.calibration_items(len(items)))
        made = draft(parsed(export(model)), batches, Settings(**settings))
        if candidate not in SEQUENCE:
            return made.lowered().content
        few = Subset(items, torch.arange(min(CORRECTED_ON, len(items))))
        return in_sequence(made, Calibration(data.task, few)).content
    name, _, options = candidate.partition("(")
    onnx_bytes = run(chain(f"{name}(calibration={len(items)}, {options}"), model, context).onnx
    assert onnx_bytes is not None
    return onnx_bytes


COLUMNS = (
    *("float", "int8", "lost", "won", "p beside ours", "as float", "SQNR", "unoptimized"),
    *("but ties", "int8 MACs", "bytes", "speed-up", "seconds", "GB", "error"),
)


def mostly(row: Row) -> bool:
    """Whether a row's file is mostly float, as far as the row says."""
    return mostly_float(row.get("int8 MACs", 1.0), row["bytes"])


def ours(rows: Sequence[Row], net: str) -> Row | None:
    """Return the row of our default file of a net; of that without placement if there is none."""
    found = {row["candidate"]: row for row in rows if row["net"] == net and "int8" in row}
    return found.get(PLACED, found.get(WHOLE))


def beside(row: Row, own: Row | None) -> Difference | None:
    """Return what a file's answers lose and gain against ours, where both are kept."""
    if own is None or own is row or "right" not in row or "right" not in own:
        return None
    return difference(unpacked(own), unpacked(row))


def shown(row: Row, rows: Sequence[Row]) -> Row:
    """Return a row as the table has it."""
    cells = {**row, "speed-up": words(row.get("speedup", ()))}
    if "int8" in row and mostly(row):
        cells["int8"] = f"{row['int8']} (mostly float)"
    if (found := beside(row, ours(rows, row["net"]))) is not None:
        cells["p beside ours"] = f"{found.p:.3f}"
    return cells


PAIRS = ("nets", "lost", "worst", "ours lost", "worst", "worse", "better")
NOTES = """
`lost` and `won` are answers that were right and are wrong, and the reverse. `p beside ours` is that
of McNemar's exact test of a file's answers against ours. `as float` is the share of answers that
are the float file's, `unoptimized` that of the file's own answers without graph optimizations, on
the first 1,024 test items (all 790 of Lite0), and `but ties` the same with ties set aside: the two
largest logits are less than a step of the output apart, as where files are verified. `bytes` is a
share of the float file's. A file with less than 80 % of its MACs in int8, or over 0.35 of the
bytes, is mostly float. What a cell lacks was not yet measured when its row was.

Points lost are of the nets that a candidate and ours both have, files that are mostly float left
out. Ours is `quantize()` where that was run, else `quantize(seconds=0)`, which is the same without
placement. A candidate is worse (better) than ours on a net where McNemar's p is below 5 %, of the
nets whose answers were kept.
"""


def write(out: Path) -> None:
    kept = KeptRows(out / "accuracy.jsonl", "net", "candidate").read().values()
    order = {name: number for number, name in enumerate(names())}
    rows = sorted(
        (row for row in kept if row["net"].partition(" with ")[0] in order),
        key=lambda row: (
            order[row["net"].partition(" with ")[0]],
            row["net"],
            CANDIDATES.index(row["candidate"]),
        ),
    )
    usual = [row for row in rows if " with " not in row["net"]]
    lines = table_of(("net", "candidate", *COLUMNS), [shown(row, usual) for row in usual])
    lines += ["", "## Points lost, by candidate, beside ours", ""]
    every = [
        [candidate, *cells] for candidate in CANDIDATES if (cells := _beside_ours(usual, candidate))
    ]
    head = (*(f"plain {one}" for one in PAIRS), *(f"twins {one}" for one in PAIRS))
    lines += table(("candidate", *head), every)
    others = [row for row in rows if " with " in row["net"]]
    if others:
        lines += ["", "## Other calibration images", ""]
        few = ("net", "candidate", "float", "int8", "lost", "won", "as float", "SQNR", "error")
        lines += table_of(few, others)
        lines += ["", "Corrupted: one image in fifty is saturated noise."]
    lines += NOTES.rstrip().splitlines()
    lines += ["", f"{len({row['net'] for row in usual})} of {len(names())} nets so far."]
    command = f"python benchmarks/int8/accuracy.py --out {out}"
    write_report(out / "accuracy.md", "int8 accuracy", lines, rows, command)


def _beside_ours(rows: Sequence[Row], candidate: str) -> list[str]:
    """Return the mean and the worst loss in points of a candidate and of ours, on the same nets."""
    cells: list[str] = []
    for twins in (False, True):
        pairs = [
            (row, own)
            for row in rows
            if row["candidate"] == candidate and ("twin" in row["net"]) == twins and "int8" in row
            if (own := ours(rows, row["net"])) is not None and not mostly(row) and not mostly(own)
        ]
        if not pairs:
            cells += [""] * len(PAIRS)
            continue
        cells.append(str(len(pairs)))
        for side in zip(*pairs, strict=True):
            some = [row["float"] - row["int8"] for row in side]
            cells += [f"{np.mean(some):.2f}", f"{max(some):.2f}"]
        known = [found for pair in pairs if (found := beside(*pair)) is not None]
        sure = [found for found in known if found.p < 0.05]
        for which in (-1, 1):
            count = sum(np.sign(found.gained - found.lost) == which for found in sure)
            cells.append(f"{count} of {len(known)}" if known else "")
    return cells if any(cells) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--candidate", action="append", choices=CANDIDATES)
    parser.add_argument("--placed", action="store_true", help="quantize() too, timed.")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, metavar="N")
    parser.add_argument("--corrupted", action="store_true")
    parser.add_argument("--table", action="store_true", help="Write the table of what there is.")
    parser.add_argument("--one", nargs=2, help="One row, in this process.")
    options = parser.parse_args()
    count, corrupted = options.calibration, options.corrupted
    if corrupted and count < FIFTY:
        parser.error(f"--corrupted replaces one image in {FIFTY}, and there are {count}")
    if options.one:
        name, candidate = options.one
        print(json.dumps(tried(name, candidate, options.root, count, corrupted)))
        return
    kept = KeptRows(options.out / "accuracy.jsonl", "net", "candidate")
    words_of_one = ["--calibration", str(count), *["--corrupted"] * corrupted]
    started = time.perf_counter()
    for name, candidate in [] if options.table else product(names(), CANDIDATES):
        net = name + varied(count, corrupted)
        wanted = name in (options.names or names()) and candidate in (
            options.candidate or CANDIDATES
        )
        if not wanted or not tries(name, candidate) or (net, candidate) in kept.read():
            continue
        if candidate == PLACED and not (
            options.placed and is_large(setting(name, options.root)[0])
        ):
            continue
        if time.perf_counter() - started > options.seconds:
            break
        row = in_process(__file__, (name, candidate, *words_of_one), options.root)
        kept.add({"net": net, "candidate": candidate, **row})
        write(options.out)
    write(options.out)


if __name__ == "__main__":
    main()
