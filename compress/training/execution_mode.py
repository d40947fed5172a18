"""In which precision and memory layout a training runs, compiled or replayed: by measuring.

Short trainings take what usually pays. A long one is tried out for a few steps in every mode; the
answer is cached by machine, versions and question, since it changes how sums are rounded.
"""

from __future__ import annotations

import copy
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.context import StepContext
from compress.counts import macs
from compress.heads import all_heads
from compress.model import Model
from compress.stateless_rng import preserve_rng_state
from compress.system.environment import cpu_info
from compress.system.files import digest
from compress.system.progress import stage
from compress.training.attention import attention_in_float32, has_attention
from compress.training.batch_loader import Batch
from compress.training.graphs import NotTried, Replayed
from compress.training.layout import ITEMS, memory_format, place_inputs, suits_channels_last
from compress.training.out_of_memory import ran_out_of_memory

MEASURED_FROM = 1e13
"""Multiply-accumulates of a training for which trials pay off: a minute or more on a CPU."""
MEASURED_FROM_STEPS = 2000
"""Steps of a training for which trials always pay off: they take about twenty steps. Few
multiply-accumulates need not be fast: depthwise convolutions are slow, in bfloat16 above all."""
REPLAYED_FROM = 10.0
"""Seconds of a training on a GPU for which graphs are tried: a trial takes a second or two."""
COMPILED_FROM = 600.0
"""Seconds of a training for which compiling is tried: a trial takes up to a minute."""
CLEARLY = 0.9
"""The share of the usual mode's time that another must beat, so that noise does not decide."""
ROUNDS = 4


@dataclass(frozen=True)
class ExecutionMode:
    """How a module is run in training."""

    precision: str = "float32"
    channels_last: bool = False
    compiled: bool = False
    replayed: bool = False
    float32_attention: bool = False

    def __str__(self) -> str:
        words = ("channels_last", "compiled", "replayed", "float32_attention")
        return ", ".join([self.precision, *(word for word in words if getattr(self, word))])


def usual_precision(device: torch.device) -> str:
    """Return bfloat16 where the hardware multiplies it natively; elsewhere it is slower."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def default_mode(module: nn.Module, context: StepContext, batch: Batch) -> ExecutionMode:
    """Return what is usually fastest: channels_last for convolutions, the hardware's precision."""
    inputs = batch.of(slice(ITEMS)).inputs
    return ExecutionMode(context.precision, suits_channels_last(module, inputs, context.log))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def execution_context(context: StepContext, mode: ExecutionMode) -> Iterator[None]:
    """Run forward passes of a training within this context: in the precision of its mode."""
    attention = attention_in_float32() if mode.float32_attention else nullcontext()
    with attention, autocast(context.device, mode.precision):
        yield


def to_device(module: nn.Module, context: StepContext, channels_last: bool) -> nn.Module:
    """Move a module to the context's device, in the memory layout that it runs in."""
    return module.to(context.device).to(memory_format=memory_format(channels_last))


def autotune(
    model: Model, context: StepContext, steps: int, batch: Batch, traced: bool = True
) -> ExecutionMode:
    """Return the fastest mode for so many steps on such batches; the log gets timings.

    `traced` is False where the module must be neither compiled nor recorded.
    """
    usual = default_mode(model.module, context, batch)
    if not context.tune or _is_short(model, steps, batch.whole or len(batch)):
        return usual
    modes = _candidates(model.module, context, usual)
    question = {
        "layers": digest(repr(model.module)),
        "params": _size(model.module),
        "inputs": [list(tensor.shape) for tensor in batch.inputs],
        "usual": str(usual),
        "ways": [str(mode) for mode in modes],
        "device": _device_name(context.device),
        "threads": torch.get_num_threads(),
        "torch": importlib.metadata.version("torch"),
    }
    new_trial = partial(_Trial, model, context, batch)
    # Trials draw random numbers (dropout), and an answer from the cache draws none.
    with preserve_rng_state(context.device):
        answer = context.cached({"pace": question}, partial(_fastest, new_trial, modes))
        context.log.row("pace", **answer)
        chosen, seconds = ExecutionMode(**answer["chosen"]), answer["seconds"]
        for option, least in further_options(context.device).items():
            if not traced or seconds * steps < least:
                continue
            key = {option: question, "pace": str(chosen), "steps": steps}
            measure = partial(_with_option, new_trial, chosen, option, steps)
            try:
                answer = context.cached(key, measure)
            except NotTried as error:  # no answer, so nothing is cached
                context.log.row(option, chosen=asdict(chosen), refused=str(error)[:300])
                continue
            context.log.row(option, **answer)
            chosen = ExecutionMode(**answer["chosen"])
            seconds = answer["seconds_per_step"].get(str(chosen), seconds)
        return chosen


def further_options(device: torch.device) -> dict[str, float]:
    """Return options to try one by one, and the seconds of training from which each may pay."""
    replayed = {"replayed": REPLAYED_FROM} if device.type == "cuda" else {}
    return {**replayed, "compiled": COMPILED_FROM}


def _is_short(model: Model, steps: int, items: int) -> bool:
    """Whether so many steps, each on so many items, are too few for trials to pay off."""
    if steps >= MEASURED_FROM_STEPS:
        return False
    # Backwards, a layer multiplies about twice as much as forwards.
    least = MEASURED_FROM / (3 * steps * items)
    # Counting takes a moment; hardly any weight is used more than once for every input value.
    if _size(model.module) * sum(tensor.numel() for tensor in model.example) < least:
        return True
    return macs(model.module, model.example) < least


