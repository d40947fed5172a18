"""float16 by onnxruntime's own converter, with a look at every value that float16 cannot hold.

The converter clips what is out of range without a word, and onnxruntime's CPU provider computes
in float32 between its casts, so that an overflow shows on a GPU alone: here, both are refused.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from compress.deploy.export import read_metadata
from compress.deploy.graphs import parsed
from compress.deploy.observe import Runner, float_values
from compress.deploy.protobuf import within
from compress.errors import StepFailed
from compress.system.amounts import decimal
from compress.system.processes import worker_environment
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
    "import sys; from compress.runtimes.onnxruntime_cpu import open_session, session_options; "
    "open_session(sys.argv[1], session_options())"
)


def to_float16(float_onnx: bytes, batches: Iterable[Tensors]) -> tuple[bytes, dict[str, Any]]:
    """Return the float16 file of a float file, and a report.

    Inputs and outputs stay float32, so names, types, the dynamic batch and the metadata are as
    before. `batches` of prepared inputs show how large the values inside become. The report holds
    `largest_weight`, `largest_activation` and its `tensor`, `raised` (weights that are smaller
    than float16's smallest number and became it), `float_ops` (operators left in float32) and
    `notes` (sentences).

    Raises StepFailed, with the name and the value, where a weight or a value inside is out of
    float16's range, and where onnxruntime crashes on the converted file.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load_from_string(float_onnx)
    weights, notes = _check_weights(model)
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
    # The default list: operators without a float16 kernel in one provider or the other.
    float_ops = sorted({node.op_type for node in model.graph.node} & set(DEFAULT_OP_BLOCK_LIST))
    converted = convert_float_to_float16(model, keep_io_types=True)
    _part_transposes(converted.graph)
    OnnxModel.graph_topological_sort(converted.graph)  # the converter appends its casts
    onnx.helper.set_model_props(converted, read_metadata(float_onnx))
    content = converted.SerializeToString()
    _check_opens(content)
    activations = {"largest_activation": largest, "tensor": tensor}
    return content, {**weights, **activations, "float_ops": float_ops, "notes": notes}


def largest_activation(float_onnx: bytes, batches: Iterable[Tensors]) -> tuple[str, float]:
    """Return the name and the absolute value of the largest finite value inside a float file.

    An infinity is one in float32, too: a mask, say.
    """
    runner = Runner(parsed(float_onnx), float_values(float_onnx))
    sizes = dict.fromkeys(runner.names, 0.0)
    for _, values in runner.chunks(batches):
        for name, value in values.items():
            sizes[name] = max(sizes[name], float(_finite_sizes(value).max(initial=0.0)))
    return max(sizes.items(), key=lambda item: item[1])


def _finite_sizes(values: np.ndarray) -> np.ndarray:
    """Return the absolute values of those that are finite."""
    return np.abs(values[np.isfinite(values)])


def _check_weights(model: onnx.ModelProto) -> tuple[dict[str, Any], list[str]]:
    """Look at every constant; refuse what is out of range, count what is too small."""
    largest, raised, count, clipped = 0.0, 0, 0, []
    for tensor in within(model, onnx.TensorProto):
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        sizes = _finite_sizes(values)
        top = float(sizes.max(initial=0.0))
        if top > LARGEST and values.size > 1:
            raise StepFailed(
                f"float16 ends at {LARGEST:.0f}, and the weight {tensor.name} has a value of "
                f"{decimal(top)}"
            )
        if top > LARGEST:
            clipped.append(f"{tensor.name or 'a constant'} ({decimal(values.item())})")
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


def _part_transposes(graph: onnx.GraphProto) -> None:
    """Put a reshape that changes nothing between a matrix product and a transposed batch.

    Without it onnxruntime's CPU provider (1.24 and later, x86) crashes when it opens the file:
    its MatmulTransposeFusion leaves a half-made node behind (onnxruntime issue 28392). A reshape
    is a view and costs nothing.
    """
    orders = {
        node.output[0]: [*attribute.ints]
        for node in graph.node
        if node.op_type == "Transpose"
        for attribute in node.attribute
    }
    for node in [node for node in graph.node if node.op_type == "MatMul"]:
        for position, name in enumerate(node.input):
            order = orders.get(name, [])
            rank = len(order)
            if rank < 3 or order != [*range(1, rank - 1), 0, rank - 1]:
                continue
            parted = f"parted_{node.name}_{position}"
            # Zeros: each side as the input has it.
            shape = numpy_helper.from_array(np.zeros(rank, np.int64), f"{parted}_shape")
            graph.initializer.append(shape)
            reshape = onnx.helper.make_node("Reshape", [name, shape.name], [parted], parted)
            graph.node.append(reshape)
            node.input[position] = parted


def _check_opens(content: bytes) -> None:
    """Raise StepFailed if onnxruntime crashes on the file, in a process that may."""
    with tempfile.TemporaryDirectory(prefix="compress-half-") as folder:
        path = Path(folder) / "half.onnx"
        path.write_bytes(content)
        opened = subprocess.run(
            [sys.executable, "-P", "-c", OPEN, str(path)],
            env=worker_environment(),
            capture_output=True,
            text=True,
        )
    code, lines = opened.returncode, opened.stderr.strip().splitlines()
    if code:
        message = lines[-1] if lines else "without a message"
        how = f"crashes (signal {-code})" if code < 0 else f"fails ({message})"
        raise StepFailed(f"onnxruntime {how} when it opens the float16 file of this model")
