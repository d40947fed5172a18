"""Counting what a module costs. The one counter of MACs serves targets and tables alike."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress.model import forward
from compress.task import Tensors


def macs(module: nn.Module, example: Tensors) -> int:
    """Return the multiply-accumulates of one forward pass at the batch size of `example`.

    Counted at the dispatcher (`torch.utils.flop_counter`, two FLOPs per MAC): convolutions and
    matrix products, those inside attention included. Additions, activations, norms and pooling
    are not counted. A masked weight counts like any other.
    """
    device = next(module.parameters(), torch.empty(0)).device
    inputs = tuple(tensor.to(device) for tensor in example)
    training, fast = module.training, torch.backends.mha.get_fastpath_enabled()
    # The fused attention of eval mode has no formula in the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            forward(module.eval(), inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        module.train(training)
    return int(counter.get_total_flops()) // 2


def params(module: nn.Module) -> int:
    """Return the number of parameters; a tied tensor counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def nonzero_params(module: nn.Module) -> int:
    """Return the number of parameters that are not exactly zero."""
    return sum(int(parameter.count_nonzero()) for parameter in module.parameters())
