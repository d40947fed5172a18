"""What onnxruntime executes for a file: how much of it is int8, and what stands beside it.

The graph that runs is not the one in the file: nodes are fused, quantized pairs are turned into
int8 kernels, or are not. The profile of one run names every kernel with its types and shapes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from compress.runtimes.onnxruntime_cpu import ERRORS_TOO, open_session, session_options
from compress.timing.products import Kernel, products

QDQ = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Instructions that multiply and add int8 exactly and four at a time."""
BLOCKED_LAYOUT = "NchwcTransformer"
"""onnxruntime's optimizer that pads float channels to the width of the vector units."""


@dataclass(frozen=True)
class Executed:
    """The kernels of one run of a file at onnxruntime's default optimization level.

    Convolutions and matrix products are counted by what they multiply: int8 where both sides
    are 8-bit integers. A fused attention is two products, or three with its projection.
    `qdq_nodes` are the quantize and dequantize nodes that were executed; a file that is int8
    from end to end keeps two, at its input and its output. `int8_macs` and `macs` are
    multiply-accumulates at the batch size of the run, without the channels that the blocked
    float layout pads. `operators` is the number of executed kernels by name.
    """

    int8_convs: int
    float_convs: int
    int8_matmuls: int
    float_matmuls: int
    qdq_nodes: int
    int8_macs: int
    macs: int
    operators: Mapping[str, int] = field(default_factory=dict)

    @property
    def int8_macs_share(self) -> float | None:
        """The share of multiply-accumulates that is int8; None for a file that has none."""
        return self.int8_macs / self.macs if self.macs else None


def executed(
    onnx: bytes | str | PathLike[str], inputs: Sequence[np.ndarray], threads: int = 0
) -> Executed:
    """Run a file once on the CPU and return what was executed.

    `onnx` is a path or the content of a file, `inputs` one array per input, (N, ...); 0 threads
    are onnxruntime's own choice. Raises onnxruntime's own errors for a file that does not run.
    Einsum is not among the products: the profile does not tell its equation.
    """
    ran = _profile(onnx, inputs, threads)
    operators = Counter(kernel.op for kernel in ran)
    # The profile shows padded channels, not how many of them the model has.
    exact = ran
    if {"ReorderInput", "ReorderOutput"} & operators.keys():
        exact = _profile(onnx, inputs, threads, without=[BLOCKED_LAYOUT])
    found = [product for kernel in ran for product in products(kernel)]
    counted = Counter((product.kind, product.int8) for product in found)
    work = [product for kernel in exact for product in products(kernel)]
    return Executed(
        int8_convs=counted["conv", True],
        float_convs=counted["conv", False],
        int8_matmuls=counted["matmul", True],
        float_matmuls=counted["matmul", False],
        qdq_nodes=sum(operators[name] for name in QDQ),
        int8_macs=sum(product.macs for product in work if product.int8),
        macs=sum(product.macs for product in work),
        operators=dict(sorted(operators.items())),
    )


def explain(run: Executed, cpu_flags: Collection[str]) -> str:
    """Return why an int8 file may not be faster, in a sentence; '' if nothing is to be said.

    `cpu_flags` are those of `environment.cpu_info`; nothing is said of a CPU without any.
    """
    products = run.int8_convs + run.int8_matmuls
    if not products and not run.qdq_nodes:
        return ""
    reasons = []
    share = run.int8_macs_share
    if share is not None and share <= 0.95:
        reasons.append(f"{1 - share:.0%} of the MACs still run in float")
    # A net needs two at its ends, often two around its pooling; beyond a quarter it is in pieces.
    if run.qdq_nodes > max(4, products / 4):
        reasons.append(f"{run.qdq_nodes} quantize/dequantize nodes are left")
    if cpu_flags and not INT8_FLAGS & set(cpu_flags):
        reasons.append("this CPU has no int8 dot products (VNNI, AMX or Arm's)")
    return f"what slows int8: {', '.join(reasons)}" if reasons else ""


def _profile(
    onnx: bytes | str | PathLike[str],
    inputs: Sequence[np.ndarray],
    threads: int,
    without: Sequence[str] = (),
) -> list[Kernel]:
    with tempfile.TemporaryDirectory(prefix="compress-profile-") as folder:
        # A prepacked weight is no input any more, and its shape would be missing.
        options = session_options(silence=ERRORS_TOO, session__disable_prepacking="1")
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "run")
        session = open_session(onnx, options, disabled_optimizers=list(without))
        feed = {
            wanted.name: array for wanted, array in zip(session.get_inputs(), inputs, strict=True)
        }
        try:
            session.run(None, feed)
        finally:
            path = session.end_profiling()
        return read_profile(json.loads(Path(path).read_text()))


def read_profile(events: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """Return the kernels among the events of onnxruntime's profile, in the order of the run."""
    details = [
        event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    return [
        Kernel(
            detail["op_name"],
            next((name for given in detail["input_type_shape"][:1] for name in given), ""),
            _shapes(detail["input_type_shape"]),
            _shapes(detail["output_type_shape"]),
        )
        for detail in details
    ]


def _shapes(tensors: Sequence[Mapping[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of tensors given as {element type: shape}."""
    return tuple(tuple(shape) for tensor in tensors for shape in tensor.values())
