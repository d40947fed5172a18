"""Operators that take tensors apart or put them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from compress.techniques.channel_rules.common import (
    Labels,
    Rule,
    Vector,
    agreed,
    argument,
    axes_of,
    locked_along,
    named,
    result_of,
)

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer


def part(t: Tracer, vector: Vector | None, taken: range) -> Vector | None:
    """Return the labels of a part of an axis.

    Equal parts of an axis, in a row or interleaved, lose the same channels; of others the sizes
    follow only where the layer keeps the number at which they begin or end.
    """
    if vector is None or len(taken) == len(vector):
        return vector
    count, size = len(vector), len(taken)
    if size and count % size == 0:
        parts, found = count // size, None
        if taken.step == 1 and taken.start % size == 0:
            found = t.blocks(vector, parts)
        elif taken.step == parts:
            found = t.blocks(vector.reshape(size, parts).T.ravel(), parts)
        if found is not None:
            t.sized(found)
            return found
    if size and taken.step == 1 and _numbered(t, vector, taken):
        return vector[taken.start : taken.stop]
    return _unequal(t, vector)


def _numbered(t: Tracer, vector: Vector, taken: range) -> bool:
    """Whether the layer keeps the number at which a first part ends, or a last one begins."""
    if taken.start == 0:
        return t.sized(vector[: taken.stop])
    return taken.stop == len(vector) and t.sized(vector[: taken.start])


def _unequal(t: Tracer, vector: Vector) -> Vector | None:
    t.lock(vector, f"{t.here()} takes a part of its channels that is not one of equal parts")
    return None


def slice_(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x = args[0]
    axis = argument(func, args, options, "dim", 0) % x.ndim
    start, end = (argument(func, args, options, key) for key in ("start", "end"))
    step: int = argument(func, args, options, "step", 1)
    _parts(t, x, axis, [(result, range(*slice(start, end, step).indices(x.shape[axis])))])


def split(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x = args[0]
    axis, first, parts = argument(func, args, options, "dim", 0) % x.ndim, 0, []
    for out in result:
        parts.append((out, range(first, first + out.shape[axis])))
        first += out.shape[axis]
    if len({len(taken) for _, taken in parts}) == 1:
        _parts(t, x, axis, parts)
        return
    axes = axes_of(t, x)
    labels = axes[axis]
    for out, taken in parts:
        own = None if labels is None else labels[taken.start : taken.stop]
        if labels is not None and not t.sized(own):
            own = _unequal(t, labels)
        t.keep(out, [*axes[:axis], own, *axes[axis + 1 :]])


def _parts(t: Tracer, x: Tensor, axis: int, parts: Sequence[tuple[Tensor, range]]) -> None:
    axes = axes_of(t, x)
    for out, taken in parts:
        t.keep(out, [*axes[:axis], part(t, axes[axis], taken), *axes[axis + 1 :]])


def select(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x = args[0]
    axis = argument(func, args, options, "dim", 0) % x.ndim
    axes = axes_of(t, x)
    t.lock(axes.pop(axis), f"{t.here()} takes single channels by number")
    for out in [result] if isinstance(result, Tensor) else result:
        t.keep(out, axes)


def index(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Advanced indexing by one index, whose axis stays as it is."""
    x, numbers = args[0], args[1]
    used = [axis for axis, number in enumerate(numbers) if number is not None]
    axes = axes_of(t, x)
    for axis in used:
        t.lock(axes[axis], f"{t.here()} takes channels by number")
    if len(used) != 1:
        t.lock_all(x, f"{t.here()} takes values by several indices")
        return
    axis = used[0]
    t.keep(result_of(result), [*axes[:axis], *[None] * numbers[axis].ndim, *axes[axis + 1 :]])


def index_select(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    locked_along(t, args[0], result, [args[1]], "takes channels by number")


def cat(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    out = result_of(result)
    parts = [x for x in args[0] if x.ndim == out.ndim]
    along_axis = argument(func, args, options, "dim", 0) % out.ndim - out.ndim
    axes: Labels = []
    for axis in range(-out.ndim, 0):
        if axis != along_axis:
            axes.append(agreed(t, parts, axis, out.shape[axis]))
            continue
        vectors = [t.axis(x, axis) for x in parts]
        filled = [
            np.zeros(x.shape[axis], dtype=np.int64) if vector is None else vector
            for x, vector in zip(parts, vectors, strict=True)
        ]
        axes.append(np.concatenate(filled) if any(v is not None for v in vectors) else None)
    t.keep(out, axes)


def stack(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    out, parts = result_of(result), args[0]
    axis = argument(func, args, options, "dim", 0) % out.ndim
    axes = [agreed(t, parts, at, parts[0].shape[at]) for at in range(1 - out.ndim, 0)]
    t.keep(out, [*axes[:axis], None, *axes[axis:]])


def pad(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Channels of zeros get labels of their own: what pads must follow (`channel_cut`)."""
    x, widths, axes = args[0], args[1], axes_of(t, args[0])
    for number in range(len(widths) // 2):
        axis, (before, after) = x.ndim - 1 - number, widths[2 * number : 2 * number + 2]
        vector = axes[axis]
        if vector is None or before == after == 0:
            continue
        if min(before, after) < 0 or argument(func, args, options, "value", 0):
            t.lock(vector, f"{t.here()} pads its channels")
            axes[axis] = None
        else:
            ends = t.found.fresh(before), t.found.fresh(after)
            for known, new in zip(t.found.padded.get(t.where.path, ()), ends, strict=False):
                t.found.unite(known, new)
            t.found.padded.setdefault(t.where.path, ends)
            axes[axis] = np.concatenate([ends[0], vector, ends[1]])
    t.keep(result_of(result), axes)


RULES: dict[str, Rule] = {
    **named(slice_, "slice narrow"),
    **named(split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk"),
    **named(select, "select unbind"),
    **named(index, "index"),
    **named(index_select, "index_select"),
    **named(cat, "cat"),
    **named(stack, "stack"),
    **named(pad, "constant_pad_nd"),
}
