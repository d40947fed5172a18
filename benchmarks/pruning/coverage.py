"""Which architectures does structured pruning reach, and does plain Torch-Pruning?

    python benchmarks/pruning/coverage.py --out reports/pruning [--seconds 3600] [NAME ...]

Classifiers of torchvision, smallest first, and families of timm, with random weights that mean
something, on smooth noise: `prune_channels(channels=0.7)` and 0.5. Checked are: that the pruned
net runs, that it equals the original with those channels masked (in float64, by a mask of this
script's own, which knows which channels went by looking their values up), the share of MACs kept,
that it exports and the file agrees, that it saves and loads equal. Beside it plain Torch-Pruning
(`MagnitudePruner`, the output layer ignored, the same ratio and rounding), in the same process with
a limit. Each model runs in a process of its own; results are kept at once, and the next run goes on
from there.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import multiprocessing
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import counts
from compress.compressor import run, seed_everything
from compress.context import StepContext, StepLog
from compress.deploy.export import export
from compress.deploy.verify import verification_items, verify
from compress.model import Model, forward, load, save
from compress.surgery import output_layers
from compress.system.environment import cpu_info
from compress.system.files import write_atomic
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.zoo.models import build_module, fresh

LIMIT, PEER_LIMIT = 900, 120
"""Seconds for a model, and for Torch-Pruning on it."""
RATIOS = (0.7, 0.5)
SIZE = 96
ITEMS = 64
SETTLED_BY = 16
SHIFT = 1.0
"""The bias of batch norms: without one, a deep random net is chaotic (`pretrained/families.py`)."""
VOTES = 16
EQUAL = 1e-6
"""Of the largest output, in float64."""
TORCHVISION = (
    *("squeezenet1_1", "squeezenet1_0", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small"),
    *("mobilenet_v2", "regnet_y_400mf", "regnet_x_400mf", "mobilenet_v3_large", "mnasnet1_0"),
    *("efficientnet_b0", "densenet121", "googlenet", "shufflenet_v2_x1_0", "resnet18"),
    *("inception_v3", "resnet50", "resnext50_32x4d", "convnext_tiny", "swin_t", "swin_v2_t"),
    *("maxvit_t", "wide_resnet50_2", "alexnet", "vit_b_16", "vgg11_bn"),
)
TIMM = (
    *("tf_efficientnet_lite0", "mobilenetv4_conv_small", "regnety_002", "ghostnet_100"),
    *("deit_tiny_patch16_224", "levit_128s", "convnextv2_atto", "convnext_atto", "repvgg_a0"),
    *("mobilevit_xxs", "edgenext_xx_small", "resnetv2_50", "nf_resnet26", "mixer_s16_224"),
    *(
        "eva02_tiny_patch14_224",
        "swin_tiny_patch4_window7_224",
        "poolformer_s12",
        "res2net50_26w_4s",
    ),
    *("pvt_v2_b0", "hrnet_w18_small", "dla34", "rexnet_100", "xcit_nano_12_p16_224"),
)
FIXED = {"torchvision:vit_b_16": 224, "torchvision:maxvit_t": 224}
COLUMNS = (
    *("model", "keeps", "px", "runs", "equals masked", "MACs kept", "exports", "file agrees"),
    *("saves", "s", "Torch-Pruning", "its MACs", "its s", "left alone"),
)


def names() -> list[str]:
    return [f"torchvision:{name}" for name in TORCHVISION] + [f"timm:{name}" for name in TIMM]


def size_of(name: str) -> int:
    library, _, bare = name.partition(":")
    if library == "timm":
        import timm

        known = timm.get_pretrained_cfg(bare)
        if known is not None and known.fixed_input_size:
            return int(known.input_size[-1])
    return FIXED.get(name, SIZE)


def meaningful(name: str, size: int) -> tuple[Model, Tensor]:
    """Return a model whose every tensor is random and whose norms fit its inputs; and inputs."""
    shaped = Preprocessing(3, (size, size), (0.5,) * 3, (0.25,) * 3)
    task = ImageClassification("coverage", tuple(map(str, range(10))), shaped)
    seed_everything(0)
    model = fresh(name, task)
    inputs = F.interpolate(torch.randn(ITEMS, 3, 8, 8), (size, size), mode="bilinear")
    for parameter in model.module.parameters():
        with torch.no_grad():
            if parameter.ndim < 2 or float(parameter.abs().max()) < 1e-3:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if 0 < float(parameter.abs().max()) < 0.5 and parameter.ndim == 1:
                parameter.mul_(2)
    norms = [m for m in model.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.add_(SHIFT)
        layer.train()
    with torch.no_grad():
        model.module(inputs[:SETTLED_BY])
    model.module.eval()
    return Model(model.module, (inputs[:2],), blueprint=model.blueprint), inputs


# --- the mask ---------------------------------------------------------------------------------


def kept_along(before: Tensor, after: Tensor, axis: int) -> Tensor | None:
    """Return which indices of an axis are still there, found by the values: most are different."""
    if before.ndim != after.ndim or before.shape[axis] == after.shape[axis]:
        return None
    rows = before.movedim(axis, 0).flatten(1) if before.ndim > 1 else before[:, None]
    place = {value: row for row, values in enumerate(rows.tolist()) for value in values}
    ours = after.movedim(axis, 0).flatten(1) if after.ndim > 1 else after[:, None]
    kept = torch.zeros(before.shape[axis], dtype=torch.bool)
    for values in ours[:, :VOTES].tolist():
        # Among millions of float32 some are equal: the row of most of the values is meant.
        [(row, _)] = collections.Counter(map(place.get, values)).most_common(1)
        if row is not None:
            kept[row] = True
    return kept


def _wide(parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a weight; that of a norm with its bias, as double: of a thousand float32 near 1 two
    may well be equal."""
    weight, bias = parameters[name], parameters.get("bias")
    if weight.ndim > 1 or bias is None:
        return weight
    return weight.double() + bias.double() * 1e3


