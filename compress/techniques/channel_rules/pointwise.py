"""Operators whose results have the shape of what enters: value by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compress.dataflow import tensors_in
from compress.techniques.channel_rules.common import Rule, agreed, axes_of, named, result_of

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer

ADDITIONS = (torch.ops.aten.add, torch.ops.aten.add_)


def pointwise(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Each result comes from the same index of every operand."""
    out, operands = result_of(result), list(tensors_in((args, options)))
    axes = [agreed(t, operands, axis, out.shape[axis]) for axis in range(-out.ndim, 0)]
    t.keep(out, axes)
    whole = [one for one in operands if one.shape == out.shape and t.origin(one) is None]
    if len(whole) > 1 and func.overloadpacket in ADDITIONS:
        t.found.added += [vector for vector in axes if vector is not None]


def same(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """The result has the shape and the labels of the first operand."""
    source, out = next(tensors_in(args)), result_of(result)
    if out is not source:
        t.keep(out, axes_of(t, source))
        t.keep_origin(out, source, range(out.ndim))


def nothing(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """New values of a shape, or in the place of others."""


def written(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Into a tensor of its own, or into a part of another, whose labels are not followed."""
    target, source = args[0], args[1]
    if target._is_view() or target.ndim != source.ndim:
        t.lock_all(args[:2], f"it is written into a part of a tensor in {t.here()}")
    else:
        t.keep(target, axes_of(t, source))


RULES: dict[str, Rule] = {
    **named(
        pointwise,
        "_prelu_kernel hardswish hardsigmoid hardtanh leaky_relu elu mish softplus threshold",
    ),
    **named(
        same,
        "alias bernoulli clone detach empty_like lift_fresh log_sigmoid_forward native_dropout "
        "ones_like rand_like randn_like _to_copy zeros_like full_like contiguous",
    ),
    **named(nothing, "new_zeros new_ones new_empty new_full zero fill"),
    **named(written, "copy"),
}
