"""Small inputs that int8 quantization once failed with, through today's `quantize()`.

    python benchmarks/int8/cases.py --out reports/int8 [--root ../shared/data] [NUMBER ...]

Numbers are those of the list that they come from. Weights are random but for ResNet-20's. Rows are
kept as they come, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from cost import GIGA, Watch
from kept_rows import KeptRows, in_process, table_of, write_report
from nets import built, data_of

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.saturation import PAIR
from compress.deploy.stored import stored
from compress.deploy.verify import verify
from compress.model import Model
from compress.tasks.base import Data, TensorSplit, stacked_inputs
from compress.tasks.image_classification import ImageClassification
from compress.tasks.preprocessing import Preprocessing
from compress.techniques import chain

STEP = "quantize(seconds=0)"
MOST = 2.0
"""Gigabytes that quantizing may hold beyond libraries, model and data."""
VERIFIED = 256


class Transposed(nn.Module):
    """A grouped transposed convolution in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.last = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(24, 32, 3, 2, 1)
        self.up = nn.ConvTranspose2d(32, 24, 4, 2, 1, output_padding=1, groups=2)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.down(x))))
        made: Tensor = self.out(F.relu(self.last(x)).mean((2, 3)))
        return made


class Looping(nn.Module):
    """One convolution, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, 1, 1)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = F.relu(self.again(x))
        made: Tensor = self.out(x.mean((2, 3)))
        return made


def quantized(model: Model, data: Data) -> tuple[bytes, StepLog, str]:
    """Return the int8 file, its log, and why it may not be deployed ('' if it may)."""
    context = StepContext(
        data.task, calibration=data.calibration, validation=data.validation, log=StepLog()
    )
    made = run(chain(STEP), model, context).onnx
    assert made is not None
    inputs = stacked_inputs(data.task, data.test, VERIFIED)
    return made, context.log, verify(made, model, inputs, lowered=True).reason


def of(module: nn.Module, data: Data) -> Model:
    return Model(module.eval(), stacked_inputs(data.task, data.train, 2))


def transposed(data: Data) -> dict[str, Any]:
    torch.manual_seed(0)
    _, log, reason = quantized(of(Transposed(), data), data)
    [row] = [row for row in log.rows if row.get("type") == "ConvTranspose"]
    why = "no integer kernel for ConvTranspose is used"
    return {
        "is right": "the transposed convolution stays float, with the reason; the rest is int8",
        "came out": f"{row['why']}; {reason or 'verified'}",
        "ok": not reason and row["why"] == why and not row["int8"],
    }


def portable(model: Model, data: Data) -> dict[str, Any]:
    made, _, reason = quantized(model, data)
    pair = stored(made)["int8_pair"]
    return {
        "is right": "the same answers with and without optimizations; no two neighbours saturate",
        "came out": f"{reason or 'verified'}; the largest sum of two neighbours is {pair}",
        "ok": not reason and pair <= PAIR,
    }


def loop(data: Data) -> dict[str, Any]:
    torch.manual_seed(0)
    model = of(Looping(), data)
    made, _, reason = quantized(model, data)
    weights = [
        tensor
        for tensor in onnx.load_from_string(made).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    size = len(made) / len(export(model))
    return {
        "is right": "its weight is stored once",
        "came out": f"{len(weights)} weights of convolutions for 2; {size:.0%} of the bytes",
        "ok": not reason and len(weights) == 2,
    }


def large_images(layers: int = 12, side: int = 512, items: int = 16) -> dict[str, Any]:
    torch.manual_seed(0)
    body = [
        layer
        for number in range(layers)
        for layer in (nn.Conv2d(64 if number else 3, 64, 3, 1, 1), nn.ReLU())
    ]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    images = torch.randint(0, 256, (items, 3, side, side), dtype=torch.uint8)
    images = F.interpolate(images[..., ::16, ::16].float(), side, mode="bilinear").byte()
    split = TensorSplit((images,), torch.arange(items) % 10)
    preprocessing = Preprocessing(3, (side, side), (0.5,) * 3, (0.2,) * 3)
    task = ImageClassification("made", tuple(map(str, range(10))), preprocessing)
    model = Model(net.eval(), stacked_inputs(task, split, 2))
    export(model)  # the first export imports libraries
    watch = Watch()
    watch.start()
    made = run(chain(STEP), model, StepContext(task, calibration=split, log=StepLog())).onnx
    held = watch.end() / GIGA
    return {
        "is right": f"images are calibrated on in chunks that fit: under {MOST:.0f} GB",
        "came out": f"{held:.2f} GB for {items} images of {side} pixels",
        "ok": made is not None and held < MOST,
    }


def resnet(root: Path) -> dict[str, Any]:
    data = data_of("resnet20")
    return portable(of(built("resnet20", root), data), data)


CASES: dict[int, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    17: ("a grouped transposed convolution", lambda root: transposed(data_of("vit-tiny"))),
    22: ("ResNet-20 on any CPU, no option", resnet),
    27: ("a convolution that is called three times", lambda root: loop(data_of("vit-tiny"))),
    31: ("twelve layers of 64 channels at 512 pixels", lambda root: large_images()),
}


def write(kept: KeptRows, out: Path) -> None:
    rows = kept.ordered((number,) for number in CASES)
    lines = table_of(("case", "what", "is right", "came out", "ok"), rows)
    command = f"python benchmarks/int8/cases.py --out {out}"
    write_report(out / "cases.md", "int8: inputs that once failed", lines, rows, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--one", type=int, help="One case, in this process.")
    options = parser.parse_args()
    if unknown := {*options.numbers} - CASES.keys():
        parser.error(f"there is no case {min(unknown)}: there are {', '.join(map(str, CASES))}")
    if options.one:
        what, tried = CASES[options.one]
        print(json.dumps({"case": options.one, "what": what, **tried(options.root)}))
        return
    kept = KeptRows(options.out / "cases.jsonl", "case")
    for number in options.numbers or CASES:
        if (number,) not in kept.read():
            kept.add(in_process(__file__, (str(number),), options.root))
            write(kept, options.out)
    write(kept, options.out)


if __name__ == "__main__":
    main()
