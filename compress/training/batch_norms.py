"""Running statistics of batch norms, estimated anew after a step that changed what enters them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.errors import UserError
from compress.tasks.base import Tensors

BATCH = 128
"""Items of a batch: each has statistics of its own, and those kept are the means over them."""


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a module that keep running statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]


def reestimate(module: nn.Module, batches: Iterable[Tensors]) -> int:
    """Set the running statistics of batch norms, in place, to their means over batches of inputs,
    each with the weight of its items.

    No labels, no gradients (Yu and Huang 2019, arXiv 1903.05134; Li et al. 2020, arXiv 2007.02491).
    All other layers run as in eval mode, and the module is in eval mode afterwards. Returns how
    many norms there are; without any, no batch is taken. Raises UserError, the statistics being
    what they were, where no batch has two items: of one there is no variance.
    """
    norms = batch_norms(module)
    if not norms:
        return 0
    module.eval()
    several = (batch for batch in batches if len(batch[0]) > 1)
    first = next(several, None)
    if first is None:
        raise UserError("the statistics of batch norms cannot be estimated on less than two items")
    with _averaging(norms), torch.no_grad():
        for batch in itertools.chain([first], several):
            module(*batch)
    return len(norms)


@contextlib.contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """Have norms take the average over the items that pass, from now on, and no longer after it."""
    momenta, seen = [norm.momentum for norm in norms], dict.fromkeys(norms, 0)

    def weigh(norm: _BatchNorm, inputs: Tensors) -> None:
        seen[norm] += len(inputs[0])
        norm.momentum = len(inputs[0]) / seen[norm]

    hooks = [norm.register_forward_pre_hook(weigh) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
