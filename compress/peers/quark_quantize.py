"""int8 by AMD Quark's ONNX path (the extra [quark])."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from compress.compressor import Compressor, require
from compress.context import StepContext
from compress.deploy.export import export, quiet, read_metadata
from compress.deploy.session import predict, session
from compress.model import Model
from compress.parts import flag, one_of, positive_or_zero, whole_number
from compress.peers.extras import importable, require_installed
from compress.peers.ort_quantize import Reader
from compress.peers.quark_search import Searched, best_within
from compress.system.amounts import plural
from compress.system.environment import cpu_info, saturates
from compress.tasks.base import Tensors, prepared_batches

SOURCE, TARGET = Path("float.onnx"), Path("int8.onnx")
METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


@dataclass(frozen=True, repr=False)
class QuarkQuantize(Compressor):
    """Write int8 by AMD Quark's ONNX path, to compare `quantize` with.

    Unsigned activations, signed weights per channel, ranges by `method`. `equalize` scales pairs of
    layers (its CLE); `adaround` learns how each weight is rounded, each layer's result kept only
    where it helps (its selective update), which takes minutes. `reduce_range` (by default on x86
    processors without VNNI) gives weights 7 bits. `search_seconds` lets its AutoSearchPro find
    `method`, `equalize` and the rounding by itself, by the distance of the logits from the float
    file's on the calibration items; the trial that runs when the time is over is finished, and
    weights have 8 bits on every processor, since its search can't give them 7.
    """

    lowers = True
    libraries = ("amd-quark",)
    imports = importable("quark.onnx")

    calibration: int = field(default=256, metadata=whole_number())
    method: str = field(default="percentile", metadata=one_of(*METHODS))
    equalize: bool = field(default=True, metadata=flag())
    adaround: bool = field(default=False, metadata=flag())
    reduce_range: bool | None = field(default=None, metadata=flag())
    search_seconds: float = field(default=0, metadata=positive_or_zero())

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = any((self.method != "percentile", not self.equalize, self.adaround))
        require(
            not self.search_seconds or not (chosen or self.reduce_range is not None),
            self,
            "with search_seconds AutoSearchPro chooses all but calibration: leave the rest out",
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"})

    def check(self, context: StepContext) -> None:
        require_installed(self, "quark", "AMD Quark", "quark")

    def compress(self, model: Model, context: StepContext) -> Model:
        items = context.calibration_items(self.calibration)
        batches = [inputs for inputs, _ in prepared_batches(context.task, items, 32)]
        if not self.search_seconds:
            return replace(model, onnx=self.quantized(export(model), batches))
        content, errors, broke = self.searched(export(model), batches, context.seed)
        context.log.note(
            f"AutoSearchPro tried {plural(len(errors), 'setting')}; the logits of the best are "
            f"off by {min(errors):.1%}, of the first by {errors[0]:.1%}"
        )
        if broke:
            context.log.note(f"AutoSearchPro ended before its time: {broke}")
        return replace(model, onnx=content)

    def quantized(self, float_onnx: bytes, batches: Iterable[Tensors]) -> bytes:
        """Return the int8 file of a float file. `batches` are prepared inputs."""
        with _quiet_in_a_folder():
            from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
            from quark.onnx import ModelQuantizer
            from quark.onnx.quantization.config.algorithm import AdaRoundConfig
            from quark.onnx.quantization.config.config import Config
            from quark.onnx.quantization.config.legacy import QuantizationConfig

            narrow = saturates(cpu_info()[1]) if self.reduce_range is None else self.reduce_range
            SOURCE.write_bytes(float_onnx)
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
                str(SOURCE),
                str(TARGET),
                Reader(batches, onnx.load_from_string(float_onnx)),
                algorithms=rounding if self.adaround else [],
            )
            content = TARGET.read_bytes()
        return _with_metadata(content, float_onnx)

    def searched(self, float_onnx: bytes, batches: Sequence[Tensors], seed: int = 0) -> Searched:
        """Return what AutoSearchPro finds."""
        wanted = predict(session(float_onnx), batches)

        def error(content: bytes) -> float:
            """Return the distance of the logits from the float file's, as a share of these."""
            found = predict(session(content), batches)
            return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

        with _quiet_in_a_folder():
            SOURCE.write_bytes(float_onnx)
            reader = Reader(batches, onnx.load_from_string(float_onnx))
            found = best_within(self.search_seconds, SOURCE, reader, len(wanted), error, seed)
        return found._replace(content=_with_metadata(found.content, float_onnx))


def _with_metadata(content: bytes, float_onnx: bytes) -> bytes:
    quantized = onnx.load_from_string(content)
    onnx.helper.set_model_props(quantized, read_metadata(float_onnx))
    return bytes(quantized.SerializeToString())


@contextlib.contextmanager
def _quiet_in_a_folder() -> Iterator[None]:
    """Quiet Quark, in a temporary working directory: it leaves tables wherever it runs."""
    with (
        quiet(),
        contextlib.redirect_stderr(io.StringIO()),  # progress bars
        tempfile.TemporaryDirectory(prefix="compress-int8-") as folder,
        contextlib.chdir(folder),
    ):
        from quark.common.utils.log import ScreenLogger

        ScreenLogger.set_shared_level(logging.CRITICAL)
        yield
