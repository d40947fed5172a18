"""Sessions of onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath

import numpy as np
import onnxruntime
from torch import Tensor

from compress.system.environment import cpu_threads
from compress.tasks.base import Tensors


def session(
    onnx: bytes | str | PathLike[str], threads: int = 0, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Open a file, or the bytes of one, with `threads` threads (0: all cores at hand).

    `optimize=False` switches every graph optimization off. Raises onnxruntime's own errors for
    a file that it cannot run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_threads()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    given = onnx if isinstance(onnx, bytes) else fspath(onnx)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def arrays(inputs: Tensors) -> list[np.ndarray]:
    """Return input tensors as contiguous arrays on the CPU."""
    return [as_array(tensor) for tensor in inputs]


def as_array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def predict(runner: onnxruntime.InferenceSession, batches: Iterable[Tensors]) -> np.ndarray:
    """Return the logits of all batches in order, shape (N, classes)."""
    names = [given.name for given in runner.get_inputs()]
    outputs = [
        runner.run(None, dict(zip(names, arrays(inputs), strict=True)))[0] for inputs in batches
    ]
    if not outputs:
        raise ValueError("there is no batch to predict")
    return np.concatenate(outputs)


def split(inputs: Tensors, batch: int) -> list[Tensors]:
    """Cut inputs of N items into batches of at most `batch`."""
    parts = [tensor.split(batch) for tensor in inputs]
    return [tuple(part) for part in zip(*parts, strict=True)]
