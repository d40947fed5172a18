"""Operators that move values: views, permutations, copies of the same values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.techniques.channel_rules.common import (
    Labels,
    Rule,
    Vector,
    argument,
    axes_of,
    locked_along,
    named,
    result_of,
)
from compress.techniques.channel_rules.pointwise import same

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer


def strided(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """A change of layout alone, which pooling to one pixel makes; other views are not followed."""
    if args[0].shape == result.shape:
        same(t, func, args, options, result)
    else:
        t.unknown("as_strided", args, options)


def matching(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the axes before and after a view that hold the same values, as few as possible."""
    olds = [axis for axis, size in enumerate(before) if size != 1]
    news = [axis for axis, size in enumerate(after) if size != 1]
    while olds:
        first, second = [olds.pop(0)], [news.pop(0)]
        while (p := prod(before[a] for a in first)) != (q := prod(after[a] for a in second)):
            if p < q:
                first.append(olds.pop(0))
            else:
                second.append(news.pop(0))
        yield first, second


def reshape(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, out, axes = args[0], result_of(result), axes_of(t, args[0])
    if out is x or 0 in out.shape:
        return
    if x.shape == out.shape:
        t.keep_origin(out, x, range(out.ndim))
    else:
        t.keep_source(out, x)
    kept: Labels = [None] * out.ndim
    # The shape of `x` is taken from the labels where `x` itself was changed in place.
    for olds, news in matching([*x.shape], [*out.shape]):
        labelled = [axis for axis in olds if axes[axis] is not None]
        # Of several axes that become one, as those of a standardised weight, one can be cut.
        for axis in labelled[1:]:
            t.lock(axes[axis], f"two axes of channels become one in {t.here()}")
        if labelled:
            sizes = [x.shape[axis] if axis == labelled[0] else 1 for axis in olds]
            vector = axes[labelled[0]]
            assert vector is not None
            full = np.broadcast_to(vector.reshape(sizes), [x.shape[axis] for axis in olds])
            axis, vector, heads = _one_axis(t, full.reshape([out.shape[new] for new in news]))
            t.sized(vector, heads)
            kept[news[axis]] = vector
    t.keep(out, kept)


def _one_axis(t: Tracer, labels: Vector) -> tuple[int, Vector, bool]:
    """Return along which axis labels vary, and how, and whether it is that of heads.

    Where channels are split into parts, (parts, channels of each), the parts stay, and the same
    channel goes from each; in attention that loses whole heads, the axis of these varies.
    """
    varying = [axis for axis in range(labels.ndim) if (labels != labels.take([0], axis=axis)).any()]
    heads = _heads(t, labels, varying)
    kept = varying[-1] if varying else labels.ndim - 1
    if heads is not None:
        kept = heads
    for axis in varying:
        if axis != kept:
            first = labels.take([0], axis=axis)
            t.found.unite(np.broadcast_to(first, labels.shape).ravel(), labels.ravel())
            labels = first
    size = labels.shape[kept]
    return kept, np.moveaxis(labels, kept, -1).reshape(-1, size)[0], heads is not None


def _heads(t: Tracer, labels: Vector, varying: Sequence[int]) -> int | None:
    """Return the axis of heads where whole ones go.

    It is the last of as many indices as there are heads, but for that of a head's channels.
    """
    heads = t.heads.get(t.where.path)
    as_many = [axis for axis in varying if labels.shape[axis] == heads]
    before = [axis for axis in as_many if axis != varying[-1]]
    return max(before or as_many, default=None)


def permute(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, out = args[0], result_of(result)
    name = func._overloadpacket.__name__
    order = list(range(x.ndim))
    if name == "permute":
        order = [axis % x.ndim for axis in args[1]]
    elif name in ("t", "t_"):
        order = order[::-1]
    else:
        first, second = (axis % x.ndim for axis in args[1:3])
        order[first], order[second] = second, first
    axes = axes_of(t, x)
    t.keep(out, [axes[axis] for axis in order])
    t.keep_origin(out, x, order)


def expand(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, out = args[0], result_of(result)
    t.keep(out, [*[None] * (out.ndim - x.ndim), *axes_of(t, x)])


def repeat(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, times = args[0], args[1]
    axes: Labels = [*[None] * (len(times) - x.ndim), *axes_of(t, x)]
    tiled = [
        None if vector is None else np.tile(vector, count)
        for vector, count in zip(axes, times, strict=True)
    ]
    t.keep(result_of(result), tiled)


def flip(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, axes = args[0], axes_of(t, args[0])
    for axis in args[1]:
        vector = axes[axis % x.ndim]
        axes[axis % x.ndim] = None if vector is None else vector[::-1].copy()
    t.keep(result_of(result), axes)


def roll(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    locked_along(
        t, args[0], result, argument(func, args, options, "dims", ()), "rolls its channels"
    )


RULES: dict[str, Rule] = {
    **named(strided, "as_strided"),
    **named(reshape, "view _unsafe_view reshape _reshape_alias squeeze unsqueeze"),
    **named(permute, "permute t transpose"),
    **named(expand, "expand"),
    **named(repeat, "repeat"),
    **named(flip, "flip"),
    **named(roll, "roll"),
}
