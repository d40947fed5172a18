"""Versions of ONNX's format: the lowest that serve a file, and the oldest onnxruntime it needs."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, version_converter

from compress.errors import StepFailed

OPSETS = {18: "1.15", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23"}
"""The oldest onnxruntime that opens a file of an opset (and of the IR that belongs to it).

Tried: benchmarks/int8/runtimes.py, with 1.15.1 to 1.23.2; 1.15 is the oldest for Python 3.11.
"""
INT4, INT4_RUNTIME = 21, "1.23"
"""The opset that integers of 4 bits came with, and the oldest onnxruntime that casts them."""
GELU = 20
"""The opset that Gelu came with."""


def settle(proto: onnx.ModelProto) -> None:
    """Declare in a file the opsets that its nodes use, and the lowest IR that has these."""
    used = {node.domain for node in proto.graph.node}
    used |= {node.domain for function in proto.functions for node in function.node}
    # In two spellings the empty domain is ONNX's own. A file without nodes needs it, too.
    used |= {"", "ai.onnx"}
    kept = [opset for opset in proto.opset_import if opset.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    lowest = helper.find_min_ir_version_for(kept, ignore_unknown=True)
    proto.ir_version = min(proto.ir_version, lowest)


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators in a file."""
    return max(opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx"))


def oldest_runtime(proto: onnx.ModelProto) -> str:
    """Return the oldest onnxruntime that opens a file, such as '1.17'; '' if we do not know it."""
    found = OPSETS.get(max(opset_of(proto), min(OPSETS)), "")
    return max(found, INT4_RUNTIME) if found and _packed(proto) else found


def _packed(proto: onnx.ModelProto) -> bool:
    """Whether a file has integers of 4 bits."""
    kinds = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    return any(tensor.data_type in kinds for tensor in proto.graph.initializer)


def with_opset(content: bytes, opset: int) -> bytes:
    """Return a file in an older opset; as it is, if its own is not newer.

    Raises StepFailed if ONNX cannot convert it.
    """
    proto = onnx.load_from_string(content)
    if opset_of(proto) <= opset:
        return content
    if opset < INT4 and _packed(proto):
        raise StepFailed(
            f"weights of 4 bits need opset {INT4}, and {opset} was asked for: give bits=5 or more, "
            f"or another opset"
        )
    if opset < GELU:
        proto = _without_gelu(proto)
    _drop_defaults(proto)
    try:
        older = version_converter.convert_version(proto, opset)
        onnx.checker.check_model(older)
    except Exception as error:  # of C++, which raises RuntimeError and its own classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StepFailed(
            f"this model cannot be written with opset {opset}, its own is {opset_of(proto)} "
            f"(ONNX says: {reason}): choose an opset in between, or none"
        ) from error
    # What the converter leaves out.
    helper.set_model_props(older, {pair.key: pair.value for pair in proto.metadata_props})
    return older.SerializeToString()


def _drop_defaults(proto: onnx.ModelProto) -> None:
    """Drop attributes that have their usual value: an older operator may not know them at all.

    (ONNX's converter keeps `noop_with_empty_axes`, which the ReduceMean of opset 17 has not.)
    """
    opset = opset_of(proto)
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, opset):
            known = onnx.defs.get_schema(node.op_type, opset).attributes
            kept = [one for one in node.attribute if not _usual(one, known.get(one.name))]
            del node.attribute[:]
            node.attribute.extend(kept)


def _usual(attribute: onnx.AttributeProto, known: onnx.defs.OpSchema.Attribute | None) -> bool:
    usual = None if known is None or known.required else known.default_value
    if usual is None or usual.type == onnx.AttributeProto.UNDEFINED:
        return False
    return bool(helper.get_attribute_value(usual) == helper.get_attribute_value(attribute))


def _without_gelu(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write every Gelu as the function that ONNX defines it to be."""
    model = ir.serde.deserialize_model(proto)
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Gelu" or node.domain not in ("", "ai.onnx"):
            continue
        nodes, output = _gelu(node), node.outputs[0]
        assert node.graph is not None
        node.graph.insert_before(node, nodes)
        result, name = nodes[-1].outputs[0], output.name
        result.shape, result.type = output.shape, output.type
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)
        result.name = name
    return ir.serde.serialize_model(model)


def _gelu(node: ir.Node) -> list[ir.Node]:
    """Return nodes that compute x (1 + erf(x / sqrt 2)) / 2, or its approximation by tanh."""
    [x] = node.inputs
    assert x is not None
    kind = (x.dtype or ir.DataType.FLOAT).numpy()
    tape = ir.tape.Tape()

    def op(name: str, *inputs: ir.Value | float) -> ir.Value:
        values = [
            tape.op("Constant", [], {"value": ir.tensor(np.array(one, kind))})
            if isinstance(one, float)
            else one
            for one in inputs
        ]
        return tape.op(name, values)

    approximate = node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() == "tanh":
        inner = op("Add", x, op("Mul", op("Mul", x, op("Mul", x, x)), 0.044715))
        share = op("Tanh", op("Mul", inner, math.sqrt(2 / math.pi)))
    else:
        share = op("Erf", op("Div", x, math.sqrt(2)))
    op("Mul", op("Mul", x, op("Add", share, 1.0)), 0.5)
    for position, made in enumerate(tape.nodes):
        made.name = made.outputs[0].name = f"{node.name}_{position}"
    return list(tape.nodes)