def masked(module: nn.Module, pruned: nn.Module) -> nn.Module:
    """Return a float64 copy whose layers give zero for the channels that a pruned net lacks."""
    result, theirs = copy.deepcopy(module).double(), dict(pruned.named_modules())
    for path, layer in result.named_modules():
        before = dict(module.get_submodule(path).named_parameters(recurse=False))
        after = dict(theirs[path].named_parameters(recurse=False))
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        for name in ("weight", "gain", "in_proj_weight"):
            if name not in before:
                continue
            kept = kept_along(_wide(before, name), _wide(after, name), 1 if transposed else 0)
            if kept is None:
                continue
            if name == "in_proj_weight":
                _silence(layer, before, kept)
            elif isinstance(layer, nn.Linear):  # also where its weight is read past its forward
                with torch.no_grad():
                    layer.weight[~kept] = 0
                    if layer.bias is not None:
                        layer.bias[~kept] = 0
            else:
                layer.register_forward_hook(_Mask(kept))
    return result


def _silence(layer: nn.Module, before: Mapping[str, Tensor], kept: Tensor) -> None:
    """Attention's packed projection: no such keys and values. Queries may be rescaled."""
    width = len(kept) // 3
    lost = ~kept
    lost[:width] = False
    with torch.no_grad():
        for name in ("in_proj_weight", "in_proj_bias"):
            if name in before:
                getattr(layer, name)[lost] = 0


