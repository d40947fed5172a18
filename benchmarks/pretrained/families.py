"""Which classifiers of torchvision and timm go all the way with their library's own preprocessing?

    python benchmarks/pretrained/families.py --out reports/pretrained [--root ../shared/data]
        [--seconds 3600] [NAME ...]

Every classifier of torchvision and thirty families of timm (chosen before any was tried), up to 100
million parameters: built with its own preprocessing, exported, verified on photographs, quantized,
verified again. Weights are fresh ones, since nothing is downloaded; batch norms get the statistics
of photographs, and the last layer is fitted to tell them apart. That proves shapes, files and
sameness, and says nothing of accuracy. Each model runs in a process of its own; its result is kept
at once, and the next run goes on from there. Several may run side by side, with NAMEs of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import KeptRows, Row, table_of, write_report

from compress import counts
from compress.compressor import run, seed_everything
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.verify import verification_items, verify
from compress.model import forward
from compress.tasks.base import Subset, stacked_inputs
from compress.techniques import chain
from compress.zoo.data import load_data
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.weights import DEFAULT

MOST = 100e6
LIMIT = 1800
"""Seconds for a model."""
UNCHECKED = (
    "quantize: there are no validation items, so whether int8 loses more than max_drop=0.5 was not "
    "checked"
)
"""A note on every row."""
CALIBRATION = 16
SHIFT = 2.0
"""The bias of batch norms. A deep net of random weights between norms is chaotic: it makes another
answer of one rounding in a million, unless most of its activations are linear."""
SHIFTS = {"timm:repvgg_a0": 0.4}
"""Where several norms are summed: the sum of their biases would leave no levels for the rest."""
SCALED = 1e-3
SETTLED_BY = 16
"""Photographs whose statistics batch norms get."""
RIDGE = 1e-2
DECIDED = 10.0
"""The logit of a photograph's class; all others have about 0."""
TIMM = (
    *("efficientnet_b0", "tf_efficientnet_lite0", "mobilenetv3_small_100"),
    *("mobilenetv4_conv_small", "resnet18d", "resnext50_32x4d", "seresnet50", "regnety_002"),
    *("convnextv2_atto", "repvgg_a0", "ghostnet_100", "hrnet_w18_small", "dla34"),
    *("dm_nfnet_f0", "rexnet_100", "fastvit_t8", "vit_tiny_patch16_224"),
    *("deit3_small_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224"),
    *("xcit_nano_12_p16_224", "swinv2_tiny_window8_256", "levit_128s", "efficientformer_l1"),
    *("mobilevitv2_050", "edgenext_xx_small", "mixer_s16_224", "poolformer_s12", "pvt_v2_b0"),
    *("hiera_tiny_224",),
)
COLUMNS = ("model", "inputs", "params M", "MMACs", "file", "export CPU s", "int8 file", "why")


def names() -> list[str]:
    of_torchvision = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision:{name}" for name in of_torchvision] + [f"timm:{name}" for name in TIMM]


def settled(module: nn.Module, inputs: torch.Tensor, shift: float = SHIFT) -> None:
    """Do what a training does that matters here: statistics of photographs, and decided answers.

    The last layer is fitted, by ridge regression, to give each photograph a class of its own: with
    random weights all classes lie so near to each other that any rounding changes the answer.
    """
    for parameter in module.parameters():
        # A layer scale, which begins so small that all images would look alike.
        if 0 < parameter.abs().max() < SCALED and not (parameter != parameter.flatten()[0]).any():
            nn.init.ones_(parameter)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
        if layer.bias is not None:
            nn.init.constant_(layer.bias, shift)
        layer.train()
    with torch.no_grad():
        module(inputs[:SETTLED_BY])
    module.eval()
    classes = forward(module, (inputs[:2],)).shape[1]
    heads = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not heads:
        return
    seen: list[torch.Tensor] = []
    handle = heads[-1].register_forward_hook(lambda layer, given, out: seen.append(given[0]))
    for part in inputs.split(SETTLED_BY):
        forward(module, (part,))
    handle.remove()
    features = torch.cat(seen)
    if features.ndim != 2 or len(features) != len(inputs):
        return
    mean = features.mean(0)
    centred = (features - mean).double()
    kernel = centred @ centred.T
    ridge = RIDGE * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)
    wanted = DECIDED * torch.eye(len(features), classes, dtype=kernel.dtype)
    weight = (centred.T @ torch.linalg.solve(kernel + ridge, wanted)).T.float()
    with torch.no_grad():
        heads[-1].weight.copy_(weight)
        if heads[-1].bias is not None:
            heads[-1].bias.copy_(-weight @ mean)


