"""Float graphs rewritten to the same function in operators that have integer kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from compress.int8.units import array


def rewritten(float_onnx: bytes) -> bytes:
    """Return a file of the same function that suits quantization; names of values stay.

    A mean over height and width becomes a global average pooling.
    """
    model = ir.serde.deserialize_model(onnx.load_from_string(float_onnx))
    passes.NameFixPass()(model)
    for node in list(model.graph):
        if node.op_type == "ReduceMean":
            _pooled(model.graph, node)
    passes.RemoveUnusedNodesPass()(model)
    return ir.serde.serialize_model(model).SerializeToString()


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
        name = f"{node.name}_axes"
        axes_value = ir.Value(name=name, const_value=ir.tensor(np.array([2, 3]), name=name))
        axes_value.shape, axes_value.type = ir.Shape([2]), ir.TensorType(ir.DataType.INT64)
        graph.register_initializer(axes_value)
        pooled.outputs[0].name = f"{output.name}_pooled"
        pooled.outputs[0].shape = ir.Shape([*source.shape[:2], 1, 1])
        pooled.outputs[0].type = output.type
        new.append(ir.node("Squeeze", [pooled.outputs[0], axes_value], name=f"{node.name}_squeeze"))
    last = new[-1].outputs[0]
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(output, last, replace_graph_outputs=True)
    last.shape, last.type = output.shape, output.type
    graph.remove(node, safe=True)
    last.name = output.name
