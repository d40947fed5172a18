"""What numbers an ONNX file stores its weights in."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from compress.deploy.protobuf import within
from compress.deploy.saturation import largest_pair

PACKED = (TensorProto.INT4, TensorProto.UINT4)
INTEGERS = (TensorProto.INT8, TensorProto.UINT8, *PACKED)
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def stored(content: bytes) -> dict[str, Any]:
    """Return the `precision` of a file, the narrowest of its weights: int4, int8, float16, float32.

    Weights are constants of two or more dimensions. Of integers `int8_pair` is the largest sum of
    two neighbouring signed ones: up to 128, their products fit 16 bits (`saturation`).
    """
    model = onnx.load_from_string(content)
    weights = [tensor for tensor in within(model, TensorProto) if len(tensor.dims) > 1]
    narrow = [tensor for tensor in weights if tensor.data_type in INTEGERS]
    if narrow:
        kinds = (TensorProto.INT8, TensorProto.INT4)
        signed = [tensor for tensor in narrow if tensor.data_type in kinds]
        axes = _channel_axes(model)
        pairs = [_pair(tensor, axes.get(tensor.name, (0, 1))) for tensor in signed]
        packed = any(tensor.data_type in PACKED for tensor in narrow)
        return {"precision": "int4" if packed else "int8", "int8_pair": max(pairs, default=0)}
    half = any(tensor.data_type in HALF for tensor in weights)
    return {"precision": "float16" if half else "float32"}


def _channel_axes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return along which axis the output channels of weights lie, where each has its scale."""
    sizes = {tensor.name: len(tensor.dims) for tensor in within(model, TensorProto)}
    return {
        node.input[0]: (next((one.i for one in node.attribute if one.name == "axis"), 1),)
        for node in within(model, onnx.NodeProto)
        if node.op_type == "DequantizeLinear" and sizes.get(node.input[1])
    }


def _pair(tensor: TensorProto, axes: tuple[int, ...]) -> int:
    values = numpy_helper.to_array(tensor).astype(int)
    return max(int(largest_pair(values, axis).max(initial=0)) for axis in axes)
