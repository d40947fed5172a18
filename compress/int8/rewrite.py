"""Float graphs rewritten to the same function in operators that have integer kernels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from compress.deploy.graphs import parsed
from compress.int8.units import Unit, array, attribute, quantizable, sole_reader


def rewritten(float_model: ir.Model) -> ir.Model:
    """Return a graph of the same function that suits quantization; names of values stay.

    A mean over height and width becomes a global average pooling; the flattening of a pooled value
    becomes a Squeeze, past which onnxruntime can move its change of layout; a hard sigmoid after a
    product becomes a clip to [0, 1], with its slope and offset folded into the product's weights.
    """
    model = float_model.clone()
    passes.NameFixPass()(model)
    for node in list(model.graph):
        if node.op_type == "ReduceMean":
            _pooled(model.graph, node)
        elif node.op_type == "HardSigmoid":
            _clipped(model.graph, node)
    for node in list(model.graph):
        if node.op_type in ("Flatten", "Reshape"):
            _squeezed(model.graph, node)
    passes.RemoveUnusedNodesPass()(model)
    return model


def named(float_onnx: bytes, parameters: Mapping[str, np.ndarray]) -> ir.Model:
    """Return the graph of a file; its weights have the names of a module's parameters.

    The exporter names those that it transposes anew.
    """
    model = parsed(float_onnx)
    left = {
        name: value.T
        for name, value in parameters.items()
        if value.ndim == 2 and name not in model.graph.initializers
    }
    for value in list(model.graph.initializers.values()):
        found = array(value)
        if found is None or found.ndim != 2 or value.name in parameters:
            continue
        same = (name for name, turned in left.items() if _equal(turned, found))
        if (name := next(same, None)) is not None:
            value.name = name
            del left[name]
    return model


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two matrices are equal; most differ in their first row."""
    return one.shape == other.shape and all(
        np.array_equal(*pair) for pair in ((one[:1], other[:1]), (one, other))
    )


def _pooled(graph: ir.Graph, node: ir.Node) -> None:
    source, axes = node.inputs[0], array(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or len(source.shape) != 4 or axes is None:
        return
    if sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        return
    keeps = node.attributes.get("keepdims")
    output = node.outputs[0]
    pooled = ir.node("GlobalAveragePool", [source], name=node.name)
    new = [pooled]
    if keeps is not None and not keeps.value:
        axes_value = constant(graph, f"{node.name}_axes", np.array([2, 3]))
        pooled.outputs[0].name = f"{output.name}_pooled"
        pooled.outputs[0].shape = ir.Shape([*source.shape[:2], 1, 1])
        pooled.outputs[0].type = output.type
        new.append(ir.node("Squeeze", [pooled.outputs[0], axes_value], name=f"{node.name}_squeeze"))
    replace_node(graph, node, new)


def _squeezed(graph: ir.Graph, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    pooled = source.producer() if source is not None else None
    if pooled is None or pooled.op_type != "GlobalAveragePool":
        return
    before, after = pooled.inputs[0].shape, output.shape  # type: ignore[union-attr]
    if before is None or after is None or len(before) != 4 or len(after) != 2:
        return
    if before[1] != after[1]:  # also where it is not known
        return
    axes = constant(graph, f"{node.name}_axes", np.array([2, 3]))
    replace_node(graph, node, [ir.node("Squeeze", [source, axes], name=node.name)])


def replace_node(graph: ir.Graph, node: ir.Node, new: list[ir.Node]) -> None:
    """Put nodes in the place of one; the last gives what it gave, by the same name."""
    output, last = node.outputs[0], new[-1].outputs[0]
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(output, last, replace_graph_outputs=True)
    last.shape, last.type = output.shape, output.type
    graph.remove(node, safe=True)
    last.name = output.name


def _clipped(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    product = source.producer() if source is not None else None
    if product is None or product.op_type not in ("Conv", "Gemm") or quantizable(product):
        return
    unit = Unit(product)
    if sole_reader(product.outputs[0]) is not node or not all(
        value is None or len(value.uses()) == 1 for value in product.inputs[1:]
    ):
        return
    slope, offset = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    zeros = np.zeros(unit.weight.shape[unit.channel_axis])
    start: np.ndarray = zeros if unit.bias is None else unit.bias
    bias = start * slope + offset
    name = product.name
    weight = product.inputs[1]
    assert weight is not None
    weight.const_value = ir.tensor(unit.weight * np.float32(slope), name=weight.name)
    if len(product.inputs) < 3:
        product.resize_inputs(3)
    product.replace_input_with(2, constant(graph, f"{name}_offset", bias.astype(np.float32)))
    ends = [constant(graph, f"{name}_{end}", np.array(end, np.float32)) for end in (0, 1)]
    replace_node(graph, node, [ir.node("Clip", [source, *ends], name=node.name)])


def constant(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """Return a constant of a graph, made unless it is there."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.tensor(values, name=name))
    value.shape, value.type = ir.Shape(values.shape), ir.TensorType(ir.tensor(values).dtype)
    graph.register_initializer(value)
    return value
