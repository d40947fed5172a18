"""Counting what a module costs. The one counter of MACs serves targets and tables alike.

The convention: one multiply-accumulate (MAC) is a multiplication and an addition, two FLOPs.
Counted are convolutions and matrix products, those inside attention included, at the dispatcher
(`torch.utils.flop_counter`), whatever module or function called them: a convolution has
outputs x filter weights / output channels, a product of (M, K) and (K, N) has M x K x N. A bias,
an activation, a norm, a softmax, pooling and element-wise arithmetic are not counted (they are
named in `Counts.uncounted`), and a masked weight counts like any other.

What is deployed is counted: the parameters and products that the logits of eval mode depend on. A
head that only training uses, or that is computed beside the logits, is in no deployed file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.dataflow import DataFlow, tensors_in
from compress.errors import UserError
from compress.model import forward, on_device_of
from compress.system import amounts
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
        *("mkldnn_linear", "_native_multi_head_attention", "_sparse_addmm"),
        *("_transformer_encoder_layer_fwd", "_trilinear", "_weight_int4pack_mm"),
        *("_weight_int8pack_mm",),
    )
)
"""Operators of torch that multiply matrices, and for which there is no formula."""


@dataclass(frozen=True)
class Counts:
    """What one forward pass in eval mode costs, as far as its logits depend on it."""

    macs: int
    params: int
    """A tied tensor counts once."""
    nonzero_params: int
    """Those that are not exactly zero."""
    unused_params: int
    """Those that the logits do not depend on, such as auxiliary heads'; they are not counted."""
    uncounted: Mapping[str, int]
    """Arithmetic that is left out of the MACs: operator -> number of calls.

    Operators of torch have their bare name (in place or not), others that of their library in
    front (`torchvision.deform_conv2d`). What only makes or moves values is not among them.
    """


def count(module: nn.Module, example: Tensors) -> Counts:
    """Count a module at the batch size of `example`, by the convention at the top of this file."""
    macs, used, uncounted = _counted(module, example)
    params = sum(parameter.numel() for parameter in used)
    return Counts(
        macs=macs,
        params=params,
        nonzero_params=sum(int(parameter.count_nonzero()) for parameter in used),
        unused_params=sum(parameter.numel() for parameter in module.parameters()) - params,
        uncounted=dict(sorted(uncounted.items())),
    )


def macs(module: nn.Module, example: Tensors) -> int:
    """Return the multiply-accumulates alone, for searches."""
    return _counted(module, example)[0]


def deployed(module: nn.Module, example: Tensors) -> list[nn.Parameter]:
    """Return the parameters that the logits of eval mode depend on."""
    return _counted(module, example)[1]


def may_hold_products(uncounted: Mapping[str, int]) -> dict[str, int]:
    """Return the calls of operators whose MACs may be missing from a count.

    Those are foreign ones, of which nothing is known, and torch's own that hold a product.
    """
    return {name: count for name, count in uncounted.items() if "." in name or name in PRODUCTS}


def left_out(uncounted: Mapping[str, int]) -> str:
    """Return a sentence about the operators whose MACs may be missing; '' for none."""
    found = may_hold_products(uncounted)
    return amounts.macs_leave_out(found) if found else ""


def require_counted(who: str, module: nn.Module, example: Tensors) -> None:
    """Refuse a target of MACs, in the name of a technique, that would miss some of them."""
    if words := left_out(count(module, example).uncounted):
        raise UserError(f"{who}: a target of MACs would mean something else here, as {words}")


