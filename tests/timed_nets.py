"""A net whose layers are timed, and clocks that know how long they take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.context import StepContext, StepLog
from compress.lowrank.latency import Clock, Files
from compress.model import Model
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques.channel_groups import Channels
from compress.techniques.channel_proof import sound_groups
from compress.techniques.channel_times import (
    Timed,
    timed_layers,
)

TASK = ImageClassification(
    "test", tuple("0123456789"), Preprocessing(3, (8, 8), (0.5,) * 3, (0.25,) * 3)
)
Samples = Sequence[np.ndarray]


class Net(nn.Module):
    """A stem, a block with a depthwise and a grouped convolution inside, a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 64, 1)
        self.each = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.back = nn.Conv2d(64, 32, 1)
        self.down = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.hidden, self.out = nn.Linear(48 * 16, 40), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.back(F.relu(self.each(F.relu(self.wide(x)))))
        return self.out(F.relu(self.hidden(F.relu(self.down(x)).flatten(1))))


def model_of(net: nn.Module | None = None) -> Model:
    torch.manual_seed(0)
    return Model((net or Net()).eval(), (torch.randn(2, 3, 8, 8),))


def context() -> StepContext:
    return StepContext(TASK, log=StepLog())


def everything(model: Model) -> tuple[Channels, list[Timed], dict[tuple[str, int], int]]:
    channels = sound_groups(model.module, model.items())
    grains = {group.axis: group.grains for group in channels.groups}
    return channels, timed_layers(model, channels), grains


def macs_of(content: bytes) -> float:
    """Count the multiplications of a layer's file at 8 x 8 pixels."""
    graph = onnx.load_from_string(content).graph
    stored = {one.name: list(one.dims) for one in graph.initializer}
    total = 0.0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            dims = next(stored[name] for name in node.input if name in stored)
            strides = [a.ints for a in node.attribute if a.name == "strides"]
            pixels = 64 / np.prod(strides[0]) if strides else 1.0
            total += float(np.prod(dims)) * (pixels if "Conv" in node.op_type else 1.0)
    return total


def by_macs(overhead: float = 0.0, share: float = 1.0) -> Clock:
    """Return a clock by which a file takes as long as its MACs.

    Of a whole model's, only a share of the MACs counts, and the overhead comes on top.
    """

    def seconds_of(files: Files, samples: Samples, seconds: float) -> dict[str, np.ndarray]:
        found = {}
        for name, content in files.items():
            if content.startswith(b"MACS"):
                cost = float(content.split()[1]) * share + overhead
            else:
                cost = macs_of(content)
            found[name] = np.array([cost, cost, 1e12]) * 1e-9
        return found

    return seconds_of


def in_blocks(block: int) -> Clock:
    """Return a clock for which channels come in blocks: a width takes as long as the next block."""

    def seconds_of(files: Files, samples: Samples, seconds: float) -> dict[str, list[float]]:
        found = {}
        for name, content in files.items():
            graph = onnx.load_from_string(content).graph
            makes, reads, *_ = next(i.dims for i in graph.initializer if "weight" in i.name)
            found[name] = [float(-(-makes // block) * -(-reads // block))] * 3
        return found

    return seconds_of
