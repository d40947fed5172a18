"""Latency on a CUDA device, of a torch module and of an ONNX file. Torch is imported lazily."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

Latency = tuple[float | None, str]
"""Median milliseconds, or None and the reason."""


def cuda_torch_latency(
    module: nn.Module, inputs: Sequence[Tensor], calls: int = 100, warm_up: int = 20
) -> Latency:
    """Return the median milliseconds of a forward pass on the GPU, by CUDA events.

    Works on a copy of the module; `inputs` are on any device.
    """
    import copy

    import torch

    if not torch.cuda.is_available():
        return None, "no CUDA device"
    device = torch.device("cuda")
    ours = copy.deepcopy(module).to(device).eval()
    given = [tensor.to(device) for tensor in inputs]
    pairs = []
    with torch.no_grad():
        for _ in range(warm_up):
            ours(*given)
        torch.cuda.synchronize()
        for _ in range(calls):
            pair = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
            pair[0].record()
            ours(*given)
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize()
    return float(np.median([start.elapsed_time(end) for start, end in pairs])), ""


def cuda_onnx_latency(
    path: Path, inputs: Sequence[np.ndarray], calls: int = 100, warm_up: int = 20
) -> Latency:
    """Return the median milliseconds of onnxruntime's CUDA provider, copies to and fro included."""
    import onnxruntime

    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        return None, "onnxruntime here has no CUDA provider"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    if provider not in session.get_providers():
        return None, "onnxruntime could not start its CUDA provider"
    feed = {given.name: array for given, array in zip(session.get_inputs(), inputs, strict=True)}
    for _ in range(warm_up):
        session.run(None, feed)
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) * 1e3, ""
