"""ONNX graphs in memory: parsed once, and copied without a second copy of their weights.

`model.clone()` copies nodes and values, and shares the constants. Nothing here changes an array.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from compress.runtimes.onnxruntime_cpu import OrtSession, open_session, session_options
from compress.system.environment import cpu_threads

LEAST = 1024
"""Bytes from which on a constant is lent to a session, and not written for it."""
PLAIN = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64})
"""What numpy has, and onnxruntime takes from it."""


def parsed(content: bytes) -> ir.Model:
    """Return the graph of a file. Its weights are arrays, no longer parts of a message.

    A message gives a new copy of a weight whenever it is asked for one.
    """
    model = ir.serde.deserialize_model(onnx.load_from_string(content))
    graphs = [model.graph]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _own(attribute.value))
            elif attribute.type == ir.AttributeType.GRAPH:
                graphs.append(attribute.value)
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own(value.const_value)
    return model


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor whose values are its own: one part of a message keeps all of it alive."""
    if tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def serialized(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString()


def opened(model: ir.Model, names: Iterable[str] = ()) -> OrtSession:
    """Open a graph with onnxruntime so that it can give the values of these names as well.

    Large constants are lent to it: written for it and parsed by it, they would be there twice more
    than in the one copy that it makes. Raises onnxruntime's own errors.
    """
    import onnxruntime

    copy = model.clone()
    graph = copy.graph
    made = (value for node in graph for value in node.outputs)
    known = {value.name: value for value in (*graph.inputs, *graph.initializers.values(), *made)}
    given = {value.name for value in graph.outputs}
    for name in dict.fromkeys(names):
        if name not in given:
            value = known[name]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(value)
    lent = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < LEAST or tensor.dtype not in PLAIN:
            continue
        lent[name] = onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())
        value.const_value = ir.ExternalTensor(
            *("lent", 0, tensor.nbytes, tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
        )
    options = session_options(threads=cpu_threads())
    options.add_external_initializers(list(lent), list(lent.values()))
    return OrtSession(open_session(serialized(copy), options), lent)
