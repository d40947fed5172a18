"""Modules as something to time: number types, memory formats, CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.system.cuda import Cuda
from compress.timing.interleave import Candidate, Plan, interleave
from compress.timing.worker import deviation, feed_indices

if TYPE_CHECKING:
    from torch import Tensor, nn

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
PILOT = Plan(seconds=0.1, min_rounds=7)
"""How the memory formats of a module are compared before the timing that counts."""
TOLERANCE = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.25}
"""What outputs may deviate by, see `deviation`; bfloat16 has eight bits."""


@dataclass(frozen=True)
class Form:
    """How a module is run: number type, batch size, as a graph or not, memory format."""

    dtype: str = "float32"
    batch: int = 1
    graph: bool = False
    layout: str = CONTIGUOUS


@dataclass
class Feeds:
    """Real samples, one tensor (M, ...) per input, and their logits in float32, (M, classes).

    The copies on the device are shared by all modules that are run in the same form.
    """

    samples: tuple[Tensor, ...]
    device: Cuda
    _placed: dict[tuple[str, int, str], list[tuple[Tensor, ...]]] = field(default_factory=dict)

    def rows(self, batch: int) -> list[np.ndarray]:
        """Return the numbers of the samples in every feed; feeds rotate."""
        return feed_indices(len(self.samples[0]), batch)

    def placed(self, form: Form) -> list[tuple[Tensor, ...]]:
        """Return the feeds on the device, in the number type and memory format of a form."""
        import torch

        key = form.dtype, form.batch, form.layout
        if key not in self._placed:
            self._placed[key] = [
                tuple(
                    _as(sample[torch.from_numpy(row)], form, self.device) for sample in self.samples
                )
                for row in self.rows(form.batch)
            ]
        return self._placed[key]

    def clear(self) -> None:
        self._placed.clear()


def _as(tensor: Tensor, form: Form, device: Cuda) -> Tensor:
    import torch

    dtype = getattr(torch, form.dtype) if tensor.is_floating_point() else tensor.dtype
    last = form.layout == CHANNELS_LAST and tensor.dim() == 4
    layout = torch.channels_last if last else torch.contiguous_format
    return tensor.to(device.name, dtype).contiguous(memory_format=layout)


def module_candidate(
    module: nn.Module, form: Form, feeds: Feeds, expected: np.ndarray, device: Cuda
) -> Candidate:
    """Return a copy of a module on the device, over rotating real samples, to time and check.

    `expected` are the float32 outputs of the verified file on the CPU, (M, classes). A graph is
    fed by copying a sample into the tensor that was captured, which is part of its seconds:
    there is no other way to use one. Raises RuntimeError where the device cannot take or
    capture the module.
    """
    run = _runner(_placed(module, form, device), form, feeds, device)
    inputs, rows = feeds.placed(form), feeds.rows(form.batch)

    def call(index: int) -> Any:
        return run(inputs[index % len(inputs)])

    def check(index: int, outputs: Any) -> str:
        given = outputs.detach().float().cpu().numpy()
        return differs(given, expected, rows[index % len(rows)], TOLERANCE[form.dtype])

    return Candidate(call, check, device.stopwatch)


def _placed(module: nn.Module, form: Form, device: Cuda) -> nn.Module:
    import torch

    ours = copy.deepcopy(module).eval().to(device.name, getattr(torch, form.dtype))
    layout = torch.channels_last if form.layout == CHANNELS_LAST else torch.contiguous_format
    return ours.to(memory_format=layout)


def _runner(
    module: nn.Module, form: Form, feeds: Feeds, device: Cuda
) -> Callable[[tuple[Tensor, ...]], Tensor]:
    from compress.model import forward

    if not form.graph:
        return lambda given: forward(module, given)
    fixed = tuple(tensor.clone() for tensor in feeds.placed(form)[0])
    captured = device.capture(lambda: forward(module, fixed))

    def run(given: tuple[Tensor, ...]) -> Tensor:
        for ours, theirs in zip(fixed, given, strict=True):
            ours.copy_(theirs)
        captured.replay()
        return captured.outputs

    return run


def differs(outputs: np.ndarray, expected: np.ndarray, row: np.ndarray, allowed: float) -> str:
    """Return what is wrong with the outputs of a timed run in plain English, or ''."""
    off = deviation(outputs, expected, row)
    if off <= allowed:
        return ""
    if not np.isfinite(outputs).all():
        return "some outputs of the timed runs are not finite"
    return (
        f"the outputs of the timed runs differ from those on the CPU by {off:.0%} of their "
        f"spread, and {allowed:.0%} is allowed"
    )


def faster_layout(
    module: nn.Module, form: Form, feeds: Feeds, expected: np.ndarray, device: Cuda, seed: int = 0
) -> str:
    """Return the memory format in which a module is faster in a form, by a short timing of both.

    It comes before the timing that counts, so that no figure is the better of two. A graph is
    timed as a graph: without what Python costs, another format may be the faster. Without an
    input of four dimensions, and where neither can be timed, it is contiguous. Raises what
    `module_candidate` raises, if it does for both.
    """
    if not any(sample.dim() == 4 for sample in feeds.samples):
        return CONTIGUOUS
    candidates: dict[str, Candidate] = {}
    failed: list[Exception] = []
    for layout in (CONTIGUOUS, CHANNELS_LAST):
        own = replace(form, layout=layout)
        try:
            candidates[layout] = module_candidate(module, own, feeds, expected, device)
        except Exception as error:
            failed.append(error)
    if not candidates:
        raise failed[0]
    series = interleave(candidates, PILOT, seed)
    sound = {name: float(np.median(s.medians)) for name, s in series.items() if not s.error}
    return min(sound, key=lambda name: sound[name], default=CONTIGUOUS)


def peak_bytes(module: nn.Module, feeds: Feeds, device: Cuda) -> int:
    """Return the bytes that a module in float32 and its forward pass of one item need at most.

    Weights, input and everything in between; what lay on the device before is not counted.
    """
    from compress.model import forward

    before = device.held()
    form = Form()
    ours = _placed(module, form, device)
    given = tuple(_as(sample[:1], form, device) for sample in feeds.samples)
    # The first pass tries cuDNN's algorithms, some of which want a lot of memory.
    forward(ours, given)
    return device.peak(lambda: forward(ours, given)) - before
