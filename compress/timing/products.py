"""The multiply-accumulates of onnxruntime's CPU kernels, by operator and shapes.

Operators are those that its CPU provider has kernels for (docs/OperatorKernels.md of
onnxruntime 1.32). Shapes say enough for all but Einsum, whose equation they do not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

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
