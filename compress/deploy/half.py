"""float16 by onnxruntime's own converter, with a look at every value that float16 cannot hold.

The converter clips what is out of range without a word, and onnxruntime's CPU provider computes
in float32 between its casts, so that an overflow shows on a GPU alone: here, both are refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from compress.amounts import decimal
from compress.deploy.export import read_metadata, set_metadata
from compress.deploy.int8 import Reader
from compress.errors import StepFailed
from compress.tasks.base import Tensors

LARGEST = float(np.finfo(np.float16).max)
"""65504. What is larger would be infinite."""
SMALLEST = 5.96e-08
"""The smallest number above zero; the converter raises to it what is smaller."""
ROOM = 0.5
"""A network whose values come closer to the limit than this share of it is worth a note."""
RARE = 1e-3
"""The share of raised weights above which it is worth a note."""

# Opens a file as it will be opened when it is measured. Alone, because it may crash.
OPEN = (
    "import onnxruntime as o, sys; s = o.SessionOptions(); s.log_severity_level = 3; "
    "o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])"
)


def to_float16(float_onnx: bytes, batches: Iterable[Tensors]) -> tuple[bytes, dict[str, Any]]:
    """Return the float16 file of a float file, and what was found.

    Inputs and outputs stay float32, so names, types, the dynamic batch and the metadata are as
    before. `batches` of prepared inputs show how large the values inside become. The dict holds
    `largest_weight`, `largest_activation` and its `tensor`, `raised` (weights that are smaller
    than float16's smallest number and became it), `float_ops` (operators left in float32) and
    `notes` (sentences).

    Raises StepFailed, with the name and the value, where a weight or a value inside is out of
    float16's range, and where onnxruntime crashes on the converted file.
    """
    proto = onnx.load_from_string(float_onnx)
    found, notes = _weights(proto.graph)
    tensor, largest = largest_activation(float_onnx, batches)
    if largest > LARGEST:
        raise StepFailed(
            f"float16 ends at {LARGEST:.0f}, and {tensor} inside the network reaches "
            f"{decimal(largest)}: it would become infinite"
        )
    if largest > ROOM * LARGEST:
        notes.append(
            f"little room: {tensor} inside the network reaches {decimal(largest)}, and float16 "
            f"ends at {LARGEST:.0f}"
        )
    converted, kept = _convert(proto)
    _part_transposes(converted)
    _sort(converted)
    set_metadata(converted, read_metadata(float_onnx))
    content = converted.SerializeToString()
    _opens(content)
    about = {"largest_activation": largest, "tensor": tensor, "float_ops": kept, "notes": notes}
    return content, {**found, **about}


def largest_activation(float_onnx: bytes, batches: Iterable[Tensors]) -> tuple[str, float]:
    """Return the name and the absolute value of the largest finite value inside a float file."""
    from onnxruntime.quantization.calibrate import create_calibrator

    graph = onnx.load_from_string(float_onnx).graph
    constant = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    reader = Reader(batches, [value.name for value in graph.input])
    with tempfile.TemporaryDirectory(prefix="compress-half-") as folder:
        source, augmented = Path(folder) / "float.onnx", Path(folder) / "augmented.onnx"
        source.write_bytes(float_onnx)
        calibrator = create_calibrator(source, None, str(augmented))
        calibrator.collect_data(reader)
        ranges = calibrator.compute_data().data
    sizes = {name: _size(data.range_value) for name, data in ranges.items() if name not in constant}
    name = max(sorted(sizes), key=lambda key: sizes[key])
    return name, sizes[name]


def _size(ends: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the largest finite |value|; an infinity is one in float32, too: a mask, say."""
    values = np.abs(np.ravel(ends))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _weights(graph: onnx.GraphProto) -> tuple[dict[str, Any], list[str]]:
    """Look at every constant; refuse what is out of range, count what is too small."""
    largest, raised, count, clipped = 0.0, 0, 0, []
    for name, values in _floats(graph):
        sizes = np.abs(values[np.isfinite(values)])
        top = float(sizes.max(initial=0.0))
        if top > LARGEST and values.size > 1:
            raise StepFailed(
                f"float16 ends at {LARGEST:.0f}, and the weight {name} has a value of "
                f"{decimal(top)}"
            )
        if top > LARGEST:
            clipped.append(f"{name} ({decimal(values.item())})")
        else:
            largest = max(largest, top)
        raised += int(((sizes > 0) & (sizes < SMALLEST)).sum())
        count += values.size
    notes = []
    if clipped:
        notes.append(f"constants beyond float16's range became its limit: {', '.join(clipped)}")
    if raised > RARE * count:
        notes.append(
            f"{raised} of {count} weights are closer to zero than float16's smallest number, and "
            f"became it (6e-08)"
        )
    return {"largest_weight": largest, "raised": raised}, notes


def _floats(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every float32 constant of a graph and its subgraphs, with a name to tell it by."""
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                if tensor.data_type == onnx.TensorProto.FLOAT:
                    yield f"{node.op_type} {node.name}", numpy_helper.to_array(tensor)
            for inner in (attribute.g, *attribute.graphs):
                yield from _floats(inner)


def _convert(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the converted file, and the operators in it that it leaves in float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    # The default list: operators without a float16 kernel in one provider or the other.
    kept = sorted({node.op_type for node in proto.graph.node} & set(DEFAULT_OP_BLOCK_LIST))
    return convert_float_to_float16(proto, keep_io_types=True), kept


def _part_transposes(proto: onnx.ModelProto) -> None:
    """Put a reshape that changes nothing between a matrix product and a transposed batch.

    Without it onnxruntime's CPU provider (1.24 and later, x86) crashes when it opens the file:
    its MatmulTransposeFusion leaves a half-made node behind (onnxruntime issue 28392). A reshape
    is a view and costs nothing.
    """
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "MatMul"]:
        for place, name in enumerate(node.input):
            rank = _batch_transposed(makers.get(name))
            if not rank:
                continue
            shape, parted = f"parted_{node.name}_{place}_shape", f"parted_{node.name}_{place}"
            # Zeros: as the input has it.
            graph.initializer.append(numpy_helper.from_array(np.zeros(rank, np.int64), shape))
            graph.node.append(onnx.helper.make_node("Reshape", [name, shape], [parted], parted))
            node.input[place] = parted


def _batch_transposed(node: onnx.NodeProto | None) -> int:
    """Return the rank of a Transpose that moves the first axis to the last place but one, or 0."""
    if node is None or node.op_type != "Transpose":
        return 0
    order = next((list(item.ints) for item in node.attribute if item.name == "perm"), [])
    rank = len(order)
    return rank if rank > 2 and order == [*range(1, rank - 1), 0, rank - 1] else 0


def _sort(proto: onnx.ModelProto) -> None:
    """Bring the nodes into an order in which they can run: the converter appends its casts."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    OnnxModel.graph_topological_sort(proto.graph)


def _opens(content: bytes) -> None:
    """Raise StepFailed if onnxruntime crashes on the file, in a process that may."""
    with tempfile.TemporaryDirectory(prefix="compress-half-") as folder:
        path = Path(folder) / "half.onnx"
        path.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-P", "-c", OPEN, str(path)],
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        how = f"crashes (signal {-done.returncode})" if done.returncode < 0 else f"fails ({said})"
        raise StepFailed(f"onnxruntime {how} when it opens the float16 file of this model")
