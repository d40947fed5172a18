"""Passes of modules replayed as CUDA graphs: one launch instead of one for every kernel.

Small networks leave a GPU waiting for Python, which launches hundreds of kernels of a few
microseconds each. A graph holds them all. It runs no Python, so a module whose passes do more
than launch the same kernels on the same memory is refused, as far as a comparison with plain
passes shows it.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.tasks.base import InputChange, Tensors
from compress.training.out_of_memory import ran_out_of_memory

Run = Callable[..., Any]
NEAR = 0.1
"""How far a replay's results may be from a plain pass's, as a share of their root mean square."""
_failed: list[str] = []
"""Why an earlier recording in this process failed."""


class NotReplayable(Exception):
    """A recording would not do what the module does; the text says why."""


class NotTried(NotReplayable):
    """The module was not judged: this process, or its memory, does not allow a recording."""


class Replayed:
    """A module in training whose passes, forwards and backwards, are replayed.

    Inputs of another shape than the recorded ones (the last batch of an epoch), and calls without
    gradients, are not replayed. Outputs, one or several, are valid until the next call. Raises
    NotReplayable, or RuntimeError from CUDA where something cannot be recorded, such as a wait for
    the device.
    """

    def __init__(self, module: nn.Module, run: Run, inputs: Tensors, precision: str) -> None:
        refuse_hooks(module)
        self.run, self.module = run, module
        self.shapes = [tensor.shape for tensor in inputs]
        # Gradients come from the stream that was recorded, which torch waits for, and warns of.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        module.train()
        # First without recording: what fails here, such as a compiler, has broken nothing.
        self._passes(run, inputs, precision)
        with unchanged(module), _recording(), _autocast(precision):
            self.recorded: Run = torch.cuda.make_graphed_callables(
                _Plain(module, run), _copied(inputs), allow_unused_input=True
            )
        # Other inputs than those recorded: what was frozen into the graph shows.
        others = tuple(tensor.flip(0) for tensor in inputs)
        plain = self._passes(run, others, precision)
        replayed = self._passes(self.recorded, others, precision)
        for number, what in enumerate(("outputs", "gradients", "buffers")):
            compare(what, plain[number], replayed[number])
        if len({gradient.data_ptr() for gradient in replayed[1]}) < len(replayed[1]):
            raise NotReplayable("two of its parameters would share one gradient")

    def __call__(self, *inputs: Tensor) -> Any:
        recorded_shapes = [tensor.shape for tensor in inputs] == self.shapes
        if recorded_shapes and torch.is_grad_enabled() and self.module.training:
            return self.recorded(*inputs)
        return self.run(*inputs)

    def _passes(self, run: Run, inputs: Tensors, precision: str) -> list[list[Tensor]]:
        """Return outputs, gradients for a fixed direction, and how buffers changed, and undo it."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        before = [buffer.detach().clone() for buffer in self._buffers()]
        with unchanged(self.module):
            with _autocast(precision):
                result = run(*inputs)
            outputs = [result] if isinstance(result, Tensor) else list(result)
            value = torch.zeros((), device=outputs[0].device)
            for output in outputs:
                direction = torch.linspace(-1, 1, output.numel(), device=output.device)
                value = value + (output.float().flatten() * direction).sum()
            all_gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            gradients = [gradient for gradient in all_gradients if gradient is not None]
            changes = [now - then for now, then in zip(self._buffers(), before, strict=True)]
            return [[output.detach().clone() for output in outputs], gradients, changes]

    def _buffers(self) -> list[Tensor]:
        return [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]


class ReplayedAnswers:
    """A function without gradients on inputs of one shape, replayed.

    Raises what `Replayed` raises. Inputs of another shape are not replayed.
    """

    def __init__(self, run: Callable[[Tensors], Tensor], inputs: Tensors) -> None:
        from compress.system.cuda import Cuda

        self.run, self.inputs = run, _copied(inputs)
        self.shapes = [tensor.shape for tensor in inputs]
        recorded = self.inputs
        with _generators_put_back():
            run(recorded)  # as above
            with _recording():
                self.captured = Cuda().capture(lambda: run(recorded))
        others = tuple(tensor.flip(0) for tensor in inputs)
        compare("outputs", [run(others)], [self(others)])

    def __call__(self, inputs: Tensors) -> Tensor:
        if [tensor.shape for tensor in inputs] != self.shapes:
            return self.run(inputs)
        for recorded, given in zip(self.inputs, inputs, strict=True):
            recorded.copy_(given)
        self.captured.replay()
        outputs: Tensor = self.captured.outputs
        return outputs.clone()


