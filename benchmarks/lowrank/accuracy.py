"""What low rank costs in accuracy, without any training, at half the MACs.

    python benchmarks/lowrank/accuracy.py --out reports/lowrank [--root ../shared/data]
        [--method METHOD] [NAME ...]

CIFAR-10 nets, and EfficientNet-Lite0 on the photographs that calibration does not use. Plain SVD is
truncated SVD of the weights, with one common energy for all layers. TensorLy's Tucker-2, at one
common share of ranks, takes part where it is installed (the extra `lowrank`). Answers are those of
the exported file, on all test items. Rows are kept as they come, and the next run goes on from
there. The first run of a net without given weights trains it (`benchmarks/int8/nets.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "int8"))

from kept_rows import KeptRows, Row, in_process, table_of, write_report
from nets import CIFAR, built, data_of

from compress import counts
from compress.compressor import run
from compress.context import StepContext
from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.lowrank.fit import Problem, white
from compress.lowrank.forms import build
from compress.lowrank.layers import TargetLayer, target_layers
from compress.model import Model
from compress.surgery import replace_everywhere
from compress.tasks.base import Data, prepared_batches, stacked_inputs
from compress.techniques import chain
from compress.zoo.data import load_data
from compress.zoo.models import fresh
from compress.zoo.pretrained import pretrained
from compress.zoo.weights import DEFAULT, load_weights

BATCH = 32
LITE = "timm:tf_efficientnet_lite0"
TARGET = 0.5
HALVINGS = 12
"""Steps of the search for what meets the target."""

PLAIN, TUCKER = "plain SVD", "TensorLy's Tucker-2"
STEPS = {
    "ours": f"factorize(macs={TARGET})",
    "ours, weights alone": f"factorize(macs={TARGET}, calibration=0)",
    "ours, channel form": f"factorize(macs={TARGET}, form='channel')",
    "ours, 64 items": f"factorize(macs={TARGET}, calibration=64)",
}
METHODS = (PLAIN, *STEPS, TUCKER)
NAMES = (*CIFAR, "lite0")
NO_RESNET18 = "ResNet-18 has no row: no trained weights of it are among the given ones."


def setting(name: str, root: Path) -> tuple[Model, Data]:
    """Return a net and its data."""
    if name != "lite0":
        data = data_of(name)
        return Model(built(name, root), stacked_inputs(data.task, data.train, 2)), data
    known = pretrained(LITE, DEFAULT)
    assert known is not None
    data = load_data(f"imagefolder:{root / 'imagenet-sample'}", usual=known.settings)
    model = fresh(LITE, data.task)
    weights = root / "weights" / "tf_efficientnet_lite0-imagenet.safetensors"
    load_weights(model.module, str(weights), LITE)
    return model, data


def made(method: str, model: Model, context: StepContext) -> Model:
    """Return what a method makes of a model at half its MACs."""
    if method in STEPS:
        return run(chain(STEPS[method]), model, context)
    at = partial(_plain if method == PLAIN else _tucker, model)
    limit = TARGET * counts.macs(model.module, model.example)
    return nearest(at, lambda one: counts.macs(one.module, model.example) <= limit)


def nearest(at: Callable[[float], Model], fits: Callable[[Model], bool]) -> Model:
    """Return the model of the largest share that fits."""
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        one = at(middle)
        low, high, best = (middle, high, one) if fits(one) else (low, middle, best)
    if best is None:
        raise SystemExit("no share meets the target")
    return best


def _plain(model: Model, energy: float) -> Model:
    """Return truncated SVD of every layer at the least rank that keeps an energy, if cheaper."""
    return _exchanged(model, lambda target: _truncated(target, energy))


def _truncated(target: TargetLayer, energy: float) -> nn.Module:
    squares = torch.linalg.svdvals(target.layer.weight.detach().double().flatten(1)).square()
    kept = squares.cumsum(0) / squares.sum().clamp_min(1e-30)
    return _svd(target, int((kept < energy).sum()) + 1)


def _svd(target: TargetLayer, rank: int) -> nn.Module:
    return Problem(target.layer, white(target.layer)).fitted("channel", (rank,))[0]


def _exchanged(model: Model, made: Callable[[TargetLayer], nn.Module]) -> Model:
    """Return a copy with thinner layers, where they have fewer parameters."""
    result = model.copy()
    found, _ = target_layers(result.module, result.items())
    for target in found:
        layer = made(target)
        if sum(one.numel() for one in layer.parameters()) < sum(
            one.numel() for one in target.layer.parameters()
        ):
            replace_everywhere(result.module, target.layer, layer)
    return result


def _tucker(model: Model, share: float) -> Model:
    """Return Tucker-2 of all convolutions by TensorLy, truncated SVD of the rest."""
    return _exchanged(model, lambda target: _decomposed(target, share))


def _decomposed(target: TargetLayer, share: float) -> nn.Module:
    from tensorly.decomposition import partial_tucker

    layer = target.layer
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1):
        return _svd(target, max(1, round(share * min(outputs, inputs))))
    ranks = [max(1, round(share * outputs)), max(1, round(share * inputs))]
    found = partial_tucker(layer.weight.detach().double().numpy(), rank=ranks, modes=[0, 1])
    # Newer versions return the errors beside the decomposition.
    core, (last, first) = found[0] if isinstance(found[0], tuple) else found
    factors = [
        torch.from_numpy(np.ascontiguousarray(first.T))[:, :, None, None],
        torch.from_numpy(np.ascontiguousarray(core)),
        torch.from_numpy(np.ascontiguousarray(last))[:, :, None, None],
    ]
    return build(layer, "tucker", factors, layer.bias)


def tried(name: str, method: str, root: Path) -> dict[str, Any]:
    model, data = setting(name, root)
    context = StepContext(data.task, calibration=data.calibration)
    started = time.perf_counter()
    result = made(method, model, context)
    seconds = time.perf_counter() - started
    targets = torch.cat([y for _, y in data.test.batches(BATCH)]).numpy()
    right = {}
    for which, one in (("before", model), ("after", result)):
        test = (x for x, _ in prepared_batches(data.task, data.test, BATCH))
        right[which] = predict(session(export(one)), test).argmax(1) == targets
    lost = int((right["before"] & ~right["after"]).sum())
    won = int((right["after"] & ~right["before"]).sum())
    before = counts.count(model.module, model.example)
    after = counts.count(result.module, result.example)
    return {
        "items": len(targets),
        "before": round(100 * float(right["before"].mean()), 2),
        "after": round(100 * float(right["after"].mean()), 2),
        "lost": lost,
        "won": won,
        "p": float(binomtest(won, lost + won).pvalue) if lost + won else 1.0,
        "MACs": round(after.macs / before.macs, 3),
        "params": round(after.params / before.params, 3),
        "seconds": round(seconds, 1),
        "notes": context.log.notes,
    }


COLUMNS = ("before", "after", "lost", "won", "MACs", "params", "seconds")


def write(rows: list[Row], out: Path) -> None:
    methods = {row["method"] for row in rows}
    missing = [one for one in NAMES if one not in {row["net"] for row in rows}]
    lines = [
        *table_of(("net", "method", *COLUMNS), rows),
        "",
        "`before` and `after` are the percentages of right answers of the exported files on all",
        "test items, `lost` and `won` the answers that were right and are wrong, and the reverse.",
        "`MACs` and `params` are shares of the original's, `seconds` are of the clock, on machines",
        "that other work shared. Methods:",
        "",
        f"- {PLAIN}: truncated SVD of each layer's weight, at the least rank that keeps E of its "
        f"sum of squares, E as large as half the MACs allow",
        *(f"- {name}: `{text}`" for name, text in STEPS.items() if name in methods),
        f"- {TUCKER}: `partial_tucker` of each convolution, at one common share of ranks that is "
        f"as large as half the MACs allow; truncated SVD of layers without a kernel",
        "",
        f"{len({row['net'] for row in rows})} of {len(NAMES)} nets so far: no row yet for "
        f"{', '.join(missing) or 'none'}. {NO_RESNET18}",
    ]
    wanted = [f'--method "{one}"' for one in METHODS if one in methods]
    names = [one for one in NAMES if one not in missing]
    known = {(row["net"], row["method"]) for row in rows}
    left = [
        f"{name} by {one}"
        for name in names
        for one in METHODS
        if one in methods and (name, one) not in known
    ]
    if left:
        lines += ["", f"Of these nets and methods, not run yet: {', '.join(left)}."]
    command = " ".join(
        ["python benchmarks/lowrank/accuracy.py --out reports/lowrank", *wanted, *names]
    )
    title = "Low rank at half the MACs, without tuning"
    write_report(out / "accuracy.md", title, lines, rows, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--one", nargs=2, help="One row, in this process.")
    options = parser.parse_args()
    if options.one:
        name, method = options.one
        print(json.dumps(tried(name, method, options.root)))
        return
    if not find_spec("tensorly"):
        print(f"{TUCKER} is left out: TensorLy is not installed", flush=True)
    kept = KeptRows(options.out / "accuracy.jsonl", "net", "method")
    every = [(name, method) for name in NAMES for method in METHODS]
    started = time.perf_counter()
    for name, method in every:
        wanted = name in (options.names or NAMES) and method in (options.method or METHODS)
        left_out = method == TUCKER and not find_spec("tensorly")
        if not wanted or left_out or (name, method) in kept.read():
            continue
        if time.perf_counter() - started > options.seconds:
            break
        row = in_process(__file__, (name, method), options.root)
        kept.add({"net": name, "method": method, **row})
        write(kept.ordered(every), options.out)
    write(kept.ordered(every), options.out)


if __name__ == "__main__":
    main()
