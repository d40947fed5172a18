"""Counting what a module costs. The one counter of MACs serves targets and tables alike.

The convention: one multiply-accumulate (MAC) is a multiplication and an addition, two FLOPs.
Counted are convolutions and matrix products, those inside attention included, at the dispatcher
(`torch.utils.flop_counter`), whatever module or function called them: a convolution has
outputs x filter weights / output channels, a product of (M, K) and (K, N) has M x K x N. A bias,
an activation, a norm, a softmax, pooling and element-wise arithmetic are not counted
(`macs_report` names them), and a masked weight counts like any other.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from compress.model import forward
from compress.tasks.base import Tensors

aten = torch.ops.aten

MOVES = frozenset(
    (
        *("alias", "arange", "as_strided", "_assert_async", "_assert_scalar"),
        *("_assert_tensor_metadata", "cat", "channel_shuffle", "clone", "constant_pad_nd", "copy"),
        *("detach", "embedding", "empty", "empty_like", "empty_strided", "expand_copy", "eye"),
        *("fill", "flip", "full", "full_like", "gather", "im2col", "index", "index_put"),
        *("index_select", "item", "lift_fresh", "lift_fresh_copy", "_local_scalar_dense"),
        *("masked_fill", "masked_scatter", "masked_select", "new_empty", "new_empty_strided"),
        *("new_full", "new_ones", "new_zeros", "nonzero", "ones", "ones_like", "permute_copy"),
        *("pixel_shuffle", "pixel_unshuffle", "rand", "rand_like", "randn", "randn_like"),
        *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat"),
        *("repeat_interleave", "replication_pad1d", "replication_pad2d", "replication_pad3d"),
        *("_reshape_alias", "_reshape_copy", "resize", "roll", "scalar_tensor", "scatter"),
        *("select_scatter", "set", "slice_scatter", "split_with_sizes_copy", "stack", "take"),
        *("_to_copy", "tril", "triu", "unfold", "unsafe_chunk", "_unsafe_index", "unsafe_split"),
        *("unsafe_split_with_sizes", "_unsafe_view", "upsample_nearest1d", "upsample_nearest2d"),
        *("upsample_nearest3d", "where", "zero", "zeros", "zeros_like"),
    )
)
"""Operators of torch that only make, move or select values."""

PRODUCTS = frozenset(
    (
        *("_addmm_activation", "_cdist_forward", "_cudnn_rnn", "_int_mm", "miopen_rnn"),
        *("mkldnn_linear", "mkldnn_rnn_layer", "_native_multi_head_attention", "_sparse_addmm"),
        *("_transformer_encoder_layer_fwd", "_trilinear", "_weight_int4pack_mm"),
        *("_weight_int8pack_mm",),
    )
)
"""Operators of torch that multiply matrices, and for which there is no formula."""


def macs(module: nn.Module, example: Tensors) -> int:
    """Return the multiply-accumulates of one forward pass at the batch size of `example`.

    What counts is said at the head of this file.
    """
    with _counting(module) as counter:
        forward(module, _beside(module, example))
    return int(counter.get_total_flops()) // 2


def macs_report(module: nn.Module, example: Tensors) -> tuple[int, dict[str, int]]:
    """Return `macs`, and what arithmetic it leaves out: operator -> number of calls.

    Operators of torch have their bare name (in place or not), others that of their library in
    front (`torchvision.deform_conv2d`). What only makes or moves values is not among them.
    """
    # The outer mode sees what the counter has taken apart.
    with _Executed() as seen, _counting(module) as counter:
        forward(module, _beside(module, example))
    return int(counter.get_total_flops()) // 2, dict(sorted(seen.uncounted.items()))


def left_out(uncounted: Mapping[str, int]) -> str:
    """Return a sentence about the operators whose MACs may be missing from a count; '' for none.

    Those are foreign ones, of which nothing is known, and torch's own that hold a product.
    """
    calls = [
        f"{count} call{'' if count == 1 else 's'} of {name}"
        for name, count in uncounted.items()
        if "." in name or name in PRODUCTS
    ]
    return f"MACs leave out {', '.join(calls)}" if calls else ""


@contextlib.contextmanager
def _counting(module: nn.Module) -> Iterator[FlopCounterMode]:
    """Count in eval mode, and put the module back into the mode that it was in."""
    training, fast = module.training, torch.backends.mha.get_fastpath_enabled()
    # The fused attention of eval mode has no formula in the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module.eval()
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        module.train(training)


def _beside(module: nn.Module, example: Tensors) -> Tensors:
    """Return the example on the module's device."""
    device = next(module.parameters(), torch.empty(0)).device
    return tuple(tensor.to(device) for tensor in example)


Sizes = tuple[int, ...]


def _product(left: Sizes, right: Sizes, **rest: Any) -> int:
    """FLOPs of a matrix or a vector times a vector."""
    return 2 * prod(left)


def _added_product(added: Sizes, left: Sizes, right: Sizes, **rest: Any) -> int:
    """FLOPs of (M, K) x (K,), or of the sum of (B, M, K) x (B, K, N), to which one is added."""
    return 2 * prod(left) * (right[-1] if len(left) == 3 else 1)


FORMULAS = {
    **dict.fromkeys((aten.mv, aten.dot, aten.vdot), _product),
    **dict.fromkeys((aten.addmv, aten.addbmm), _added_product),
}
"""Products that torch's counter has no formula for."""


class _Executed(TorchDispatchMode):
    """Counts the calls of every operator that does arithmetic and has no formula."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _does_arithmetic(func):
            self.uncounted[_name(func)] += 1
        return func(*args, **(kwargs or {}))


def _does_arithmetic(func: Any) -> bool:
    packet = getattr(func, "_overloadpacket", func)
    if packet in flop_registry or packet in FORMULAS or getattr(func, "is_view", False):
        return False
    return func.namespace != "prim" and _name(func) not in MOVES


def _name(func: Any) -> str:
    """Return an operator's name, without the underscore of one that works in place."""
    bare = func.name().rpartition("::")[2].partition(".")[0]
    if not bare.endswith("__"):
        bare = bare.removesuffix("_")
    return bare if func.namespace == "aten" else f"{func.namespace}.{bare}"


def params(module: nn.Module) -> int:
    """Return the number of parameters; a tied tensor counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def nonzero_params(module: nn.Module) -> int:
    """Return the number of parameters that are not exactly zero."""
    return sum(int(parameter.count_nonzero()) for parameter in module.parameters())
