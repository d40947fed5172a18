"""In which precision and memory layout a training runs, and whether it is compiled: by measuring.

Short trainings take what usually pays. A long one is tried out for a few steps in every way; the
answer is kept by machine, versions and question, since it changes how sums are rounded.
"""

from __future__ import annotations

import copy
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.compressor import Workbench
from compress.counts import macs, params
from compress.files import digest
from compress.model import Model, main_output
from compress.task import Tensors
from compress.training.feed import Batch

MEASURED_FROM = 1e13
"""Multiply-accumulates of a training from which on trying out pays: a minute or more on a CPU."""
COMPILED_FROM = 600.0
"""Seconds of a training from which on compiling is tried out: it takes up to a minute itself."""
CLEARLY = 0.9
"""Another way must take less than this share of the usual one's time: repeatable despite noise."""
ROUNDS = 4


@dataclass(frozen=True)
class Pace:
    """How a module is run in training."""

    precision: str = "float32"
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = [self.precision]
        words += ["channels_last"] if self.channels_last else []
        return ", ".join([*words, *(["compiled"] if self.compiled else [])])


def usual_precision(device: torch.device) -> str:
    """Return bfloat16 where the hardware multiplies it natively; elsewhere it is slower."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def has_convolutions(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) for layer in module.modules())


def usual_pace(module: nn.Module, bench: Workbench) -> Pace:
    """Return what usually pays: channels_last for convolutions, the precision of the hardware."""
    return Pace(bench.precision, has_convolutions(module))


def place_inputs(inputs: Tensors, channels_last: bool) -> Tensors:
    """Give image batches the memory format that the module runs in."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return tuple(
        tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor for tensor in inputs
    )


def autocast(bench: Workbench, precision: str | None = None) -> torch.autocast:
    wanted = bench.precision if precision is None else precision
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=wanted == "bfloat16")


def to_device(module: nn.Module, bench: Workbench, pace: Pace | None = None) -> nn.Module:
    """Move a module to the workbench's device, in the memory layout that it runs in."""
    chosen = pace or usual_pace(module, bench)
    layout = torch.channels_last if chosen.channels_last else torch.contiguous_format
    return module.to(bench.device).to(memory_format=layout)


def choose_pace(
    model: Model, bench: Workbench, steps: int, batch: Batch, compilable: bool = True
) -> Pace:
    """Return the fastest way to take so many steps on such batches; the journal gets timings."""
    usual = usual_pace(model.module, bench)
    if not bench.tune or _is_short(model, steps * len(batch)):
        return usual
    question = {
        "pace": str(usual),
        "layers": digest(repr(model.module)),
        "params": params(model.module),
        "inputs": [list(tensor.shape) for tensor in batch.inputs],
        "steps": steps,
        "compilable": compilable,
        "device": _device_name(bench.device),
        "threads": torch.get_num_threads(),
        "torch": importlib.metadata.version("torch"),
    }
    answer = bench.asks(question, lambda: _measured(model, bench, batch, usual, steps, compilable))
    bench.journal.row("pace", **answer)
    return Pace(**answer["chosen"])


def _is_short(model: Model, samples: int) -> bool:
    """Whether training on so many samples is over before trying out would have paid."""
    # Backwards, a layer multiplies about twice as much as forwards.
    least = MEASURED_FROM / (3 * samples)
    # Counting takes a moment; hardly any weight is used more than once for every input value.
    if params(model.module) * sum(tensor.numel() for tensor in model.example) < least:
        return True
    return macs(model.module, model.example) < least


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.backends.cpu.get_cpu_capability()) + " " + _cpu_model()


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        return ""
    return names[0] if names else ""


def _measured(
    model: Model, bench: Workbench, batch: Batch, usual: Pace, steps: int, compilable: bool
) -> dict[str, Any]:
    """Time training steps in every way, in turns, and return the choice and the seconds."""
    precisions = dict.fromkeys([usual.precision, "float32"])
    layouts = [True, False] if usual.channels_last else [False]
    ways = [Pace(precision, layout) for precision in precisions for layout in layouts]
    trials = {way: _Trial(model, bench, batch, way) for way in ways}
    seconds = _in_turns(trials)
    chosen = _fastest(seconds, usual)
    told: dict[str, Any] = {}
    if compilable and seconds[chosen] * steps >= COMPILED_FROM:
        way = Pace(chosen.precision, chosen.channels_last, compiled=True)
        started = time.perf_counter()
        try:
            trial = _Trial(model, bench, batch, way)
            trial.step()
        except Exception as error:  # no compiler, or a module that cannot be traced
            told["not_compiled"] = f"{type(error).__name__}: {error}"[:300]
        else:
            told["compiling"] = round(time.perf_counter() - started, 3)
            both = _in_turns({chosen: trials[chosen], way: trial})
            seconds |= {way: both[way]}
            gain = (both[chosen] - both[way]) * steps - told["compiling"]
            if both[way] < CLEARLY * both[chosen] and gain > 0:
                chosen = way
    told["seconds_per_step"] = {str(way): round(value, 5) for way, value in seconds.items()}
    return {"chosen": asdict(chosen), **told}


def _in_turns(trials: dict[Pace, _Trial]) -> dict[Pace, float]:
    """Return the least seconds of a step of each trial, taken in turns after one that warms up."""
    for trial in trials.values():
        trial.step()
    rounds = [{way: trial.step() for way, trial in trials.items()} for _ in range(ROUNDS)]
    return {way: min(taken[way] for taken in rounds) for way in trials}


def _fastest(seconds: dict[Pace, float], usual: Pace) -> Pace:
    best = min(seconds, key=lambda way: seconds[way])
    return best if seconds[best] < CLEARLY * seconds[usual] else usual


class _Trial:
    """Training steps of a copy of a module, to be timed."""

    def __init__(self, model: Model, bench: Workbench, batch: Batch, way: Pace) -> None:
        module = to_device(copy.deepcopy(model.module), bench, way).train()
        self.parameters = list(module.parameters())
        self.run: Callable[..., Any] = compiled(module) if way.compiled else module
        self.bench, self.batch, self.way = bench, batch, way

    def step(self) -> float:
        """Return the seconds of one pass forward and backward."""
        self._wait()
        started = time.perf_counter()
        for parameter in self.parameters:
            parameter.grad = None
        inputs = place_inputs(self.batch.inputs, self.way.channels_last)
        with autocast(self.bench, self.way.precision):
            outputs: Tensor = main_output(self.run(*inputs))
        self.bench.task.loss(outputs.float(), self.batch.targets).backward()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.bench.device.type == "cuda":
            torch.cuda.synchronize(self.bench.device)


def compiled(module: nn.Module) -> Callable[..., Any]:
    """Return a module compiled for one shape of inputs; it shares its weights with the module."""
    import torch._inductor.config as config

    config.compile_threads = 1  # worker processes would outlive a step that is killed
    return torch.compile(module, dynamic=False)
