"""The accuracy and loss of a module on a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from compress.heads import Path, main_output, pick
from compress.tasks.base import Split, Subset, Task, prepared_batches
from compress.training.out_of_memory import ran_out_of_memory

BATCH = 256
JUDGED, CHUNK = 1000, 64
"""Items on which several outputs of one model are compared, and how many go through at once."""


def accuracy(
    module: nn.Module, task: Task, split: Split, device: torch.device | str = "cpu"
) -> float:
    """Return the fraction of a split's items that the module gets right."""
    return evaluate(module, task, split, device)[0]


def evaluate(
    module: nn.Module, task: Task, split: Split, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Return the accuracy on a split and the mean of the task's loss, in eval mode.

    The module computes in float32, as the deployed file does; batches are halved where memory
    does not suffice for them.
    """
    module.eval()
    size = BATCH
    while True:
        try:
            return _evaluate(module, task, split, device, size)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not ran_out_of_memory(error):
                raise
        size //= 2


def _evaluate(
    module: nn.Module, task: Task, split: Split, device: torch.device | str, size: int
) -> tuple[float, float]:
    right, loss = 0, 0.0
    with torch.no_grad():
        for inputs, targets in prepared_batches(task, split, size, device):
            outputs = main_output(module, module(*inputs)).float().cpu()
            right += int(task.correct(outputs, targets).sum())
            loss += float(task.loss(outputs, targets)) * len(targets)
    return right / len(split), loss / len(split)


def some_of(split: Split, count: int) -> Split:
    """Return at most `count` items of a split, evenly spaced: image files lie sorted by class."""
    if len(split) <= count:
        return split
    return Subset(split, torch.arange(count) * len(split) // count)


def accuracies(
    module: nn.Module, task: Task, split: Split, paths: Sequence[Path]
) -> tuple[list[float], int]:
    """Return the accuracy of each of several outputs of a module, and over how many items."""
    some = some_of(split, JUDGED)
    right = [0] * len(paths)
    with torch.no_grad():
        for inputs, targets in prepared_batches(task, some, CHUNK):
            outputs = module(*inputs)
            for number, path in enumerate(paths):
                right[number] += int(task.correct(pick(outputs, path).float(), targets).sum())
    return [count / max(len(some), 1) for count in right], len(some)
