"""Casting to float16: writes the ONNX file that is deployed on GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from compress.compressor import Compressor
from compress.context import StepContext
from compress.deploy.export import export
from compress.deploy.half import to_float16
from compress.model import Model
from compress.parts import rule
from compress.tasks.base import Subset, prepared_batches

ITEMS = 64
"""Calibration items that show how large the values inside the network become."""


@dataclass(frozen=True, repr=False)
class Cast(Compressor):
    """Write a file with weights and arithmetic in `to`, 'float16'; for GPUs.

    The file is half as large, and its inputs and outputs stay float32. A GPU's matrix units
    multiply float16 several times as fast as float32. onnxruntime's CPU provider has few float16
    kernels: it computes in float32 and fuses less than in a float32 file, so there the file is
    seldom faster and often slower: the row's CPU latency shows it. bfloat16 is refused, because
    the CPU provider, by which every file is verified, has no convolution for it. A weight, or a
    value inside the network on 64 calibration items, that is out of float16's range (65504)
    fails the step. The float module travels on unchanged, for counting.
    """

    lowers = True

    to: str = field(
        metadata=rule(
            "must be 'float16' (onnxruntime's CPU provider, by which every file is verified, "
            "cannot run bfloat16)",
            lambda value: value == "float16",
        )
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"calibration"})

    def compress(self, model: Model, context: StepContext) -> Model:
        assert context.calibration is not None, "run() has checked needs"
        items = Subset(context.calibration, torch.arange(min(ITEMS, len(context.calibration))))
        batches = [inputs for inputs, _ in prepared_batches(context.task, items, 16)]
        half, report = to_float16(export(model), batches)
        for note in report["notes"]:
            context.log.note(f"cast: {note}")
        context.log.row("cast", **{k: v for k, v in report.items() if k != "notes"})
        return replace(model, onnx=half)

    def __repr__(self) -> str:
        return f"cast({self.to!r})"
