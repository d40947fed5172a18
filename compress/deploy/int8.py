"""int8 by onnxruntime's own quantizer with settings that suit its CPU kernels.

Its defaults do not: signed per-tensor activations, unfolded batch norms. Here: preprocessing,
QDQ, unsigned activations, signed per-channel weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compress.deploy.export import read_metadata, set_metadata
from compress.deploy.session import arrays
from compress.errors import UserError, unknown
from compress.tasks.base import Tensors

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
CHUNK = 16
"""Items per calibration run. The histogram methods hold every intermediate of one chunk."""


def quantize_onnx(
    float_onnx: bytes,
    calibration: Iterable[Tensors],
    method: str = "minmax",
    per_channel: bool = True,
    reduce_range: bool = False,
    exclude: Collection[str] = (),
    op_types: Collection[str] = (),
) -> tuple[bytes, dict[str, Any]]:
    """Return the QDQ file of a float file, and what was done.

    `calibration` are batches of prepared inputs. `method` of 'minmax', 'percentile' (99.999) or
    'entropy' sets the ranges of activations; onnxruntime's entropy starts with as many bins as
    it quantizes to, so it mostly finds the ranges of 'minmax'. `reduce_range` gives weights 7
    bits, for CPUs without VNNI, whose kernels saturate. `exclude` names nodes that stay float
    (of the file that `preprocess` gives); `op_types` limits quantization to some operators.

    The dict holds `quantized_ops` and `float_ops` (operator: number of nodes) and `notes`
    (sentences). Names, the dynamic batch and the metadata of the file are kept. Raises UserError
    for an unknown method or empty calibration data.
    """
    if method not in METHODS:
        raise unknown("calibration method", method, METHODS)
    reader = Reader(calibration, _input_names(float_onnx))
    prepared, notes = preprocess(float_onnx)
    from onnxruntime import quantization as ort

    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(prepared)
        ort.quantize_static(
            source,
            target,
            reader,
            quant_format=ort.QuantFormat.QDQ,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=per_channel,
            reduce_range=reduce_range,
            calibrate_method=getattr(ort.CalibrationMethod, METHODS[method]),
            nodes_to_exclude=sorted(exclude),
            op_types_to_quantize=sorted(op_types or _all_op_types()),
            # Named for MinMax, yet what it does serves all methods: collect and forget one
            # chunk at a time, where they else keep all intermediates (onnxruntime issue 10503).
            extra_options={"CalibStridedMinMax": 1},
        )
        proto = onnx.load(target)
    set_metadata(proto, read_metadata(float_onnx))
    return proto.SerializeToString(), {**_count(proto), "notes": notes}


def preprocess(float_onnx: bytes) -> tuple[bytes, list[str]]:
    """Fold and infer shapes for quantization; return the file, and notes on what failed."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder, _quiet() as said:
        target = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(onnx.load_from_string(float_onnx), str(target))
        except Exception as error:  # symbolic inference raises bare Exceptions
            said.append(f"symbolic shape inference failed ({error})")
            quant_pre_process(
                onnx.load_from_string(float_onnx), str(target), skip_symbolic_shape=True
            )
        proto = onnx.load(target)
    notes = [f"preprocessing for int8: {text}" for text in said]
    left = unfolded_norms(proto)
    if left:
        notes.append(f"{left} batch norm(s) after a convolution were not folded into it")
    return proto.SerializeToString(), notes


def unfolded_norms(proto: onnx.ModelProto) -> int:
    """Return how many batch norms follow a convolution directly."""
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    return sum(
        node.op_type == "BatchNormalization" and makers.get(node.input[0]) == "Conv"
        for node in proto.graph.node
    )


class Reader:
    """Calibration data as onnxruntime reads it, in chunks of at most `CHUNK` items.

    Its `CalibrationDataReader` is an interface by methods, so importing it is not needed. The
    chunk with the largest values comes first: a histogram that has to widen later keeps its bin
    width, and the entropy method's time grows with the square of the bins.
    """

    def __init__(self, batches: Iterable[Tensors], names: list[str]) -> None:
        chunks = sorted(_chunks(batches), key=_largest, reverse=True)
        self.chunks = [dict(zip(names, chunk, strict=True)) for chunk in chunks]
        if not self.chunks:
            raise UserError("quantization needs calibration data, and there is none")
        self.pending = iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.pending = iter(self.chunks[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.pending, None)


def _chunks(batches: Iterable[Tensors]) -> Iterator[list[np.ndarray]]:
    for batch in batches:
        whole = arrays(batch)
        for start in range(0, len(whole[0]), CHUNK):
            yield [array[start : start + CHUNK] for array in whole]


def _largest(chunk: list[np.ndarray]) -> float:
    return max(float(np.abs(array).max()) for array in chunk)


def _input_names(onnx_bytes: bytes) -> list[str]:
    return [value.name for value in onnx.load_from_string(onnx_bytes).graph.input]


def _all_op_types() -> list[str]:
    """Return every operator that onnxruntime can quantize; by default it takes them in the
    order of a set, which differs from process to process."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return [*{**QLinearOpsRegistry, **QDQRegistry}]


def _count(proto: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Count the nodes that read a dequantized tensor, and the others, by operator."""
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    quantized: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        reads = {makers.get(name) for name in node.input}
        (quantized if "DequantizeLinear" in reads else left)[node.op_type] += 1
    return {
        "quantized_ops": dict(sorted(quantized.items())),
        "float_ops": dict(sorted(left.items())),
    }


class _Collect(logging.Handler):
    """Keeps the first line of every error that is logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        lines = record.getMessage().strip().splitlines()
        # A traceback is logged on its own; its last line is what happened.
        self.said.append(lines[-1] if lines else record.levelname)


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Silence the quantizer's prints and log lines; yield the list of errors it logs.

    Some of its lines go to the root logger, from which ours are kept away by level alone.
    """
    root, own = logging.getLogger(), logging.getLogger("onnxruntime.quantization")
    handler, levels, propagate = _Collect(), (root.level, own.level), own.propagate
    own.addHandler(handler)
    own.setLevel(logging.ERROR)
    own.propagate = False
    root.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield handler.said
    finally:
        own.removeHandler(handler)
        own.propagate = propagate
        root.setLevel(levels[0])
        own.setLevel(levels[1])
