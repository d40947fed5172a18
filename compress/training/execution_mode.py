"""In which precision and memory layout a training runs, compiled or replayed: by measuring.

Short trainings take what usually pays. A long one is tried out for a few steps in every way; the
answer is kept by machine, versions and question, since it changes how sums are rounded.
"""

from __future__ import annotations

import copy
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
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
"""Multiply-accumulates of a training from which on trying out pays: a minute or more on a CPU."""
MEASURED_FROM_STEPS = 2000
"""Steps from which on it pays, whatever a step costs: trying out takes about twenty of them. Few
multiply-accumulates are not little time: depthwise convolutions are slow, in bfloat16 above all."""
REPLAYED_FROM = 10.0
"""Seconds of a training on a GPU from which on graphs are tried out: it takes a second or two."""
COMPILED_FROM = 600.0
"""Seconds of a training from which on compiling is tried out: it takes up to a minute itself."""
CLEARLY = 0.9
"""Another way must take less than this share of the usual one's time: repeatable despite noise."""
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
    """Return what usually pays: channels_last for convolutions, the precision of the hardware."""
    some = batch.part(0, ITEMS).inputs
    return ExecutionMode(context.precision, suits_channels_last(module, some, context.log))


def autocast(context: StepContext, precision: str | None = None) -> torch.autocast:
    wanted = context.precision if precision is None else precision
    return torch.autocast(context.device.type, torch.bfloat16, enabled=wanted == "bfloat16")


@contextmanager
def execution_context(context: StepContext, mode: ExecutionMode) -> Iterator[None]:
    """Run forward passes of a training within this context: in the precision of its pace."""
    attention = attention_in_float32() if mode.float32_attention else nullcontext()
    with attention, autocast(context, mode.precision):
        yield


def to_device(module: nn.Module, context: StepContext, channels_last: bool) -> nn.Module:
    """Move a module to the context's device, in the memory layout that it runs in."""
    return module.to(context.device).to(memory_format=memory_format(channels_last))


def autotune(
    model: Model, context: StepContext, steps: int, batch: Batch, traced: bool = True
) -> ExecutionMode:
    """Return the fastest way to take so many steps on such batches; the log gets timings.

    `traced` is False where the module must be neither compiled nor recorded.
    """
    usual = default_mode(model.module, context, batch)
    if not context.tune or _is_short(model, steps, len(batch)):
        return usual
    ways = _ways(model.module, context, usual)
    question = {
        "layers": digest(repr(model.module)),
        "params": _size(model.module),
        "inputs": [list(tensor.shape) for tensor in batch.inputs],
        "usual": str(usual),
        "ways": [str(way) for way in ways],
        "device": _device_name(context.device),
        "threads": torch.get_num_threads(),
        "torch": importlib.metadata.version("torch"),
    }
    # Trials draw random numbers (dropout), and an answer from the cache draws none.
    with preserve_rng_state(context.device):
        way = context.cached({"pace": question}, lambda: _measured(model, context, batch, ways))
        context.log.row("pace", **way)
        chosen = ExecutionMode(**way["chosen"])
        seconds = way["seconds"]
        for manner, least in manners(context.device).items():
            if not traced or seconds * steps < least:
                continue
            asked = {manner: question, "pace": str(chosen), "steps": steps}
            trying = partial(_improved, model, context, batch, chosen, manner, steps)
            try:
                tried = context.cached(asked, trying)
            except NotTried as error:  # which is no answer, and not kept as one
                context.log.row(manner, chosen=asdict(chosen), refused=str(error)[:300])
                continue
            context.log.row(manner, **tried)
            chosen = ExecutionMode(**tried["chosen"])
            seconds = tried["seconds_per_step"].get(str(chosen), seconds)
        return chosen


def manners(device: torch.device) -> dict[str, float]:
    """Return in which further ways a training may run, and the seconds from which to try each."""
    replayed = {"replayed": REPLAYED_FROM} if device.type == "cuda" else {}
    return {**replayed, "compiled": COMPILED_FROM}


def _is_short(model: Model, steps: int, items: int) -> bool:
    """Whether so many steps, each on so many items, are over before trying out would have paid."""
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


def _ways(module: nn.Module, context: StepContext, usual: ExecutionMode) -> list[ExecutionMode]:
    """Return every precision and layout that is worth a try, the usual one first."""
    precisions = dict.fromkeys([usual.precision, "float32"])
    layouts = [True, False] if usual.channels_last else [False]
    ways = [ExecutionMode(precision, layout) for precision in precisions for layout in layouts]
    if context.device.type == "cpu" and usual.precision == "bfloat16" and has_attention(module):
        ways += [
            ExecutionMode(usual.precision, layout, float32_attention=True) for layout in layouts
        ]
    return ways


