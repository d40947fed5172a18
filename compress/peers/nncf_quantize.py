"""int8 by NNCF, with settings whose files onnxruntime runs (the extra [nncf])."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from compress.compressor import Compressor
from compress.context import StepContext
from compress.deploy.export import export, quiet, read_metadata
from compress.deploy.session import arrays
from compress.errors import StepFailed
from compress.model import Model
from compress.parts import flag, one_of, whole_number
from compress.peers.extras import importable, require_installed
from compress.system.environment import cpu_info, saturates
from compress.tasks.base import Tensors, prepared_batches

PRESETS = ("performance", "mixed")


@dataclass(frozen=True, repr=False)
class NncfQuantize(Compressor):
    """Write int8 by NNCF's post-training quantization, to compare `quantize` with.

    `preset` 'performance', NNCF's default, has symmetric activations; 'mixed' asymmetric ones.
    `accurate` corrects biases layer by layer, not all at once. `transformer` is for attention: it
    brings SmoothQuant, and spares what transformers lose most by. Activations have one scale each,
    else onnxruntime refuses the file. `reduce_range` (by default on x86 processors without VNNI, as
    NNCF advises) gives all weights half of the range, else those of the first layer alone.
    """

    lowers = True
    libraries = ("nncf",)
    imports = importable("nncf")

    calibration: int = field(default=256, metadata=whole_number())
    preset: str = field(default="performance", metadata=one_of(*PRESETS))
    accurate: bool = field(default=False, metadata=flag())
    transformer: bool = field(default=False, metadata=flag())
    reduce_range: bool | None = field(default=None, metadata=flag())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"})

    def check(self, context: StepContext) -> None:
        require_installed(self, "nncf", "NNCF", "nncf")

    def compress(self, model: Model, context: StepContext) -> Model:
        items = context.calibration_items(self.calibration)
        batches = [inputs for inputs, _ in prepared_batches(context.task, items, 1)]
        return replace(model, onnx=self.quantized(export(model), batches))

    def quantized(self, float_onnx: bytes, items: Iterable[Tensors]) -> bytes:
        """Return the int8 file of a float file. `items` are prepared inputs, one item each."""
        with quiet("nncf"):
            import nncf
            from nncf.quantization.advanced_parameters import (
                AdvancedQuantizationParameters,
                OverflowFix,
                QuantizationParameters,
            )

            proto = onnx.load_from_string(float_onnx)
            if self.accurate:
                proto = _read_once(proto)
            names = [value.name for value in proto.graph.input]
            feeds = [dict(zip(names, arrays(item), strict=True)) for item in items]
            narrow = saturates(cpu_info()[1]) if self.reduce_range is None else self.reduce_range
            advanced = AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE if narrow else OverflowFix.FIRST_LAYER,
                activations_quantization_params=QuantizationParameters(per_channel=False),
            )
            try:
                quantized = nncf.quantize(
                    proto,
                    nncf.Dataset(feeds),
                    preset=nncf.QuantizationPreset(self.preset),
                    subset_size=len(feeds),
                    fast_bias_correction=not self.accurate,
                    model_type=nncf.ModelType.TRANSFORMER if self.transformer else None,
                    advanced_parameters=advanced,
                )
            except Exception as error:  # it has no error of its own for graphs it can't handle
                hint = ", which it can't correct the biases of one by one" if self.accurate else ""
                raise StepFailed(f"NNCF fails on this model{hint}: {error!r}") from error
        onnx.helper.set_model_props(quantized, read_metadata(float_onnx))
        return bytes(quantized.SerializeToString())


def _read_once(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take the batch size from the first layer's output, not from the input beside the first layer.

    NNCF's accurate bias correction else fails: it names an input that two nodes read twice in a
    file of its own ("Duplicate definition-site").
    """
    for value in proto.graph.input:
        readers = [node for node in proto.graph.node if value.name in node.input]
        first = next((node for node in readers if node.op_type == "Conv"), None)
        sizes = [node for node in readers if node.op_type == "Shape" and _of_batch(node)]
        if first is None:
            continue
        for node in sizes:
            node.input[0] = first.output[0]
    model = ir.serde.deserialize_model(proto)
    passes.TopologicalSortPass()(model)
    return ir.serde.serialize_model(model)


def _of_batch(node: onnx.NodeProto) -> bool:
    """Whether a Shape gives the first dimension alone."""
    return {one.name: one.i for one in node.attribute} == {"start": 0, "end": 1}
