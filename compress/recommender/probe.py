"""What a training and a measurement will take, by a moment's try, before anything is begun."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from compress.benchmark.plan.plan import Plan
from compress.compressor import leaves
from compress.errors import UserError
from compress.heads import main_output
from compress.system.amounts import duration
from compress.training import Training

ITEMS = 4
"""Of a batch that is tried."""
PASSES = 3
LONG = 1.0
"""Seconds of passes after which there is no further one."""
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
    items = model.items(ITEMS)
    torch.set_num_threads(plan.step_threads)
    try:
        forward = _seconds(model.module.eval(), items, train=False)
        trains = any(p.requires_grad for p in model.module.parameters())
        trains = trains and not plan.data.untrainable
        both = _seconds(model.module.train(), items, train=True) if trains else 0.0
    finally:
        torch.set_num_threads(before)
    return Probe(forward / ITEMS, both / ITEMS)


def _seconds(module: nn.Module, items: tuple[torch.Tensor, ...], train: bool) -> float:
    """Return the shortest of a few passes' seconds."""
    taken: list[float] = []
    while len(taken) < PASSES and sum(taken) < LONG:
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            outputs = main_output(module, module(*items))
            if train:
                outputs.square().mean().backward()
        taken.append(time.perf_counter() - started)
    return min(taken)


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
