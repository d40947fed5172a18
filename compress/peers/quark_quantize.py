"""int8 by AMD Quark's ONNX path (the extra [quark])."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from compress.compressor import Compressor
from compress.context import StepContext
from compress.deploy.export import export, quiet, read_metadata
from compress.model import Model
from compress.parts import flag, one_of, whole_number
from compress.peers.extras import importable, require_installed
from compress.peers.ort_quantize import Reader
from compress.system.environment import cpu_info, saturates
from compress.tasks.base import Tensors, prepared_batches

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


@dataclass(frozen=True, repr=False)
class QuarkQuantize(Compressor):
    """Write int8 by AMD Quark's ONNX path, to compare `quantize` with.

    Unsigned activations, signed weights per channel, ranges by `method`. `equalize` scales pairs of
    layers (its CLE); `adaround` learns how each weight is rounded, each layer's result kept only
    where it helps (its selective update), which takes minutes. `reduce_range` (by default on x86
    processors without VNNI) gives weights 7 bits.
    """

    lowers = True
    libraries = ("amd-quark",)
    imports = importable("quark.onnx")

    calibration: int = field(default=256, metadata=whole_number())
    method: str = field(default="percentile", metadata=one_of(*METHODS))
    equalize: bool = field(default=True, metadata=flag())
    adaround: bool = field(default=False, metadata=flag())
    reduce_range: bool | None = field(default=None, metadata=flag())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"})

    def check(self, context: StepContext) -> None:
        require_installed(self, "quark", "AMD Quark", "quark")

    def compress(self, model: Model, context: StepContext) -> Model:
        items = context.calibration_items(self.calibration)
        batches = [inputs for inputs, _ in prepared_batches(context.task, items, 32)]
        return replace(model, onnx=self.quantized(export(model), batches))

    def quantized(self, float_onnx: bytes, batches: Iterable[Tensors]) -> bytes:
        """Return the int8 file of a float file. `batches` are prepared inputs."""
        with (
            quiet(),
            contextlib.redirect_stderr(io.StringIO()),  # progress bars
            tempfile.TemporaryDirectory(prefix="compress-int8-") as folder,
            contextlib.chdir(folder),  # it leaves a table of its timings wherever it runs
        ):
            from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
            from quark.common.utils.log import ScreenLogger

            ScreenLogger.set_shared_level(logging.CRITICAL)
            from quark.onnx import ModelQuantizer
            from quark.onnx.quantization.config.algorithm import AdaRoundConfig
            from quark.onnx.quantization.config.config import Config
            from quark.onnx.quantization.config.legacy import QuantizationConfig

            narrow = saturates(cpu_info()[1]) if self.reduce_range is None else self.reduce_range
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(float_onnx)
            quantizer = ModelQuantizer(
                Config(
                    global_quant_config=QuantizationConfig(
                        calibrate_method=CalibrationMethod[METHODS[self.method]],
                        quant_format=QuantFormat.QDQ,
                        activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8,
                        per_channel=True,
                        reduce_range=narrow,
                        include_cle=self.equalize,
                        print_summary=False,
                    )
                )
            )
            rounding = [AdaRoundConfig(selective_update=True, dynamic_batch=True, batch_size=32)]
            quantizer.quantize_model(
                str(source),
                str(target),
                Reader(batches, onnx.load_from_string(float_onnx)),
                algorithms=rounding if self.adaround else [],
            )
            quantized = onnx.load(target)
        onnx.helper.set_model_props(quantized, read_metadata(float_onnx))
        return bytes(quantized.SerializeToString())