def _counted(
    module: nn.Module, example: Tensors
) -> tuple[int, list[nn.Parameter], Mapping[str, int]]:
    """Run a module in eval mode, then restore its mode.

    Returns the MACs and the parameters that the logits depend on, and the operators not counted.
    """
    training, fast = module.training, torch.backends.mha.get_fastpath_enabled()
    inputs, parameters = on_device_of(module, example), list(module.parameters())
    # The fused attention of eval mode has no formula.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module.eval()
        with _Counter(parameters) as counter:
            sources = counter.sources(forward(module, inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        module.train(training)
    used = [parameter for bit, parameter in enumerate(parameters) if sources >> bit & 1]
    return counter.macs(sources), used, counter.uncounted


Sizes = tuple[int, ...]


def _product(left: Sizes, right: Sizes, **rest: Any) -> int:
    """FLOPs of a matrix or a vector times a vector."""
    return 2 * prod(left)


def _added_product(added: Sizes, left: Sizes, right: Sizes, **rest: Any) -> int:
    """FLOPs of (M, K) x (K,), or of the sum of (B, M, K) x (B, K, N), to which one is added."""
    return 2 * prod(left) * (right[-1] if len(left) == 3 else 1)


def _recurrent(
    entered: Sizes, from_input: Sizes, from_state: Sizes, *rest: Any, **more: Any
) -> int:
    """FLOPs of one direction of an LSTM: (T, B, I) times (4H, I), and states times (4H, H)."""
    return 2 * prod(entered[:-1]) * (prod(from_input) + prod(from_state))


FORMULAS = {
    aten.mkldnn_rnn_layer: _recurrent,
    **dict.fromkeys((aten.mv, aten.dot, aten.vdot), _product),
    **dict.fromkeys((aten.addmv, aten.addbmm), _added_product),
}
"""Products that torch's counter has no formula for."""


REGISTRY = FlopCounterMode(display=False, custom_mapping=FORMULAS).flop_registry
"""Operator -> FLOPs of a call, by torch's formulas and ours."""
_whole: set[Any] = set()
"""Operators that are not made of others."""


class _Counter(DataFlow):
    """Counts the FLOPs of calls, and the calls that do arithmetic and have no formula."""

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__(parameters)
        self.flops: dict[int, int] = {}
        """Of the calls that have a formula, by their bits."""
        self.uncounted: Counter[str] = Counter()

    def macs(self, sources: int) -> int:
        return sum(flops for bit, flops in self.flops.items() if bit & sources) // 2

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _whole and _packet(func) not in REGISTRY and hasattr(func, "decompose"):
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
            _whole.add(func)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def call(self, func: Any, args: Any, options: dict[str, Any]) -> tuple[Any, int]:
        if func is torch.ops.higher_order.cond:
            return self._branches(*args)
        result = func(*args, **options)
        if formula := REGISTRY.get(_packet(func)):
            return result, self._product(formula(*args, **options, out_val=result))
        if _does_arithmetic(func):
            self.uncounted[_name(func)] += 1
        return result, 0

    def _branches(self, condition: Any, yes: Any, no: Any, operands: Any) -> tuple[Any, int]:
        """Return the result of the first branch; the costlier of both counts."""
        results, costs, sources, outside = [], [], 0, self.flops
        for branch in (yes, no):
            self.flops = {}
            with self:
                results.append(branch(*operands))
            costs.append(sum(self.flops.values()))
            for result in tensors_in(results[-1]):
                sources |= self.sources(result)
        self.flops = outside
        return results[0], sources | self._product(max(costs))

    def _product(self, flops: int) -> int:
        bit = self.mark()
        self.flops[bit] = int(flops)
        return bit


def _packet(func: Any) -> Any:
    return getattr(func, "_overloadpacket", func)


def _does_arithmetic(func: Any) -> bool:
    if getattr(func, "is_view", False):
        return False
    return func.namespace != "prim" and _name(func) not in MOVES


def _name(func: Any) -> str:
    """Return an operator's name, without the underscore of one that works in place."""
    bare = func.name().rpartition("::")[2].partition(".")[0]
    if not bare.endswith("__"):
        bare = bare.removesuffix("_")
    return bare if func.namespace == "aten" else f"{func.namespace}.{bare}"
