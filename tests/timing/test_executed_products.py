"""The MACs of kernels by arithmetic, and by what onnxruntime's own kernels are given."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.timing.executed import INT8, RULES, Kernel, executed, products


def macs(op, inputs, output, dtype="float"):
    return [product.macs for product in products(Kernel(op, dtype, inputs, [output]))]


@pytest.mark.parametrize(
    ("op", "inputs", "output", "expected"),
    [
        ("Conv", [(2, 3, 9, 9), (8, 3, 3, 3), (8,)], (2, 8, 7, 7), 2 * 8 * 49 * 27),
        ("FusedConv", [(1, 6, 5, 5), (6, 1, 3, 3)], (1, 6, 3, 3), 6 * 9 * 9),  # depthwise
        ("Conv", [(1, 8, 10), (4, 4, 3)], (1, 4, 8), 4 * 8 * 4 * 3),  # two groups, one dimension
        ("ConvTranspose", [(1, 4, 8, 8), (4, 3, 2, 2)], (1, 6, 16, 16), 4 * 64 * 3 * 4),
        ("Gemm", [(2, 20), (20, 5), (5,)], (2, 5), 2 * 20 * 5),
        ("MatMul", [(2, 3, 4, 5), (2, 3, 5, 6)], (2, 3, 4, 6), 6 * 4 * 5 * 6),
        ("MatMul", [(4, 5), (7, 5, 6)], (7, 4, 6), 7 * 4 * 5 * 6),  # the left side broadcasts
        ("MatMul", [(1, 4, 5), (7, 5, 6)], (7, 4, 6), 7 * 4 * 5 * 6),
        ("MatMul", [(5,), (2, 5, 6)], (2, 6), 2 * 5 * 6),
        ("MatMul", [(2, 4, 5), (5,)], (2, 4), 2 * 4 * 5),
        ("MatMul", [(5,), (5,)], (), 5),
        ("MatMul", [(0, 5), (5, 6)], (0, 6), 0),
        ("FusedMatMul", [(2, 5, 4), (2, 5, 6)], (2, 4, 6), 2 * 4 * 5 * 6),  # left transposed
        ("FusedMatMul", [(4, 2, 3, 5), (2, 3, 5, 6)], (2, 3, 4, 6), 6 * 4 * 5 * 6),  # and batch
        ("MatMulNBits", [(2, 7, 64), (16, 2, 16), (32,)], (2, 7, 16), 2 * 7 * 64 * 16),
    ],
)
def test_macs_of_one_float_product(op, inputs, output, expected):
    assert macs(op, inputs, output) == [expected]
    assert not products(Kernel(op, "float", inputs, [output]))[0].int8


def test_quantized_kernels_have_their_weights_elsewhere_and_are_int8():
    conv = [(1, 9, 9, 3), (), (), (8, 3, 3, 3), (8,), (8,), (), (), (8,)]
    assert macs("QLinearConv", conv, (1, 7, 7, 8), "uint8") == [8 * 49 * 27]
    product = [(2, 4, 5), (), (), (2, 5, 6), (), (), (), ()]
    assert macs("QLinearMatMul", product, (2, 4, 6), "uint8") == [2 * 4 * 5 * 6]
    (found,) = products(Kernel("DynamicQuantizeMatMul", "float", [(4, 5), (5, 6)], [(4, 6)]))
    assert (found.kind, found.int8, found.macs) == ("matmul", True, 120)


def test_attention_is_a_projection_and_two_products():
    batch, tokens, width, heads, head = 2, 5, 12, 3, 4
    both = batch * heads * tokens * tokens * head
    projected = [(batch, tokens, width), (width, 3 * heads * head), (3 * heads * head,)]
    assert macs("Attention", projected, (batch, tokens, heads * head)) == [
        batch * tokens * width * 3 * heads * head,
        both,
        both,
    ]
    kinds = products(Kernel("QAttention", "uint8", projected, [(batch, tokens, heads * head)]))
    assert [product.int8 for product in kinds] == [True, False, False]
    longer = batch * heads * tokens * 7 * head
    merged = [(batch, tokens, heads * head), *[(batch, 7, heads * head)] * 2]
    assert macs("MultiHeadAttention", merged, merged[0]) == [longer, longer]
    split = [(batch, heads, tokens, head), *[(batch, heads, 7, head)] * 2]
    assert macs("Attention", split, split[0]) == [longer, longer]


def test_index_arithmetic_and_other_operators_are_no_products():
    assert macs("MatMul", [(2, 2), (2, 2)], (2, 2), "int64") == []
    assert macs("Softmax", [(2, 2)], (2, 2)) == []
    assert macs("Constant", [], (2, 2), "") == []


def test_int8_operators_have_formulas():
    assert INT8.keys() <= RULES.keys()


# --- against the shapes that onnxruntime really tells --------------------------------------------


def file_of(nodes, weights, inputs, outputs=("y",)):
    """Return the content of a file of float inputs, {name: shape}, and its inputs as arrays."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in inputs.values()]
    return model.SerializeToString(), arrays


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_a_recurrent_layer():
    steps, batch, width, hidden = 3, 2, 4, 5
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden)
    weights = {"w": normal(1, 4 * hidden, width), "r": normal(1, 4 * hidden, hidden)}
    run = executed(*file_of([node], weights, {"x": (steps, batch, width)}))
    assert run.float_matmuls == 2
    assert run.macs == steps * batch * 4 * hidden * (width + hidden)


def test_fused_attention_of_both_domains():
    batch, tokens, heads, head = 2, 5, 3, 4
    width = heads * head
    ours = helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=heads
    )
    weights = {"w": normal(width, 3 * width), "b": normal(3 * width)}
    run = executed(*file_of([ours], weights, {"x": (batch, tokens, width)}))
    products_of_scores = 2 * batch * heads * tokens * tokens * head
    assert run.operators == {"Attention": 1}
    assert run.float_matmuls == 3
    assert run.macs == batch * tokens * width * 3 * width + products_of_scores

    standard = helper.make_node(
        "Attention", ["q", "k", "v"], ["y"], q_num_heads=heads, kv_num_heads=heads
    )
    run = executed(*file_of([standard], {}, dict.fromkeys("qkv", (batch, tokens, width))))
    assert run.float_matmuls == 2
    assert run.macs == products_of_scores


def test_dynamic_int8_is_int8():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["y"]),
    ]
    run = executed(*file_of(nodes, {"w": np.ones((6, 4), np.int8)}, {"x": (3, 6)}))
    assert (run.int8_matmuls, run.float_matmuls) == (1, 0)
    assert run.macs == run.int8_macs == 3 * 6 * 4


def test_products_with_transposed_sides_and_a_transposed_convolution():
    nodes = [
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "b"], ["product"]),
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2),
    ]
    inputs = {"a": (2, 5, 4), "b": (2, 5, 6), "x": (1, 4, 8, 8)}
    run = executed(*file_of(nodes, {"w": normal(4, 3, 2, 2)}, inputs, ("product", "y")))
    assert run.operators["FusedMatMul"] == 1
    assert (run.float_convs, run.float_matmuls) == (1, 1)
    assert run.macs == 2 * 4 * 5 * 6 + 4 * 64 * 3 * 4
