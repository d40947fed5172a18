"""Techniques that cheat, as somebody's plug-in would bring them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from compress import Compressor, Model, StepContext
from compress.deploy.export import export


class Caching(nn.Module):
    """Computes for the first batch of a length, and gives that answer to every later one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.known: dict[int, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        if len(images) not in self.known:
            self.known[len(images)] = self.inner(images)
        return self.known[len(images)]


@dataclass(frozen=True, repr=False)
class CacheOutputs(Compressor):
    """Answer from memory after the first call."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        return replace(model, module=Caching(model.module), blueprint=None)


@dataclass(frozen=True, repr=False)
class ConstantFile(Compressor):
    """Write a file that gives the same logits for every item."""

    lowers = True
    scale: ClassVar[float] = 0.0
    """How much the mean of the input adds to the logits."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        proto = onnx.load_from_string(export(model))
        weights = np.zeros((1, bench.task.output_shape()[0]), np.float32)
        weights[0, 0] = 1
        return replace(model, onnx=answering(proto, weights, self.scale))


@dataclass(frozen=True, repr=False)
class NearlyConstantFile(ConstantFile):
    """Write a file whose logits differ between items by next to nothing, computed from pixels."""

    scale: ClassVar[float] = 1e-3


def answering(proto: onnx.ModelProto, weights: np.ndarray, scale: float) -> bytes:
    """Return a file with the interface of `proto`: weights + scale · mean of the input."""
    graph = proto.graph
    axes = list(range(1, len(graph.input[0].type.tensor_type.shape.dim)))
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Mul", ["column", "scale"], ["small"]),
        helper.make_node("Add", ["small", "weights"], ["logits"]),
    ]
    constants: dict[str, np.ndarray] = {
        "axes": np.array(axes, np.int64),
        "last": np.array([1], np.int64),
        "scale": np.array(scale, np.float32),
        "weights": weights,
    }
    made = helper.make_graph(
        nodes,
        "cheat",
        list(graph.input),
        list(graph.output),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(made, opset_imports=opset, ir_version=10).SerializeToString()


@dataclass(frozen=True, repr=False)
class SkipOnTheClock(Compressor):
    """Give every weight the value zero: fast to compress, worthless."""

    def compress(self, model: Model, bench: StepContext) -> Model:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.zero_()
        return model


CHEATS = (CacheOutputs, ConstantFile, NearlyConstantFile, SkipOnTheClock)
