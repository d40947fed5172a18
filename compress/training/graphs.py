"""Passes of modules replayed as CUDA graphs: one launch instead of one for every kernel.

Small networks leave a GPU waiting for Python, which launches hundreds of kernels of a few
microseconds each. A graph holds them all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import main_output
from compress.task import Tensors

Run = Callable[..., Any]
NEAR = 0.1
"""How far a replay's outputs may be from a plain pass's, as a share of their root mean square."""
_failed: list[str] = []
"""Why an earlier recording in this process failed."""


class NotReplayable(Exception):
    """What a module does cannot be told by a recording of it; the text says why."""


class Replayed:
    """A module in training whose passes, forwards and backwards, are replayed.

    Inputs of another shape than the recorded ones (the last batch of an epoch), and calls without
    gradients, take the plain way. Outputs are valid until the next call. Raises NotReplayable, or
    RuntimeError from CUDA where something cannot be recorded, such as a wait for the device.
    """

    def __init__(self, module: nn.Module, run: Run, inputs: Tensors, precision: str) -> None:
        refuse_hooks(module)
        self.run, self.module = run, module
        self.shapes = [tensor.shape for tensor in inputs]
        # Gradients come from the stream that was recorded, which torch waits for, and warns of.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        module.train()
        with _recording(), _unchanged(module), _autocast(precision):
            self.recorded: Run = torch.cuda.make_graphed_callables(
                _Plain(module, run), _copied(inputs), allow_unused_input=True
            )
        # Other inputs than those recorded: what was frozen into the graph shows.
        self._check(tuple(tensor.flip(0) for tensor in inputs), precision)

    def __call__(self, *inputs: Tensor) -> Any:
        alike = [tensor.shape for tensor in inputs] == self.shapes
        if alike and torch.is_grad_enabled() and self.module.training:
            return self.recorded(*inputs)
        return self.run(*inputs)

    def _check(self, inputs: Tensors, precision: str) -> None:
        found = []
        for run in (self.run, self.recorded):
            with _unchanged(self.module), _autocast(precision):
                found.append(main_output(run(*inputs)).detach().float().clone())
        _compare(*found)


def refuse_hooks(module: nn.Module) -> None:
    """Raise NotReplayable for a module with hooks: a replay runs no Python, so none of them."""
    for name, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
            raise NotReplayable(f"{name or 'the module'} has hooks, which a replay would not call")


class ReplayedAnswers:
    """What a function without gradients makes of inputs of one shape, replayed.

    Raises what `Replayed` raises. Inputs of another shape take the plain way.
    """

    def __init__(self, run: Callable[[Tensors], Tensor], inputs: Tensors) -> None:
        from compress.timing.cuda.device import Cuda

        self.run, self.inputs = run, _copied(inputs)
        self.shapes = [tensor.shape for tensor in inputs]
        before = _host_chance()
        with _recording():
            self.captured = Cuda().capture(lambda: run(self.inputs))
        if before != _host_chance():
            raise NotReplayable("it draws random numbers on the host, which a recording repeats")
        others = tuple(tensor.flip(0) for tensor in inputs)
        _compare(run(others), self(others))

    def __call__(self, inputs: Tensors) -> Tensor:
        if [tensor.shape for tensor in inputs] != self.shapes:
            return self.run(inputs)
        for ours, theirs in zip(self.inputs, inputs, strict=True):
            ours.copy_(theirs)
        self.captured.replay()
        outputs: Tensor = self.captured.outputs
        return outputs.clone()


class _Plain(nn.Module):
    """A module with one output, whose forward may be replaced without touching the module's."""

    def __init__(self, module: nn.Module, run: Run) -> None:
        super().__init__()
        self.module = module
        self._run = [run]  # in a list: a compiled module is no part of its own

    def forward(self, *inputs: Tensor) -> Tensor:
        return main_output(self._run[0](*inputs))


def _copied(inputs: Tensors) -> Tensors:
    return tuple(tensor.clone() for tensor in inputs)


def _compare(plain: Tensor, replayed: Tensor) -> None:
    difference = (plain.float() - replayed.float()).square().mean().sqrt()
    off = float(difference / plain.float().square().mean().sqrt())
    if not off <= NEAR:
        raise NotReplayable(f"replayed outputs are off by {off:.0%}")


def _autocast(precision: str) -> torch.autocast:
    # A cast that was cached while recording would be missing from the recording.
    enabled = precision == "bfloat16"
    return torch.autocast("cuda", torch.bfloat16, enabled=enabled, cache_enabled=False)


@contextmanager
def _recording() -> Iterator[None]:
    """Let cuDNN look for its fastest algorithms, and clean up after what cannot be recorded.

    After a failure torch's allocator may go on as if it were still recording, so no other
    recording is tried in the process; and its generator would refuse to draw.
    """
    if _failed:
        raise NotReplayable(f"no graph is tried after one that failed: {_failed[0]}")
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.get_state()
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    except NotReplayable:
        raise
    except Exception as error:
        _failed.append(str(error).strip().partition("\n")[0] or type(error).__name__)
        fresh = torch.Generator(generator.device)
        fresh.set_state(state)
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Undo what passes do to buffers and generators; refuse those that ask the host's chance."""
    kept = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    device, host = torch.cuda.get_rng_state(), _host_chance()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
    torch.cuda.set_rng_state(device)
    if host != _host_chance():
        raise NotReplayable("it draws random numbers on the host, which a recording repeats")


def _host_chance() -> tuple[object, ...]:
    _, numbers, place, *_ = np.random.get_state()
    ours = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), np.asarray(numbers).tobytes(), place, ours