class _Plain(nn.Module):
    """A module whose forward may be replaced without touching the module's own."""

    def __init__(self, module: nn.Module, run: Run) -> None:
        super().__init__()
        self.module = module
        self._run = [run]  # in a list: a compiled module is no part of its own

    def forward(self, *inputs: Tensor) -> Any:
        return self._run[0](*inputs)


def refuse_hooks(module: nn.Module) -> None:
    """Raise NotReplayable for a module with hooks: a replay runs no Python, so none of them.

    What an `InputChange` does to tensors is recorded with all else.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for name, part in module.named_modules():
        hooks = (hook for kind in kinds for hook in getattr(part, kind).values())
        if not all(isinstance(hook, InputChange) for hook in hooks):
            raise NotReplayable(f"{name or 'the module'} has hooks, which a replay would not call")
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks:
            raise NotReplayable(f"{name} has hooks, which a replay would not call")


def compare(what: str, plain: Sequence[Tensor], replayed: Sequence[Tensor]) -> None:
    """Raise NotReplayable unless the tensors, all taken together, are nearly the same."""
    if len(plain) != len(replayed):
        raise NotReplayable(f"there are {len(replayed)} replayed {what} instead of {len(plain)}")
    pairs = [(a.float(), b.float()) for a, b in zip(plain, replayed, strict=True)]
    difference = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    size = math.sqrt(sum(float(a.square().sum()) for a, _ in pairs))
    if not difference <= NEAR * size:  # nor if it is not a number
        share = f"by {difference / size:.0%}" if size else "from zero"
        raise NotReplayable(f"replayed {what} are off {share}")


def _copied(inputs: Tensors) -> Tensors:
    return tuple(tensor.clone() for tensor in inputs)


def _autocast(precision: str) -> torch.autocast:
    # A cast that was cached while recording would be missing from the recording.
    enabled = precision == "bfloat16"
    return torch.autocast("cuda", torch.bfloat16, enabled=enabled, cache_enabled=False)


@contextmanager
def _recording() -> Iterator[None]:
    """Clean up after what cannot be recorded.

    After a failure torch's allocator may go on as if it were still recording, so no other
    recording is tried in the process; and its generator would refuse to draw.
    """
    if _failed:
        raise NotTried(f"no graph is tried after one that failed: {_failed[0]}")
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.get_state()
    # To free an old graph while a new one is recorded is an error.
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            _failed.append(str(error).strip().partition("\n")[0] or type(error).__name__)
        fresh = torch.Generator(generator.device)
        fresh.set_state(state)
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
    finally:
        if collects:
            gc.enable()


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Undo what passes do to buffers, attributes and generators.

    Raises NotReplayable for what a replay would leave out: another tensor in a buffer's place, a
    number or text among the attributes that changes, random numbers drawn on the host.
    """
    parts = list(module.modules())
    buffers = [
        (part, name, buffer, buffer.detach().clone())
        for part in parts
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    plain = [
        {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str)}
        for part in parts
    ]
    rebound, counted = False, False
    with _generators_put_back():
        try:
            yield
        finally:
            for part, values in zip(parts, plain, strict=True):
                counted |= any(vars(part).get(key) != value for key, value in values.items())
                vars(part).update(values)
            with torch.no_grad():
                for part, name, buffer, value in buffers:
                    rebound |= part._buffers.get(name) is not buffer
                    part._buffers[name] = buffer
                    buffer.copy_(value)
    if rebound:
        raise NotReplayable("it puts another tensor in a buffer's place, which a replay would not")
    if counted:
        raise NotReplayable("its attributes change from pass to pass, which a replay would not do")


@contextmanager
def _generators_put_back() -> Iterator[None]:
    """Put all generators back; raise NotReplayable if those of the host have drawn."""
    on_device = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    python, host, arrays = random.getstate(), torch.get_rng_state(), np.random.get_state()
    before = _host_generators()
    try:
        yield
    finally:
        after = _host_generators()
        random.setstate(python)
        torch.set_rng_state(host)
        np.random.set_state(arrays)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device)
    if before != after:
        raise NotReplayable("it draws random numbers on the host, which a recording repeats")


def _host_generators() -> tuple[object, ...]:
    _, numbers, place, *_ = np.random.get_state()
    torch_state = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), np.asarray(numbers).tobytes(), place, torch_state