def tried(name: str, root: Path) -> dict[str, Any]:
    """Return the row of a model; whatever fails is said in it."""
    known = pretrained(name, DEFAULT)
    assert known is not None, name
    data = load_data(f"imagefolder:{root / 'imagenet-sample'}", usual=known.settings)
    seed_everything(0)
    model = fresh(name, data.task)
    counted = counts.count(model.module, model.example)
    row: dict[str, Any] = {
        "inputs": data.task.input_words().partition(", mean")[0],
        "params M": round(counted.params / 1e6, 1),
        "MMACs": round(counted.macs / 1e6),
    }
    if counted.params > MOST:
        return {**row, "why": "above 100 M parameters: left out"}
    inputs = stacked_inputs(data.task, data.test, verification_items(counted.macs, lowered=False))
    settled(model.module, inputs[0], SHIFTS.get(name, SHIFT))
    # Of the processor, which other programs change little: so several models may run side by side.
    started = time.process_time()
    onnx = export(model)
    row["export CPU s"] = round(time.process_time() - started, 1)
    verdict = verify(onnx, model, inputs, lowered=False, macs=counted.macs)
    row["file"] = "verified" if verdict.ok else "not verified"
    if not verdict.ok:
        return {**row, "why": verdict.reason}
    few = Subset(data.calibration, torch.arange(min(CALIBRATION, len(data.calibration))))
    context = StepContext(data.task, calibration=few, log=StepLog())
    lowered = run(chain(f"quantize(seconds=0, calibration={len(few)})"), model, context)
    assert lowered.onnx is not None
    verdict = verify(lowered.onnx, model, inputs, lowered=True, macs=counted.macs)
    row["int8 file"] = "verified" if verdict.ok else "not verified"
    return {**row, "why": "; ".join(filter(None, [verdict.reason, *context.log.notes]))}


def answer(name: str, root: Path, to: Connection) -> None:
    try:
        to.send(tried(name, root))
    except Exception as error:
        to.send({"why": f"{type(error).__name__}: {error}"})


def in_a_process(name: str, root: Path) -> dict[str, Any]:
    """Try a model in a process of its own, forked from one that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Path(__file__).stem, "timm", "onnxruntime", "onnxscript"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(name, root, there))
    started = time.perf_counter()
    process.start()
    there.close()
    found: dict[str, Any] = {"why": f"not done within {LIMIT} s"}
    try:
        if here.poll(LIMIT):
            found = here.recv()
    except EOFError:
        process.join()
        found = {"why": f"the process ended with code {process.exitcode}"}
    process.kill()
    process.join()
    seconds = round(time.perf_counter() - started, 1)
    return {"model": name, **found, "seconds": seconds}


def without_usual(why: str) -> str:
    """Return what is said of a row, less what holds for all of them."""
    return "; ".join(one for one in why.split("; ") if one != UNCHECKED)


def write(rows: list[Row], out: Path) -> None:
    lines = [
        *table_of(
            COLUMNS, [{**row, "why": without_usual(str(row.get("why", "")))} for row in rows]
        ),
        "",
        "Weights are random, so whether int8 loses accuracy is not asked: there are no validation "
        "items.",
    ]
    for kind, column in (("files", "file"), ("int8 files", "int8 file")):
        right = sum(row.get(column) == "verified" for row in rows)
        lines += ["", f"{right} {kind} verified, of {sum('file' in row for row in rows)} models."]
    if len(rows) < len(names()):
        lines += ["", f"{len(rows)} of {len(names())} models so far."]
    command = "python benchmarks/pretrained/families.py --out reports/pretrained"
    title = "Classifiers with their library's own preprocessing"
    write_report(out / "families.md", title, lines, rows, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    kept = KeptRows(options.out / "families.jsonl", "model")
    started = time.perf_counter()
    for name in options.names or names():
        if (name,) in kept.read() and not options.names:
            continue
        if time.perf_counter() - started > options.seconds:
            break
        kept.add(in_a_process(name, options.root))
    write(kept.ordered((name,) for name in names()), options.out)


if __name__ == "__main__":
    main()
