"""What zeros in the pattern 2:4 gain in the sparse kernels of an NVIDIA GPU.

    python benchmarks/pruning/semi_structured.py [--model torchvision:vit_b_16] [--batch 64]

Linear layers of `prune_weights(pattern='2:4')`, those of attention included, become
`torch.sparse.to_sparse_semi_structured` in float16. Their net's outputs must equal those of the
same zeros in dense kernels; then both are timed in turns by the GPU's clock. Without a GPU of
compute capability 8.0 (Ampere) or newer there are no such kernels, and the script says so and exits
with 1.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.lowrank.unpack import unpacked
from compress.model import Model
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.zoo.models import fresh

AMPERE = (8, 0)
ROUNDS, CALLS = 15, 20
TOLERANCE = 2e-2
"""Of the largest output: float16, in another order of sums."""
SMALLEST, MULTIPLE = 64, 64
"""Sides of weights that the kernels take."""


def why_not() -> str:
    """Return why there are no sparse kernels here; '' if there are."""
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU here, and kernels for 2:4 exist on them alone"
    capability = torch.cuda.get_device_capability()
    if capability < AMPERE:
        return f"this GPU's compute capability is {capability}, and 2:4 begins with {AMPERE}"
    return ""


def in_sparse_kernels(module: nn.Module) -> tuple[nn.Module, int]:
    """Return a copy whose linear layers use sparse kernels where they can, and how many do."""
    result, count = copy.deepcopy(module), 0
    for layer in result.modules():
        if not isinstance(layer, nn.Linear):
            continue
        weight = layer.weight.detach()
        fits = all(side >= SMALLEST and side % MULTIPLE == 0 for side in weight.shape)
        if fits and int((weight.view(-1, 4) != 0).sum(1).max()) <= 2:
            layer.weight = nn.Parameter(
                torch.sparse.to_sparse_semi_structured(weight), requires_grad=False
            )
            count += 1
    return result, count


def seconds(module: nn.Module, x: Tensor) -> float:
    """Return the seconds of a pass, by the GPU's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        module(x)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / CALLS / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="torchvision:vit_b_16")
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(f"nothing to time: {reason}")
    task = ImageClassification(
        "made", tuple(map(str, range(1000))), Preprocessing(3, (224, 224), (0.5,) * 3, (0.25,) * 3)
    )
    torch.manual_seed(0)
    model = fresh(given.model, task)
    model = Model(model.module.eval(), (torch.randn(2, 3, 224, 224),))
    # nn.MultiheadAttention keeps its projections in a parameter that no layer multiplies by.
    model = replace(model, module=unpacked(model.module, model.items())[0])
    pruned = run(chain("prune_weights(pattern='2:4')"), model, StepContext(task, log=StepLog()))
    dense = pruned.module.half().cuda()
    sparse, count = in_sparse_kernels(dense)
    x = torch.randn(given.batch, 3, 224, 224).half().cuda()
    with torch.inference_mode():
        expected, found = dense(x).float(), sparse(x).float()
        off = float((expected - found).abs().max() / expected.abs().max())
        if off > TOLERANCE:
            sys.exit(f"sparse kernels give other outputs: off by {off:.3f} of the largest")
        ratios = [seconds(dense, x) / seconds(sparse, x) for _ in range(ROUNDS)]
    linear = sum(isinstance(layer, nn.Linear) for layer in dense.modules())
    print(
        f"{given.model}, batch {given.batch}, float16, {torch.cuda.get_device_name()}: {count} "
        f"of {linear} linear layers in sparse kernels, {statistics.median(ratios):.2f} x as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f}), outputs off by {off:.4f} of the largest"
    )


if __name__ == "__main__":
    main()
