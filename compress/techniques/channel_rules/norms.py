"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compress.techniques.channel_rules.common import (
    Labels,
    Rule,
    Vector,
    argument,
    axes_of,
    named,
    result_of,
    spatial_axes,
)

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer


def batch_norm(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Each channel alone, with its vectors: weight, bias and running statistics."""
    x, axes, out = args[0], axes_of(t, args[0]), result_of(result)
    axes[1] = _with_vectors(t, axes[1], args[1:5])
    if t.source(x) and argument(func, args, options, "training"):
        _standardized(t, axes[2:])
        t.keep(out, axes)
        t.keep_source(out, x)
    else:
        t.keep(out, [*axes[:2], *[None] * (x.ndim - 2)])


def _standardized(t: Tracer, over: Labels) -> None:
    """Note a norm over what enters: a weight (1, O, I · kernel) that is standardised in each call.

    Its statistics are those of the inputs that are kept (Qiao et al. 2019; Brock et al. 2021).
    """
    inside = [vector for vector in over if vector is not None]
    if len(inside) == 1:
        t.takes_statistics(inside[0])
    else:
        for vector in inside:
            t.lock(vector, f"{t.here()} normalises over several axes")


def _with_vectors(t: Tracer, vector: Vector | None, others: Sequence[Any]) -> Vector | None:
    known = vector
    for other in others:
        if isinstance(other, Tensor) and other.numel() > 1:
            reason = f"it meets a tensor of fixed size in {t.here()}"
            known = t.meet(known, t.axis(other, 0), reason)
    if known is not None:
        t.found.vectors[t.where.path] = known
    return known


def group_norm(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Whole groups go; of a single one, channels, and the rest is normalised without them."""
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    axes = spatial_axes(t, axes_of(t, x), x.ndim - 2, x)
    axes[1] = vector = _with_vectors(t, axes[1], (weight, bias))
    if vector is not None and groups == 1:
        t.takes_statistics(vector)
    elif not isinstance(t.layer(), nn.GroupNorm):
        t.lock(vector, f"{t.here()} normalises {groups} groups, a number that would not follow")
    elif vector is not None:
        size = len(vector) // groups
        t.blocks(vector.reshape(groups, size).T.ravel(), size)
    t.keep(result_of(result), axes)


def layer_norm(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, shape, weight, bias = args[:4]
    t.keep(result_of(result), t.normalized(x, len(shape), weight, bias))


RULES: dict[str, Rule] = {
    **named(
        batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
    ),
    **named(group_norm, "native_group_norm"),
    **named(layer_norm, "native_layer_norm"),
}
