"""Nets to factorize, their inputs, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from bench_fixtures import images
from torch import Tensor, nn

from compress import counts
from compress.context import StepContext, StepLog
from compress.model import Model, forward
from compress.tasks.base import TensorSplit

TASK = images(8)


def net() -> nn.Module:
    """Return a net whose weights have decaying singular values, as trained ones do."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                u, s, vh = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
                decaying = 3 * s[0] * torch.exp(-4 * torch.arange(len(s)) / len(s))
                layer.weight.copy_((u * decaying @ vh).view(layer.weight.shape))
    return module


def inputs(count: int, side: int = 8, channels: int = 3) -> Tensor:
    """Return smooth images: neighbouring pixels are alike, as in photographs."""
    draw = torch.randn(count, channels, 2, 2, generator=torch.Generator().manual_seed(1))
    return F.interpolate(draw, side, mode="bilinear") + 0.2 * torch.randn(
        count, channels, side, side, generator=torch.Generator().manual_seed(2)
    )


def context(count: int = 256, x: Tensor | None = None) -> StepContext:
    x = inputs(count) if x is None else x
    return StepContext(
        TASK, calibration=TensorSplit((x,), torch.zeros(len(x), dtype=torch.long)), log=StepLog()
    )


def model_of(module: nn.Module, x: Tensor | None = None) -> Model:
    return Model(module.eval(), ((inputs(4) if x is None else x)[:4],))


def layers(log: StepLog) -> dict[str, dict]:
    return {row["layer"]: row for row in log.rows if row["kind"] == "layer"}


def share(result: Model, model: Model) -> float:
    return counts.macs(result.module, model.example) / counts.macs(model.module, model.example)


def wrong(result: Model, model: Model) -> float:
    x = (inputs(200)[100:],)
    before, after = forward(model.module, x), forward(result.module, x)
    return float((after - before).square().sum() / (before - before.mean(0)).square().sum())


def clock(overhead: float, asked: list[int]) -> object:
    """Return a clock by which a file takes its weights and so much for each node."""

    def seconds_of(
        files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        asked.append(len(files))
        found = {}
        for name, content in files.items():
            graph = onnx.load_from_string(content).graph
            weights = sum(int(np.prod(one.dims)) for one in graph.initializer if len(one.dims) > 1)
            products = [one for one in graph.node if one.op_type in ("Conv", "Gemm", "MatMul")]
            found[name] = np.full(3, 1e-6 * (weights + overhead * len(products)))
        return found

    return seconds_of
