"""What a training and a measurement will take, by a moment's try, before anything is begun."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from compress.benchmark.plan.plan import Plan
from compress.compressor import leaves
from compress.context import StepContext
from compress.errors import UserError
from compress.heads import main_output
from compress.model import Model
from compress.system.amounts import duration
from compress.training import Training
from compress.training.execution_mode import ExecutionMode, autocast, usual_precision
from compress.training.layout import memory_format, suits_channels_last

CPU = torch.device("cpu")

ITEMS = (4, 32, 128)
"""Of the batches that are tried, as long as that takes a moment: the larger, the less for each."""
PASSES = 3
LONG = 1.0
"""Seconds of passes after which there is no further one; but there is a second one: the first may
have to prepare a lot."""
EAGER = 2.0
"""A runtime answers an item in at most this part of what torch takes for it."""
STARTING = 10.0
"""Seconds until the first step begins, and until reports are written."""


@dataclass(frozen=True)
class Probe:
    """Seconds that an item takes in this process, on the CPU."""

    forward: float
    training: float

    def epoch(self, plan: Plan) -> float:
        return len(plan.data.train) * self.training

    def baseline(self, plan: Plan, test_items: int, timing: float, made: bool = False) -> float:
        """Return what the least takes: the baseline trained, measured twice, timed once.

        On a GPU, or if it was made before, without the training.
        """
        epochs = 0
        if plan.baseline is not None and plan.device.type == "cpu" and not made:
            steps = leaves(plan.baseline)
            epochs = sum(one.epochs * n for one, n in steps if isinstance(one, Training))
        measured = (len(plan.data.test) + test_items) * self.forward / EAGER
        return STARTING + epochs * self.epoch(plan) + measured + timing


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
    best, mode = math.inf, ExecutionMode()
    if training is not None:
        layout = suits_channels_last(model.module, model.items(ITEMS[0]), training.log)
        here = training.device == CPU
        mode = ExecutionMode(training.precision if here else usual_precision(CPU), layout)
    module = model.module.train(training is not None)
    module.to(memory_format=memory_format(mode.channels_last))
    for count in ITEMS:
        if count > ITEMS[0] and best * count > LONG:
            break
        items = model.items(count)
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) < PASSES and sum(taken) < LONG):
            started = time.perf_counter()
            with torch.set_grad_enabled(training is not None):
                with autocast(CPU, mode.precision):
                    outputs = main_output(module, module(*items))
                if training is not None:
                    outputs.float().square().mean().backward()
            taken.append(time.perf_counter() - started)
        best = min(best, *(seconds / count for seconds in taken))
    return best


def check_budget(
    plan: Plan, found: Probe, test_items: int, timing: float, budget: float, made: bool = False
) -> None:
    """Raise UserError for a budget in which not even the baseline could be made and measured.

    `made`: it was, by an earlier run of the search.
    """
    least = found.baseline(plan, test_items, timing, made)
    if budget < least:
        raise UserError(
            f"a budget of {duration(budget)} is too small: to make the baseline, to measure and "
            f"to time it takes about {duration(least)} here. Give at least {duration(2 * least)}"
        )
