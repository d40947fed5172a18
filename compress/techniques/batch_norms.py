"""Statistics of batch norms, estimated anew after a step that changed what enters them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.tasks.base import Tensors

BATCH = 128
"""Items of a batch: each has statistics of its own, and those kept are their means."""


def reestimate(module: nn.Module, batches: Iterable[Tensors]) -> int:
    """Set the running statistics of batch norms, in place, to their means over batches of inputs.

    No labels, no gradients: Li et al. 2020 (EagleEye, arXiv 2007.02491). Returns how
    many norms there are; those without running statistics are none.
    """
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]
    if not norms:
        return 0
    before = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in batches:
                if len(batch[0]) > 1:  # there is no variance over one
                    module(*batch)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        module.eval()
    return len(norms)
