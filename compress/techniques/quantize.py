"""Post-training int8 quantization: writes the ONNX file that is deployed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from compress.compressor import Compressor
from compress.context import StepContext
from compress.deploy.export import export
from compress.deploy.int8 import quantize_onnx
from compress.model import Model
from compress.parts import flag, one_of, whole_number
from compress.system.environment import cpu_info, saturates
from compress.tasks.base import Subset, prepared_batches


@dataclass(frozen=True, repr=False)
class Quantize(Compressor):
    """Write int8 static QDQ: unsigned activations, signed weights per output channel.

    Batch norms are folded first. Activation ranges come from `calibration` training items, by
    `method`: their extremes, a percentile, or least divergence (Migacz 2017). `reduce_range`
    uses 7 bits for weights: for x86 processors without VNNI, whose sums of products saturate
    otherwise. Jacob et al. 2018, section 2.1, for the arithmetic. The float module travels on
    unchanged, for counting.
    """

    lowers = True
    imports = ("onnxruntime.quantization",)

    calibration: int = field(default=256, metadata=whole_number())
    method: str = field(default="minmax", metadata=one_of("minmax", "percentile", "entropy"))
    reduce_range: bool = field(default=False, metadata=flag())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"})

    def compress(self, model: Model, context: StepContext) -> Model:
        assert context.calibration is not None, "run() has checked needs"
        count = min(self.calibration, len(context.calibration))
        if count < self.calibration:
            context.log.note(f"quantize: only {count} calibration items are available")
        items = Subset(context.calibration, torch.arange(count))
        batches = [inputs for inputs, _ in prepared_batches(context.task, items, 32)]
        quantized, report = quantize_onnx(
            export(model), batches, method=self.method, reduce_range=self.reduce_range
        )
        if saturates(cpu_info()[1]) and not self.reduce_range:
            context.log.note(
                "quantize: this CPU has no VNNI, so sums of int8 products can saturate and "
                "accuracy depends on the CPU; reduce_range=True avoids it"
            )
        for note in report.get("notes", []):
            context.log.note(f"quantize: {note}")
        context.log.row("quantize", **{k: v for k, v in report.items() if k != "notes"})
        return replace(model, onnx=quantized)
