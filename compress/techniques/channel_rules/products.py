"""Operators that multiply by weights: convolutions, matrix products, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from compress.techniques.channel_rules.common import (
    Rule,
    Vector,
    agreed,
    argument,
    axes_of,
    named,
    result_of,
    spatial_axes,
)

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer


def convolution(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """x (N, C, ...) with weights (O, C / groups, ...), or transposed (C, O / groups, ...)."""
    x, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    axes = axes_of(t, x)
    spatial_axes(t, axes, x.ndim - 2, x)
    enters = axes[1]
    if t.origin(weight) is None:
        t.found.computed.add(t.where.path)
    if groups > 1 and groups > weight.shape[0 if transposed else 1] // (
        groups if transposed else 1
    ):
        leaves = _whole_groups(t, enters, weight, transposed, groups)
    elif transposed:
        leaves = _transposed(t, enters, weight, groups)
    else:
        inside = t.reads(weight, 1)
        t.meet(t.blocks(enters, groups), inside, f"the input of {t.here()} is of fixed size")
        leaves = t.makes(weight, 0)
        t.blocks(leaves, groups)
    if bias is not None and bias.shape[0] > 1:
        leaves = t.meet(leaves, t.axis(bias, 0), f"{t.here()} has a bias of fixed size")
    t.keep(result_of(result), [axes[0], leaves, *[None] * (x.ndim - 2)])


def _transposed(t: Tracer, enters: Vector | None, weight: Tensor, groups: int) -> Vector | None:
    """Every group has the same axis of outputs in its weights, so loses the same of them."""
    t.blocks(enters, groups)
    t.meet(enters, t.reads(weight, 0), f"the input of {t.here()} is of fixed size")
    made = t.makes(weight, 1)
    return None if made is None else np.tile(made, groups)


def _whole_groups(
    t: Tracer, enters: Vector | None, weight: Tensor, transposed: bool, groups: int
) -> Vector | None:
    """Groups are many and narrow (one channel each in a depthwise convolution): whole ones go."""
    reason = f"{t.here()} loses whole groups alone"
    inside = t.reads(weight, 1) if not transposed else t.makes(weight, 1)
    t.lock(inside, reason)
    first = t.reads(weight, 0) if transposed else t.makes(weight, 0)
    if enters is None:
        t.lock(first, f"the input of {t.here()} is of fixed size")
        return None
    entering = enters.reshape(groups, -1)
    if transposed:
        t.found.unite(enters, first)  # type: ignore[arg-type]
        made = np.repeat(entering[:, 0], weight.shape[1])
    else:
        assert first is not None
        made = first
    for rows in (entering, made.reshape(groups, -1)):
        t.found.unite(np.broadcast_to(entering[:, :1], rows.shape).ravel(), rows.ravel())
    t.found.whole_groups.add(t.where.path)
    return made


def product(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """(..., M, K) x (..., K, N), and what is added to it."""
    name = func._overloadpacket.__name__
    added, (a, b) = (None, args[:2]) if name in ("mm", "bmm") else (args[0], args[1:3])
    reason = f"the input of {t.here()} is of fixed size"
    t.meet(t.reads(a, a.ndim - 1), t.reads(b, b.ndim - 2), reason)
    out = result_of(result)
    axes = [*axes_of(t, a)[:-1], t.makes(b, b.ndim - 1)]
    t.makes(a, a.ndim - 2)
    if out.ndim == 3:
        axes[0] = agreed(t, [a, b], -3, out.shape[0])
    if added is not None:
        for axis in range(-added.ndim, 0):
            if added.shape[axis] > 1:
                reason = f"{t.here()} adds a tensor of fixed size"
                axes[axis] = t.meet(axes[axis], t.axis(added, axis), reason)
    t.keep(out, axes)


def attention(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """softmax(q kᵀ · scale) v of (N, heads, tokens, width of a head) each."""
    q, k, v = args[:3]
    inside = t.meet(t.axis(q, 3), t.axis(k, 3), f"the input of {t.here()} is of fixed size")
    if argument(func, args, options, "scale") is None:
        t.found.scaled.add(t.where.path)
        if t.where.path not in t.rescalable:
            t.lock(inside, f"the width of a head sets the scale of attention in {t.here()}")
    heads = agreed(t, [q, k, v], 1 - 4, q.shape[1])
    mask = argument(func, args, options, "attn_mask")
    if mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
        heads = t.meet(heads, t.axis(mask, 1), f"{t.here()} has a mask of fixed size")
    first = agreed(t, [q, k, v], -4, q.shape[0])
    t.keep(result_of(result), [first, heads, t.axis(q, 2), t.axis(v, 3)])


def embedding(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    weight, numbers = args[:2]
    t.lock(t.axis(weight, 0), f"{t.here()} takes rows by number")
    t.keep(result_of(result), [*[None] * numbers.ndim, t.makes(weight, 1)])


RULES: dict[str, Rule] = {
    **named(convolution, "convolution"),
    **named(product, "mm addmm bmm baddbmm"),
    **named(attention, "_scaled_dot_product_flash_attention_for_cpu"),
    **named(embedding, "embedding"),
}
