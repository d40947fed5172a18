"""What onnxruntime executes for a file: how much of it is int8, and what runs beside that.

The graph that runs is not the one in the file: nodes are fused, quantized pairs are turned into
int8 kernels, or are not. The profile of one run names every kernel with its types and shapes, from
which `RULES` count the multiply-accumulates (MACs) of those that its CPU provider has
(docs/OperatorKernels.md of onnxruntime 1.32). Shapes say enough for all but Einsum, whose equation
they do not show.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from compress.runtimes.base import OnnxFile
from compress.runtimes.onnxruntime_cpu import (
    ERRORS_TOO,
    OrtSession,
    open_session,
    session_options,
)

QDQ = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Instructions that multiply and add int8 exactly and four at a time."""
BLOCKED_LAYOUT = "NchwcTransformer"
"""onnxruntime's optimizer that pads float channels to the width of the vector units."""

Shape = Sequence[int]
Formula = Callable[[Sequence[Shape], Shape], list[int]]
"""From the shapes of the inputs and of the first output to the MACs of every product."""

FLOATS = frozenset({"float", "float16", "bfloat16", "double"})


@dataclass(frozen=True)
class Kernel:
    """An executed kernel: its operator, and element type of its first input ('' for none)."""

    op: str
    dtype: str
    inputs: Sequence[Shape]
    outputs: Sequence[Shape]


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product (`kind` 'conv' or 'matmul')."""

    kind: str
    int8: bool
    macs: int


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


def executed(onnx: OnnxFile, inputs: Sequence[np.ndarray], threads: int = 0) -> Executed:
    """Run a file once on the CPU and return what was executed.

    `onnx` is a path or the content of a file, `inputs` one array per input, (N, ...); 0 threads
    are onnxruntime's own choice. Raises onnxruntime's own errors for a file that does not run.
    Einsum is not among the products: the profile does not contain its equation.
    """
    kernels = _profile(onnx, inputs, threads)
    operators = Counter(kernel.op for kernel in kernels)
    # The profile shows padded channels, not how many of them the model has.
    exact = kernels
    if {"ReorderInput", "ReorderOutput"} & operators.keys():
        exact = _profile(onnx, inputs, threads, without=[BLOCKED_LAYOUT])
    counted = Counter((p.kind, p.int8) for kernel in kernels for p in products(kernel))
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
    """Return why an int8 file may not be faster, in a sentence; '' if there is no reason.

    `cpu_flags` are those of `environment.cpu_info`; a CPU without any is unknown, and no reason.
    """
    int8_products = run.int8_convs + run.int8_matmuls
    if not int8_products and not run.qdq_nodes:
        return ""
    reasons = []
    share = run.int8_macs_share
    if share is not None and share <= 0.95:
        reasons.append(f"{1 - share:.0%} of the MACs still run in float")
    # A net needs two at its ends, often two around its pooling; beyond a quarter it is in pieces.
    if run.qdq_nodes > max(4, int8_products / 4):
        reasons.append(f"{run.qdq_nodes} quantize/dequantize nodes are left")
    if cpu_flags and not INT8_FLAGS & set(cpu_flags):
        reasons.append("this CPU has no int8 dot products (VNNI, AMX or Arm's)")
    return f"what slows int8: {', '.join(reasons)}" if reasons else ""


def _profile(
    onnx: OnnxFile,
    inputs: Sequence[np.ndarray],
    threads: int,
    without: Sequence[str] = (),
) -> list[Kernel]:
    with tempfile.TemporaryDirectory(prefix="compress-profile-") as folder:
        # A prepacked weight is not an input any more, and its shape would be missing.
        options = session_options(
            silence=ERRORS_TOO, threads=threads, session__disable_prepacking="1"
        )
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "run")
        session = OrtSession(open_session(onnx, options, disabled_optimizers=list(without)))
        try:
            session.run(dict(zip(session.names, inputs, strict=True)))
        finally:
            path = session.session.end_profiling()
        events = json.loads(Path(path).read_text())
    return [
        _kernel(event["args"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


def _kernel(detail: Mapping[str, Any]) -> Kernel:
    """Return a kernel by its event in onnxruntime's profile, tensors as {element type: shape}."""
    inputs, outputs = detail["input_type_shape"], detail["output_type_shape"]
    dtype = next((name for tensor in inputs[:1] for name in tensor), "")
    return Kernel(detail["op_name"], dtype, _shapes(inputs), _shapes(outputs))


def _shapes(tensors: Sequence[Mapping[str, Shape]]) -> list[Shape]:
    return [shape for tensor in tensors for shape in tensor.values()]