def _size(module: nn.Module) -> int:
    """Return the number of parameters, those of auxiliary heads included: they are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, flags = cpu_info()
    return " ".join([name, *flags])


def _candidates(
    module: nn.Module, context: StepContext, usual: ExecutionMode
) -> list[ExecutionMode]:
    """Return every precision and layout that is worth a try, the usual one first."""
    precisions = dict.fromkeys([usual.precision, "float32"])
    layouts = [True, False] if usual.channels_last else [False]
    modes = [ExecutionMode(precision, layout) for precision in precisions for layout in layouts]
    if context.device.type == "cpu" and usual.precision == "bfloat16" and has_attention(module):
        modes += [replace(mode, float32_attention=True) for mode in modes[: len(layouts)]]
    return modes


class _Trial:
    """Training steps of a copy of a module, to be timed."""

    def __init__(
        self, model: Model, context: StepContext, batch: Batch, mode: ExecutionMode
    ) -> None:
        module = copy.deepcopy(model.module)
        self.module = to_device(module, context, mode.channels_last).train()
        self.run = runner(self.module, mode, batch)
        self.context, self.batch, self.mode = context, batch, mode

    def step(self) -> float:
        """Return the seconds of one pass forward and backward."""
        self._synchronize()
        started = time.perf_counter()
        inputs = place_inputs(self.batch.inputs, self.mode.channels_last)
        with execution_context(self.context, self.mode):
            heads = self.run(*inputs)
        losses = [self.context.task.loss(head.float(), self.batch.targets) for head in heads]
        torch.stack(losses).sum().backward()
        self._synchronize()
        seconds = time.perf_counter() - started
        self.module.zero_grad(set_to_none=True)
        return seconds

    def _synchronize(self) -> None:
        if self.context.device.type == "cuda":
            torch.cuda.synchronize(self.context.device)


NewTrial = Callable[[ExecutionMode], _Trial]


@stage("finding out how to train fastest")
def _fastest(new_trial: NewTrial, modes: Sequence[ExecutionMode]) -> dict[str, Any]:
    """Time training steps in every mode, the usual one first; return the choice and the seconds."""
    usual = modes[0]
    seconds = _in_turns(new_trial, modes)
    best = min(seconds, key=lambda mode: seconds[mode], default=usual)
    if usual in seconds and seconds[best] >= CLEARLY * seconds[usual]:
        best = usual
    return {
        "chosen": asdict(best),
        "seconds": seconds.get(best, 0.0),
        "seconds_per_step": _rounded(seconds),
    }


@stage("finding out how to train fastest")
def _with_option(
    new_trial: NewTrial, mode: ExecutionMode, option: str, steps: int
) -> dict[str, Any]:
    """Time training steps with and without an option; it is chosen if it pays for its preparation.

    Raises NotTried where that cannot be decided.
    """
    fast = ExecutionMode(**{**asdict(mode), option: True})
    started = time.perf_counter()
    try:
        trial = new_trial(fast)
        trial.step()
    except NotTried:
        raise
    except Exception as error:  # no compiler, or a module that cannot be traced or recorded
        if ran_out_of_memory(error):
            raise NotTried(str(error)) from error
        reason = f"{type(error).__name__}: {error}"[:300]
        return {"chosen": asdict(mode), "seconds_per_step": {}, "refused": reason}
    preparing = time.perf_counter() - started
    seconds = _in_turns(lambda one: trial if one == fast else new_trial(one), [mode, fast])
    pays = False
    if len(seconds) == 2:
        gain = (seconds[mode] - seconds[fast]) * steps - preparing
        pays = seconds[fast] < CLEARLY * seconds[mode] and gain > 0
    return {
        "chosen": asdict(fast if pays else mode),
        "preparing": round(preparing, 3),
        "seconds_per_step": _rounded(seconds),
    }


def _in_turns(new_trial: NewTrial, modes: Sequence[ExecutionMode]) -> dict[ExecutionMode, float]:
    """Return the least seconds of a step in each mode, taken in turns after one that warms up.

    A mode for which memory does not suffice is left out, and so is one that fails though the first
    does not.
    """
    trials: dict[ExecutionMode, _Trial] = {}
    for mode in modes:
        try:
            trial = new_trial(mode)
            trial.step()
        except Exception as error:
            if mode == modes[0] and not ran_out_of_memory(error):
                raise
        else:
            trials[mode] = trial
    rounds = [{mode: trial.step() for mode, trial in trials.items()} for _ in range(ROUNDS)]
    return {mode: min(seconds[mode] for seconds in rounds) for mode in trials}


def _rounded(seconds: Mapping[ExecutionMode, float]) -> dict[str, float]:
    return {str(mode): round(value, 5) for mode, value in seconds.items()}


Run = Callable[..., tuple[Tensor, ...]]
"""Inputs -> the logits, then those of auxiliary heads."""


def runner(module: nn.Module, mode: ExecutionMode, batch: Batch | None) -> Run:
    """Return a function that runs a module on batches like `batch`, with the module's weights.

    A batch is needed only to replay. Raises NotReplayable, or RuntimeError, where the module
    cannot be replayed.
    """
    compiled: Callable[..., Any] = module
    if mode.compiled:
        import torch._inductor.config as config

        config.compile_threads = 1  # worker processes would outlive a killed step
        before = set(vars(module))
        compiled = torch.compile(module, dynamic=False)
        for mark in set(vars(module)) - before:
            delattr(module, mark)  # no model file could hold it

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return all_heads(module, compiled(*inputs))

    if mode.replayed:
        assert batch is not None, "a recording needs one"
        inputs = place_inputs(batch.inputs, mode.channels_last)
        return Replayed(module, run, inputs, mode.precision)
    return run
