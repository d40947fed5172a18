"""Modules in torch on a GPU: number types, memory formats, CUDA graphs.

Torch is imported where it is used: whoever imports this may be a process without it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.system.cuda import Cuda

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"

Run = Callable[[tuple["Tensor", ...]], "Tensor"]
"""Runs a module on inputs that `place` has made."""


@dataclass(frozen=True)
class Form:
    """How a module is run: number type, batch size, as a graph or not, memory format."""

    dtype: str = "float32"
    batch: int = 1
    graph: bool = False
    layout: str = CONTIGUOUS


def place(tensor: Tensor, form: Form, device: Cuda) -> Tensor:
    """Return an input on the device, in the number type and memory format of a form."""
    import torch

    dtype = getattr(torch, form.dtype) if tensor.is_floating_point() else tensor.dtype
    last = form.layout == CHANNELS_LAST and tensor.dim() == 4
    layout = torch.channels_last if last else torch.contiguous_format
    return tensor.to(device.name, dtype).contiguous(memory_format=layout)


def open_module(module: nn.Module, form: Form, example: tuple[Tensor, ...], device: Cuda) -> Run:
    """Return what runs a copy of a module on the device; `example` are inputs that are placed.

    A graph is fed by copying inputs into the tensors that were captured: there is no other way
    to use one. Raises RuntimeError where the device cannot take or capture the module.
    """
    from compress.model import forward

    placed = _placed(module, form, device)
    if not form.graph:
        return lambda inputs: forward(placed, inputs)
    fixed = tuple(tensor.clone() for tensor in example)
    captured = device.capture(lambda: forward(placed, fixed))

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        for target, source in zip(fixed, inputs, strict=True):
            target.copy_(source)
        captured.replay()
        return captured.outputs

    return run


def _placed(module: nn.Module, form: Form, device: Cuda) -> nn.Module:
    import torch

    placed = copy.deepcopy(module).eval().to(device.name, getattr(torch, form.dtype))
    layout = torch.channels_last if form.layout == CHANNELS_LAST else torch.contiguous_format
    return placed.to(memory_format=layout)


def peak_bytes(module: nn.Module, samples: Sequence[Tensor], device: Cuda) -> int:
    """Return the bytes that a module in float32 and its forward pass of one item need at most.

    Weights, input and everything in between; what lay on the device before is not counted.
    """
    from compress.model import forward

    before = device.held()
    form = Form()
    placed = _placed(module, form, device)
    inputs = tuple(place(sample[:1], form, device) for sample in samples)
    # The first pass tries cuDNN's algorithms, some of which need a lot of memory.
    forward(placed, inputs)
    return device.peak(lambda: forward(placed, inputs)) - before
