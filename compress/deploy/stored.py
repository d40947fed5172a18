"""What numbers an ONNX file stores its weights in."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compress.deploy.protobuf import within

INT8 = (TensorProto.INT8, TensorProto.UINT8)
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def stored(content: bytes) -> dict[str, Any]:
    """Return the `precision` of a file: int8, float16 or float32, the narrowest of its weights.

    Weights are constants of two or more dimensions. Of an int8 file `int8_largest` is the largest
    magnitude among its signed ones: where that is 64, sums of two products fit 16 bits.
    """
    model = onnx.load_from_string(content)
    weights = [tensor for tensor in within(model, TensorProto) if len(tensor.dims) > 1]
    narrow = [tensor for tensor in weights if tensor.data_type in INT8]
    if narrow:
        signed = [t for t in narrow if t.data_type == TensorProto.INT8]
        sizes = [np.abs(numpy_helper.to_array(t).astype(int)).max(initial=0) for t in signed]
        return {"precision": "int8", "int8_largest": int(max(sizes, default=0))}
    half = any(tensor.data_type in HALF for tensor in weights)
    return {"precision": "float16" if half else "float32"}