def products(kernel: Kernel) -> list[Product]:
    """Return what a kernel multiplies; empty for one that holds no product."""
    kind, formula = RULES.get(kernel.op, ("", None))
    if formula is None or not (kernel.op in INT8 or kernel.dtype in FLOATS):
        return []
    counts = formula(kernel.inputs, kernel.outputs[0])
    first = INT8.get(kernel.op, 0)
    return [Product(kind, number < first, macs) for number, macs in enumerate(counts)]


def _conv(weight: int) -> Formula:
    """Every output value sums over the weights of its filter, (M, C / groups, *kernel)."""
    return lambda inputs, output: [prod(output) * prod(inputs[weight][1:])]


def _transposed_conv(inputs: Sequence[Shape], output: Shape) -> list[int]:
    """Every input value is spread by its filter, (C, M / groups, *kernel)."""
    return [prod(inputs[0]) * prod(inputs[1][1:])]


def _gemm(inputs: Sequence[Shape], output: Shape) -> list[int]:
    """(M, K) or its transpose, times (K, N)."""
    return [prod(inputs[0]) * output[-1]]


def _matmul(right: int) -> Formula:
    def formula(inputs: Sequence[Shape], output: Shape) -> list[int]:
        return [prod(output) * _inner(inputs[0], inputs[right], output) if prod(output) else 0]

    return formula


def _inner(left: Shape, right: Shape, output: Shape) -> int:
    """Return K of (..., M, K) x (..., K, N), the left side transposed or not."""
    if len(left) == 1:
        return left[0]
    if len(right) == 1:
        return right[0]
    pairs = zip(reversed(left[:-2]), reversed(output[:-2]), strict=False)
    if all(size in (1, whole) for size, whole in pairs):
        return left[-2] * left[-1] // output[-2]
    # FusedMatMul may have transposed the batch as well: then nothing is broadcast.
    return prod(left) // prod(output[:-1])


def _packed_matmul(inputs: Sequence[Shape], output: Shape) -> list[int]:
    """The weights are packed blocks of a few bits; the left side is (..., M, K)."""
    return [prod(output) * inputs[0][-1]]


def _attention(inputs: Sequence[Shape], output: Shape) -> list[int]:
    """Return those of q·k and of weights·v, for q and k of the shape (..., tokens, width).

    In `com.microsoft`'s Attention, the second input is the projection's matrix, and its product
    comes first.
    """
    if len(inputs[1]) != 2:
        tokens = inputs[1][-2]
        return [prod(inputs[0]) * tokens, prod(output) * tokens]
    rows, tokens = prod(inputs[0][:-1]), inputs[0][-2]
    query = (inputs[1][1] - output[-1]) // 2  # q and k are equally wide, v is as the output
    return [prod(inputs[0]) * inputs[1][1], rows * tokens * query, rows * tokens * output[-1]]


def _recurrent(inputs: Sequence[Shape], output: Shape) -> list[int]:
    """Return those of input and state, for x (steps, batch, width) and two weights."""
    return [prod(inputs[0][:2]) * prod(weight) for weight in inputs[1:3]]


def _named(kind: str, formula: Formula, *operators: str) -> dict[str, tuple[str, Formula]]:
    return dict.fromkeys(operators, (kind, formula))


RULES: Mapping[str, tuple[str, Formula]] = {
    **_named("conv", _conv(1), "Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "DeformConv"),
    **_named("conv", _conv(3), "QLinearConv"),
    **_named("conv", _transposed_conv, "ConvTranspose", "ConvTransposeWithDynamicPads"),
    **_named("matmul", _gemm, "Gemm", "FusedGemm", "QGemm"),
    **_named("matmul", _matmul(1), "MatMul", "FusedMatMul", "TransposeMatMul", "MatMulInteger"),
    **_named("matmul", _matmul(1), "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    **_named("matmul", _matmul(3), "QLinearMatMul"),
    **_named("matmul", _packed_matmul, "MatMulNBits", "MatMulBnb4", "MatMulFpQ4"),
    **_named("matmul", _attention, "Attention", "MultiHeadAttention", "QAttention"),
    **_named("matmul", _recurrent, "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"),
}
"""Operator -> kind and formula."""

INT8: Mapping[str, int] = {
    **dict.fromkeys(("ConvInteger", "QLinearConv", "QLinearMatMul", "MatMulInteger"), 1),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QAttention"), 1),
    "DynamicQuantizeLSTM": 2,
}
"""Operator -> how many of its products, from the first, multiply 8-bit integers.

Those with weights of fewer bits are not among them: what is beside the weights is float.
"""
