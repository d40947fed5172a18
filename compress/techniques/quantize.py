"""Post-training int8 quantization: writes the ONNX file that is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from compress.compressor import Compressor
from compress.context import StepContext
from compress.deploy.export import export
from compress.int8.calibration import suspicions
from compress.int8.lower import Settings, lower
from compress.int8.ranges import METHODS
from compress.model import Model
from compress.parts import one_of, whole_number
from compress.system.environment import cpu_info, saturates
from compress.tasks.base import Subset, prepared_batches

TARGETS = ("portable", "vnni")


@dataclass(frozen=True, repr=False)
class Quantize(Compressor):
    """Write int8 QDQ: unsigned activations, signed weights with a scale per output channel.

    `target` 'portable' gives the same answers on every CPU: weights whose neighbours would saturate
    on x86 processors without VNNI get a coarser scale, channel by channel. 'vnni' is for those
    with VNNI, and for ARM: the finest scales. Channels are equalized first (Nagel et al. 2019; Xiao
    et al. 2023), activation ranges come from `calibration` training items by `method`: 'best' is,
    for each value, whichever of extremes, percentiles and least squares reconstructs it best; and
    biases take back the mean error of each product. The float module travels on unchanged, for
    counting. Jacob et al. 2018, section 2.1, for the arithmetic.
    """

    lowers = True
    imports = ("onnx_ir.passes.common",)

    calibration: int = field(default=256, metadata=whole_number())
    method: str = field(default="best", metadata=one_of(*METHODS))
    target: str = field(default="portable", metadata=one_of(*TARGETS))

    @classmethod
    def modernized(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """`reduce_range` gave all weights 7 bits, which `target` now does better."""
        return {key: value for key, value in options.items() if key != "reduce_range"}

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
        for suspicion in suspicions(batches):
            context.log.note(f"quantize: {suspicion}")
        if self.target == "vnni" and saturates(cpu_info()[1]):
            context.log.note(
                "quantize: this CPU has no VNNI, so sums of int8 products can saturate here, and "
                "target='vnni' does nothing against it; leave it out"
            )
        settings = Settings(method=self.method, portable=self.target == "portable")
        lowered = lower(export(model), batches, settings)
        for note in lowered.notes:
            context.log.note(f"quantize: {note}")
        for row in lowered.nodes:
            context.log.row("layer", **row)
        return replace(model, onnx=lowered.content)
