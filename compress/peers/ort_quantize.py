"""int8 by onnxruntime's own quantizer: as it comes, or with settings that suit its CPU kernels.

Its defaults do not: signed per-tensor activations, unfolded batch norms. The best that it documents
are: preprocessing, QDQ, unsigned activations, signed per-channel weights.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compress.compressor import Compressor
from compress.context import StepContext
from compress.deploy.export import export, quiet, read_metadata
from compress.deploy.session import arrays
from compress.errors import UserError
from compress.model import Model
from compress.parts import flag, one_of, whole_number
from compress.system.environment import cpu_info, saturates
from compress.tasks.base import Tensors, prepared_batches

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
CHUNK = 16
"""Items per calibration run. The histogram methods hold every intermediate of one chunk."""
LOGGER = "onnxruntime.quantization"


@dataclass(frozen=True, repr=False)
class OrtQuantize(Compressor):
    """Write int8 by onnxruntime's own quantizer, to compare `quantize` with.

    `defaults=True` leaves all settings as they come: signed activations, one scale for all weights
    of a layer, nothing folded. Else it has the best that its documentation names for this CPU:
    preprocessing, unsigned activations, weights per channel; `reduce_range` (by default on x86
    processors without VNNI) gives weights 7 bits. Activation ranges come from `calibration`
    training items, by `method`.
    """

    lowers = True
    imports = ("onnxruntime.quantization",)

    calibration: int = field(default=256, metadata=whole_number())
    method: str = field(default="minmax", metadata=one_of(*METHODS))
    reduce_range: bool | None = field(default=None, metadata=flag())
    defaults: bool = field(default=False, metadata=flag())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"})

    def compress(self, model: Model, context: StepContext) -> Model:
        items = context.calibration_items(self.calibration)
        batches = [inputs for inputs, _ in prepared_batches(context.task, items, 32)]
        if self.defaults:
            return replace(model, onnx=by_defaults(export(model), batches))
        narrow = saturates(cpu_info()[1]) if self.reduce_range is None else self.reduce_range
        content, report = quantize_onnx(export(model), batches, self.method, narrow)
        for note in report.pop("notes"):
            context.log.note(f"ort_quantize: {note}")
        context.log.row("ort_quantize", **report)
        return replace(model, onnx=content)


def by_defaults(float_onnx: bytes, calibration: Iterable[Tensors]) -> bytes:
    """Return the QDQ file of a float file by `quantize_static` with no setting of ours."""
    from onnxruntime import quantization as ort

    reader = Reader(calibration, onnx.load_from_string(float_onnx))
    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder, quiet(LOGGER):
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(float_onnx)
        ort.quantize_static(source, target, reader)
        quantized = onnx.load(target)
    onnx.helper.set_model_props(quantized, read_metadata(float_onnx))
    return quantized.SerializeToString()


def quantize_onnx(
    float_onnx: bytes,
    calibration: Iterable[Tensors],
    method: str = "minmax",
    reduce_range: bool = False,
) -> tuple[bytes, dict[str, Any]]:
    """Return the QDQ file of a float file, and a report.

    `calibration` are batches of prepared inputs. `method`, one of `METHODS`, sets the ranges of
    activations (the percentile is 99.999); onnxruntime's entropy starts with as many bins as it
    quantizes to, so it mostly finds the ranges of 'minmax'. `reduce_range` gives weights 7 bits,
    for CPUs without VNNI, whose kernels saturate.

    The report holds `quantized_ops` and `float_ops` (operator: number of nodes) and `notes`
    (sentences). Names, the dynamic batch and the metadata of the file are kept. Raises UserError
    for empty calibration data.
    """
    reader = Reader(calibration, onnx.load_from_string(float_onnx))
    prepared, notes = preprocess(float_onnx)
    from onnxruntime import quantization as ort

    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder, quiet(LOGGER):
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(prepared, source)
        ort.quantize_static(
            source,
            target,
            reader,
            quant_format=ort.QuantFormat.QDQ,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            calibrate_method=ort.CalibrationMethod[METHODS[method]],
            op_types_to_quantize=sorted(all_op_types()),
            # Named for MinMax, yet what it does serves all methods: collect and forget one
            # chunk at a time, where they else keep all intermediates (onnxruntime issue 10503).
            extra_options={"CalibStridedMinMax": 1},
        )
        quantized = onnx.load(target)
    onnx.helper.set_model_props(quantized, read_metadata(float_onnx))
    return quantized.SerializeToString(), {**_count(quantized), "notes": notes}


def preprocess(float_onnx: bytes) -> tuple[onnx.ModelProto, list[str]]:
    """Fold and infer shapes for quantization; return the model, and notes on what failed."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder, quiet(LOGGER) as errors:
        target = str(Path(folder) / "prepared.onnx")
        try:
            quant_pre_process(onnx.load_from_string(float_onnx), target)
        except Exception as error:  # symbolic inference raises bare Exceptions
            errors.append(f"symbolic shape inference failed ({error})")
            quant_pre_process(onnx.load_from_string(float_onnx), target, skip_symbolic_shape=True)
        prepared = onnx.load(target)
    notes = [f"preprocessing for int8: {error}" for error in errors]
    if unfolded := unfolded_norms(prepared):
        notes.append(f"{unfolded} batch norm(s) after a convolution were not folded into it")
    return prepared, notes


def unfolded_norms(model: onnx.ModelProto) -> int:
    """Return how many batch norms follow a convolution directly."""
    producers = _producers(model)
    return sum(
        node.op_type == "BatchNormalization" and producers.get(node.input[0]) == "Conv"
        for node in model.graph.node
    )


def _producers(model: onnx.ModelProto) -> dict[str, str]:
    """Return, by the name of a value, the operator that computes it."""
    return {name: node.op_type for node in model.graph.node for name in node.output}


class Reader:
    """Calibration data as onnxruntime reads it, in chunks of at most `CHUNK` items.

    Its `CalibrationDataReader` is an interface by methods, so importing it is not needed. The
    chunk with the largest values comes first: a histogram that has to widen later keeps its bin
    width, and the entropy method's time grows with the square of the bins.
    """

    def __init__(self, batches: Iterable[Tensors], model: onnx.ModelProto) -> None:
        names = [value.name for value in model.graph.input]
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


def all_op_types() -> list[str]:
    """Return every operator that onnxruntime can quantize.

    By default it takes them in the order of a set, which differs from process to process.
    """
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return [*{**QLinearOpsRegistry, **QDQRegistry}]


def _count(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Count the nodes that read a dequantized tensor, and the others, by operator."""
    producers = _producers(model)
    counts: dict[str, Counter[str]] = {"quantized_ops": Counter(), "float_ops": Counter()}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            reads = {producers.get(name) for name in node.input}
            kind = "quantized_ops" if "DequantizeLinear" in reads else "float_ops"
            counts[kind][node.op_type] += 1
    return {kind: dict(sorted(counter.items())) for kind, counter in counts.items()}
