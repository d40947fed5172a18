"""Sessions of onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from compress.runtimes.base import DEFAULT_LEVEL, OnnxFile, Session
from compress.runtimes.onnxruntime_cpu import OnnxruntimeCpu, OrtSession
from compress.tasks.base import Tensors


def session(onnx: OnnxFile, threads: int = 0, optimize: bool = True) -> OrtSession:
    """Open a file, or the bytes of one, with `threads` threads (0: all cores at hand).

    `optimize=False` switches every graph optimization off. Raises onnxruntime's own errors for
    a file that it cannot run.
    """
    return OnnxruntimeCpu().open(onnx, threads, DEFAULT_LEVEL if optimize else "disabled")


def arrays(inputs: Tensors) -> list[np.ndarray]:
    """Return input tensors as contiguous arrays on the CPU."""
    return [np.ascontiguousarray(tensor.detach().cpu().numpy()) for tensor in inputs]


def predict(runner: Session, batches: Iterable[Tensors]) -> np.ndarray:
    """Return the logits of all batches in order, shape (N, classes)."""
    outputs = [
        runner.run(dict(zip(runner.names, arrays(inputs), strict=True))) for inputs in batches
    ]
    if not outputs:
        raise ValueError("there is no batch to predict")
    return np.concatenate(outputs)


def split(inputs: Tensors, batch: int) -> list[Tensors]:
    """Cut inputs of N items into batches of at most `batch`."""
    return list(zip(*(tensor.split(batch) for tensor in inputs), strict=True))