class _Mask:
    """Sets channels of a layer's result to zero; a norm over channels is taken without them."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept.double()

    def __call__(self, layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        count = len(self.kept)
        last = isinstance(layer, nn.Linear) or (
            "LayerNorm" in type(layer).__name__ and not type(layer).__name__.endswith("2d")
        )
        axis = out.ndim - 1 if last or (out.ndim < 3 and out.shape[-1] == count) else 1
        shape = [count if a == axis else 1 for a in range(out.ndim)]
        mask = self.kept.reshape(shape)
        over_channels = hasattr(layer, "normalized_shape") or getattr(layer, "num_groups", 0) == 1
        if not over_channels:
            return out * mask
        axes = (axis,) if hasattr(layer, "normalized_shape") else tuple(range(1, out.ndim))
        x, number = given[0] * mask, mask.expand_as(given[0]).sum(axes, keepdim=True)
        mean = x.sum(axes, keepdim=True) / number
        spread = ((x - mean).square() * mask).sum(axes, keepdim=True) / number
        scaled = (x - mean) / (spread + layer.eps).sqrt() * layer.weight.reshape(shape)  # type: ignore
        return (scaled + layer.bias.reshape(shape)) * mask  # type: ignore[operator]


# --- one model --------------------------------------------------------------------------------


def tried(name: str, keeps: float) -> dict[str, Any]:
    """Return the row of a model at a kept share of channels; whatever fails is said in it."""
    warnings.simplefilter("ignore")
    size = size_of(name)
    model, inputs = meaningful(name, size)
    row: dict[str, Any] = {"px": size, **_plain(model, keeps)}
    context, started = StepContext(None, log=StepLog()), time.perf_counter()  # type: ignore[arg-type]
    pruned = run(chain(f"prune_channels(channels={keeps})"), model, context)
    row["s"] = round(time.perf_counter() - started, 1)
    left = {r["layer"]: r["left_alone"] for r in context.log.rows if "left_alone" in r}
    row["reasons"], row["notes"] = left, context.log.notes
    row["left alone"] = len(left)
    ours = forward(pruned.module, (inputs[:2],))
    row["runs"] = "yes" if ours.shape == forward(model.module, (inputs[:2],)).shape else "shape"
    macs = counts.macs(pruned.module, pruned.example)
    row["MACs kept"] = round(macs / counts.macs(model.module, model.example), 3)
    row["equals masked"] = _equals(model, pruned, inputs[:2])
    row["saves"] = _saves(pruned)
    few = verification_items(macs, lowered=False)
    onnx = export(pruned)
    row["exports"] = "yes"
    verdict = verify(onnx, pruned, (inputs[: max(few, ITEMS)],), lowered=False, macs=macs)
    row["file agrees"] = "yes" if verdict.ok else verdict.reason
    return row


def _equals(model: Model, pruned: Model, inputs: Tensor) -> str:
    expected = forward(masked(model.module, pruned.module), (inputs.double(),))
    ours = forward(copy.deepcopy(pruned.module).double(), (inputs.double(),))
    off = float((ours - expected).abs().max() / expected.abs().max())
    return "yes" if off < EQUAL else f"off by {off:.2g}"


def _saves(pruned: Model) -> str:
    def build(blueprint: Any) -> nn.Module:
        return build_module(blueprint)

    try:
        with tempfile.TemporaryDirectory() as folder:
            save(pruned, Path(folder), build)
            again = load(Path(folder), build)
        same = torch.equal(
            forward(again.module, pruned.probe), forward(pruned.module, pruned.probe)
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "yes" if same else "differs"


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _plain(model: Model, keeps: float) -> dict[str, Any]:
    """Return what Torch-Pruning makes of a copy."""
    import torch_pruning

    module, started = copy.deepcopy(model.module), time.perf_counter()
    ignored = [module.get_submodule(path) for path in output_layers(module, model.example)]
    whole = counts.macs(model.module, model.example)
    try:
        with limited(PEER_LIMIT):
            pruner = torch_pruning.pruner.MagnitudePruner(
                module,
                model.example,
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=1 - keeps,
                ignored_layers=ignored,
                round_to=8,
                in_channel_groups={},
                out_channel_groups={},
                num_heads={},
            )
            pruner.step()
            shape = forward(module.eval(), model.example).shape
            if shape != forward(model.module, model.example).shape:
                return {"Torch-Pruning": f"outputs of shape {tuple(shape)}"}
            macs = counts.macs(module, model.example) / whole
    except Exception as error:
        return {"Torch-Pruning": f"{type(error).__name__}: {str(error)[:90]}"}
    taken = round(time.perf_counter() - started, 1)
    return {"Torch-Pruning": "runs", "its MACs": round(macs, 3), "its s": taken}


def answer(name: str, keeps: float, to: Connection) -> None:
    torch.set_num_threads(1)
    try:
        to.send(tried(name, keeps))
    except Exception as error:
        to.send({"runs": f"{type(error).__name__}: {error}"[:300]})


def in_a_process(name: str, keeps: float) -> dict[str, Any]:
    """Try a model in a process of its own, forked from one that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Path(__file__).stem, "timm", "onnxruntime", "onnxscript"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(name, keeps, there))
    started = time.perf_counter()
    process.start()
    there.close()
    found: dict[str, Any] = {"runs": f"not done within {LIMIT} s"}
    try:
        if here.poll(LIMIT):
            found = here.recv()
    except EOFError:
        process.join()
        found = {"runs": f"the process ended with code {process.exitcode}"}
    process.kill()
    process.join()
    cpu, features = cpu_info()
    seconds = round(time.perf_counter() - started, 1)
    on = f"{cpu} ({', '.join(features)})"
    return {"model": name, "keeps": keeps, **found, "seconds": seconds, "cpu": on}


def rows_of(kept: Path) -> dict[tuple[str, float], dict[str, Any]]:
    """Return the rows so far, the last of each model and share."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {(row["model"], row["keeps"]): row for row in map(json.loads, lines)}


def write(rows: list[dict[str, Any]], out: Path) -> None:
    body = [[str(row.get(column, "")).replace("|", "/") for column in COLUMNS] for row in rows]
    lines = ["# What structured pruning reaches", ""]
    lines += ["| " + " | ".join(line) + " |" for line in (COLUMNS, ["---"] * len(COLUMNS), *body)]
    lines.append("")
    for column in ("runs", "equals masked", "exports", "file agrees", "saves"):
        lines.append(f"{column}: {sum(row.get(column) == 'yes' for row in rows)} of {len(rows)}.")
    plain = sum(row.get("Torch-Pruning") == "runs" for row in rows)
    lines.append(f"Plain Torch-Pruning runs: {plain} of {len(rows)}.")
    done = len({row["model"] for row in rows})
    lines += ["", f"{done} of {len(names())} models. `prune_channels(channels=...)`, round_to=8."]
    lines += [f"On {cpu}." for cpu in sorted({row["cpu"] for row in rows})]
    lines += ["", "`python benchmarks/pruning/coverage.py --out reports/pruning` gives it.", ""]
    write_atomic(out / "coverage.md", "\n".join(lines).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept, started = options.out / "coverage.jsonl", time.perf_counter()
    for name in options.names or names():
        for keeps in RATIOS:
            if (name, keeps) in rows_of(kept) and not options.names:
                continue
            if time.perf_counter() - started > options.seconds:
                break
            row = in_a_process(name, keeps)
            print({key: row.get(key) for key in COLUMNS}, flush=True)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
    known = rows_of(kept)
    rows = [known[name, keeps] for name in names() for keeps in RATIOS if (name, keeps) in known]
    write(rows, options.out)


if __name__ == "__main__":
    main()