@stage("finding out how to train fastest")
def _measured(
    model: Model, context: StepContext, batch: Batch, ways: Sequence[ExecutionMode]
) -> dict[str, Any]:
    """Time training steps in every way, the usual one first; return the choice and the seconds."""
    usual = ways[0]
    seconds = _in_turns(model, context, batch, ways)
    best = min(seconds, key=lambda way: seconds[way], default=usual)
    if usual in seconds and seconds[best] >= CLEARLY * seconds[usual]:
        best = usual
    told = {str(way): round(value, 5) for way, value in seconds.items()}
    return {
        "chosen": asdict(best),
        "seconds": seconds.get(best, 0.0),
        "seconds_per_step": told,
    }


@stage("finding out how to train fastest")
def _improved(
    model: Model, context: StepContext, batch: Batch, way: ExecutionMode, manner: str, steps: int
) -> dict[str, Any]:
    """Time training steps with and without compiling or graphs: what pays for itself is chosen.

    Raises NotTried where that could not be found out.
    """
    fast = ExecutionMode(**{**asdict(way), manner: True})
    started = time.perf_counter()
    try:
        trial = _Trial(model, context, batch, fast)
        trial.step()
    except NotTried:
        raise
    except Exception as error:  # no compiler, or a module that cannot be traced or recorded
        if ran_out_of_memory(error):
            raise NotTried(str(error)) from error
        why = f"{type(error).__name__}: {error}"[:300]
        return {"chosen": asdict(way), "seconds_per_step": {}, "refused": why}
    preparing = time.perf_counter() - started
    seconds = _in_turns(model, context, batch, [way, fast], {fast: trial})
    told: dict[str, Any] = {str(key): round(value, 5) for key, value in seconds.items()}
    found = {"preparing": round(preparing, 3), "seconds_per_step": told}
    if len(seconds) < 2:
        return {"chosen": asdict(way), **found}
    gain = (seconds[way] - seconds[fast]) * steps - preparing
    pays = seconds[fast] < CLEARLY * seconds[way] and gain > 0
    return {"chosen": asdict(fast if pays else way), **found}


def _in_turns(
    model: Model,
    context: StepContext,
    batch: Batch,
    ways: Sequence[ExecutionMode],
    ready: Mapping[ExecutionMode, _Trial] | None = None,
) -> dict[ExecutionMode, float]:
    """Return the least seconds of a step in each way, taken in turns after one that warms up.

    A way for which memory does not suffice is left out, and so is one that fails though the first
    does not. Trials that are `ready` are used.
    """
    known, trials = ready or {}, dict[ExecutionMode, _Trial]()
    for way in ways:
        try:
            trial = known[way] if way in known else _Trial(model, context, batch, way)
            trial.step()
        except Exception as error:
            if way == ways[0] and not ran_out_of_memory(error):
                raise
        else:
            trials[way] = trial
    rounds = [{way: trial.step() for way, trial in trials.items()} for _ in range(ROUNDS)]
    return {way: min(taken[way] for taken in rounds) for way in trials}


class _Trial:
    """Training steps of a copy of a module, to be timed."""

    def __init__(
        self, model: Model, context: StepContext, batch: Batch, way: ExecutionMode
    ) -> None:
        module = to_device(copy.deepcopy(model.module), context, way.channels_last).train()
        self.parameters = list(module.parameters())
        self.run = runner(module, way, batch)
        self.context, self.batch, self.way = context, batch, way

    def step(self) -> float:
        """Return the seconds of one pass forward and backward."""
        self._wait()
        started = time.perf_counter()
        inputs = place_inputs(self.batch.inputs, self.way.channels_last)
        with execution_context(self.context, self.way):
            heads = self.run(*inputs)
        losses = [self.context.task.loss(head.float(), self.batch.targets) for head in heads]
        torch.stack(losses).sum().backward()
        self._wait()
        seconds = time.perf_counter() - started
        self._clear()
        return seconds

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _wait(self) -> None:
        if self.context.device.type == "cuda":
            torch.cuda.synchronize(self.context.device)


Run = Callable[..., tuple[Tensor, ...]]
"""Inputs -> the logits, then those of auxiliary heads."""


def runner(module: nn.Module, mode: ExecutionMode, batch: Batch | None) -> Run:
    """Return what runs a module on batches like the one given; it shares the module's weights.

    A batch is needed only to replay. Raises NotReplayable, or RuntimeError, where the module
    cannot be replayed.
    """
    compiled: Callable[..., Any] = module
    if mode.compiled:
        import torch._inductor.config as config

        config.compile_threads = 1  # worker processes would outlive a step that is killed
        before = set(vars(module))
        compiled = torch.compile(module, dynamic=False)
        for mark in set(vars(module)) - before:
            delattr(module, mark)  # else it is a change of the model's that no file can hold

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return all_heads(module, compiled(*inputs))

    if mode.replayed:
        assert batch is not None, "a recording needs one"
        inputs = place_inputs(batch.inputs, mode.channels_last)
        return Replayed(module, run, inputs, mode.precision)
    return run
