"""What a training and a measurement will take, by a moment's try, before anything is begun."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from compress.benchmark.plan.plan import Plan
from compress.compressor import leaves
from compress.context import StepContext
from compress.heads import main_output
from compress.model import Model
from compress.training import Training
from compress.training.execution_mode import ExecutionMode, autocast, usual_precision
from compress.training.layout import memory_format, suits_channels_last

CPU = torch.device("cpu")

ITEMS = (4, 16, 64, 128)
"""Of the batches that are tried, as long as that takes a moment: the larger, the less for each."""
PASSES = 3
LONG = 1.0
"""Seconds of passes after which there is no further one of that batch, nor of a larger one if a
single pass took as long."""
EAGER = 2.0
"""A runtime answers an item in at most this part of what torch takes for it."""


@dataclass(frozen=True)
class Probe:
    """Seconds that an item takes in this process, on the CPU."""

    forward: float
    training: float

    def epoch(self, plan: Plan) -> float:
        return len(plan.data.train) * self.training

    def making(self, plan: Plan) -> float:
        """Return what the training of the baseline takes: nothing where it runs on a GPU."""
        if plan.baseline is None or plan.device.type != "cpu":
            return 0.0
        steps = leaves(plan.baseline)
        epochs = sum(one.epochs * n for one, n in steps if isinstance(one, Training))
        return epochs * self.epoch(plan)


def probe(plan: Plan) -> Probe:
    """Time a pass of the plan's model forwards and back."""
    model, before = plan.start.copy(), torch.get_num_threads()
    torch.set_num_threads(plan.step_threads)
    trains = any(p.requires_grad for p in model.module.parameters())
    trains = trains and not plan.data.untrainable
    try:
        forward = _seconds(model)
        both = _seconds(model, plan.step_context(0, False)) if trains else 0.0
    finally:
        torch.set_num_threads(before)
    return Probe(forward, both)


def _seconds(model: Model, training: StepContext | None = None) -> float:
    """Return the fewest seconds that an item takes in a pass, of a few.

    In a `training`, forwards and back, as its usual mode does it, on the CPU; else forwards.
    """
    mode = ExecutionMode()
    if training is not None:
        layout = suits_channels_last(model.module, model.items(ITEMS[0]), training.log)
        here = training.device == CPU
        mode = ExecutionMode(training.precision if here else usual_precision(CPU), layout)
    module = model.module.train(training is not None)
    module.to(memory_format=memory_format(mode.channels_last))
    best, least = math.inf, 2  # the very first pass may have to prepare a lot
    for count in ITEMS:
        items = model.items(count)
        taken: list[float] = []
        while len(taken) < least or (len(taken) < PASSES and sum(taken) < LONG):
            started = time.perf_counter()
            with torch.set_grad_enabled(training is not None):
                with autocast(CPU, mode.precision):
                    outputs = main_output(module, module(*items))
                if training is not None:
                    outputs.float().square().mean().backward()
            taken.append(time.perf_counter() - started)
        best, least = min(best, min(taken) / count), 1
        # Only what was seen counts: on busy cores a pass may take as long whatever its batch.
        if min(taken) > LONG:
            break
    return best
