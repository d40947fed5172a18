"""Running statistics of batch norms, estimated anew: a subnet's are not those of the whole net.

Yu and Huang 2019 (Universally slimmable networks, arXiv 1903.05134): the exact average over some
training items, after training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from compress.tasks.base import Split, Task, prepared_batches

BATCH = 128


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch norms of a module that keep running statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]


def reestimate(
    module: nn.Module, task: Task, split: Split, device: torch.device | str = "cpu"
) -> None:
    """Set the running means and variances of all batch norms to their averages over a split.

    In place. Each batch counts alike, every other layer runs as in eval mode, and the module is in
    eval mode afterwards. Without batch norms nothing runs.
    """
    norms = batch_norms(module)
    if not norms:
        return
    module.eval()
    with _averaging(norms), torch.no_grad():
        for inputs, targets in prepared_batches(task, split, BATCH, device):
            if len(targets) > 1:  # one item has no variance
                module(*inputs)


@contextlib.contextmanager
def _averaging(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Have norms take the plain average over what passes, from now on, and no longer after it."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for the average over all batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
