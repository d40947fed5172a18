"""Attention in float32 within a training in bfloat16.

On CPUs torch's kernels of scaled dot product attention take up to three times as long in bfloat16
as in float32 where sequences are short, and less time where they are long
(`benchmarks/distillation/attention.py`). `compress.training.execution_mode` therefore tries both.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def has_attention(module: nn.Module) -> bool:
    """Whether a layer is named like one of attention, as those of torch, timm and others are."""
    return any("attention" in type(layer).__name__.lower() for layer in module.modules())


@contextmanager
def attention_in_float32() -> Iterator[None]:
    """Within this context autocast on the CPU computes scaled dot product attention in float32.

    Autocast's rule for this operation is replaced, for all callers and threads.
    """
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            # Some versions of torch warn once that an operation was replaced.
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            library.impl("scaled_dot_product_attention", _in_float32, "AutocastCPU")
        yield
    finally:
        library._destroy()


def _in_float32(*args: Any, **kwargs: Any) -> Tensor:
    args, kwargs = tree_map_only(Tensor, _raised, (args, kwargs))
    with torch.autocast("cpu", enabled=False):
        return nn.functional.scaled_dot_product_attention(*args, **kwargs)


def _raised(tensor: Tensor) -> Tensor:
    """Return float32 of what autocast casts: neither float64 nor masks of booleans."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.float()
