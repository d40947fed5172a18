"""What each operator of the dispatcher does to labels of channels (see `channel_trace`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.dataflow import tensors_in

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer

Vector = npt.NDArray[np.int64]
Labels = list[Vector | None]
Rule = Callable[["Tracer", Any, Any, dict[str, Any], Any], None]
ADDITIONS = (torch.ops.aten.add, torch.ops.aten.add_)


def result_of(result: Any) -> Tensor:
    """Return the tensor that an operator computed, the first of several."""
    first: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return first


def argument(func: Any, args: Any, options: dict[str, Any], name: str, default: Any = None) -> Any:
    """Return an argument by its name in the operator's schema."""
    if name in options:
        return options[name]
    for number, known in enumerate(func._schema.arguments):
        if known.name == name and number < len(args):
            return args[number]
    return default


def axes_of(t: Tracer, x: Tensor) -> Labels:
    return list(t.axes(x) or (None,) * x.ndim)


def agreed(t: Tracer, operands: Sequence[Tensor], axis: int, size: int) -> Vector | None:
    """Unite an axis of several tensors of one size; one of size 1 (or expanded) serves all."""
    full = [x for x in operands if x.ndim >= -axis and x.shape[axis] == size]
    full = [x for x in full if x.stride(axis) or t.axis(x, axis) is not None]
    vectors = [t.axis(x, axis) for x in full]
    known = next((vector for vector in vectors if vector is not None), None)
    if known is None or size == 1:
        return None
    reason = f"it meets a tensor of fixed size in {t.here()}"
    met = [t.meet(known, vector, reason) for vector in vectors if vector is not known]
    return None if any(vector is None for vector in met) else known


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


def strided(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """A change of layout alone, which pooling to one pixel makes; other views are not followed."""
    if args[0].shape == result.shape:
        same(t, func, args, options, result)
    else:
        t.unknown("as_strided", args, options)


def written(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Into a tensor of its own, or into a part of another, whose labels are not followed."""
    target, source = args[0], args[1]
    if target._is_view() or target.ndim != source.ndim:
        t.lock_all(args[:2], f"it is written into a part of a tensor in {t.here()}")
    else:
        t.keep(target, axes_of(t, source))


# --- moving values ----------------------------------------------------------------------------


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
    kept: Labels = [None] * out.ndim
    # The shape of `x` is taken from the labels where `x` itself was changed in place.
    for olds, news in matching([*x.shape], [*out.shape]):
        labelled = [axis for axis in olds if axes[axis] is not None]
        if len(labelled) > 1:
            for axis in labelled:
                t.lock(axes[axis], f"two axes of channels become one in {t.here()}")
        elif labelled:
            sizes = [x.shape[axis] if axis == labelled[0] else 1 for axis in olds]
            vector = axes[labelled[0]]
            assert vector is not None
            full = np.broadcast_to(vector.reshape(sizes), [x.shape[axis] for axis in olds])
            axis, vector = _one_axis(t, full.reshape([out.shape[new] for new in news]))
            kept[news[axis]] = vector
    t.keep(out, kept)


def _one_axis(t: Tracer, labels: Vector) -> tuple[int, Vector]:
    """Return along which axis labels vary, and how.

    Where channels are split into parts, (parts, channels of each), the parts stay, and the same
    channel goes from each.
    """
    varying = [axis for axis in range(labels.ndim) if (labels != labels.take([0], axis=axis)).any()]
    for axis in varying[:-1]:
        first = labels.take([0], axis=axis)
        t.found.unite(np.broadcast_to(first, labels.shape).ravel(), labels.ravel())
        labels = first
    last = varying[-1] if varying else labels.ndim - 1
    size = labels.shape[last]
    return last, np.moveaxis(labels, last, -1).reshape(-1, size)[0]


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


def part(t: Tracer, vector: Vector | None, taken: range) -> Vector | None:
    """Return the labels of a part of an axis.

    Equal parts of an axis, in a row or interleaved, lose the same channels; of other parts the
    sizes cannot be known to follow.
    """
    if vector is None or len(taken) == len(vector):
        return vector
    count, size = len(vector), len(taken)
    if size and count % size == 0:
        parts = count // size
        if taken.step == 1 and taken.start % size == 0:
            return t.blocks(vector, parts)
        if taken.step == parts:
            return t.blocks(vector.reshape(size, parts).T.ravel(), parts)
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
    _parts(t, x, axis, parts)


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
    _along(t, args[0], result, argument(func, args, options, "dims", ()), "rolls its channels")


def along(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Softmax, cumulative sums and the like, whose axis cannot be one of channels."""
    axis = argument(func, args, options, "dim")
    name = func._overloadpacket.__name__.strip("_")
    _along(t, args[0], result, [axis], f"takes {name} over its channels")


def _along(t: Tracer, x: Tensor, result: Any, over: Sequence[int], what: str) -> None:
    axes = axes_of(t, x)
    for axis in over or range(x.ndim):
        t.lock(axes[axis], f"{t.here()} {what}")
        axes[axis] = None
    t.keep(result_of(result), axes)


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
    _along(t, args[0], result, [args[1]], "takes channels by number")


def pixel_shuffle(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Factor² neighbouring channels become the pixels of one."""
    x, axes, parts = args[0], axes_of(t, args[0]), args[1] ** 2
    vector = axes[-3]
    if vector is not None:
        axes[-3] = t.blocks(vector.reshape(-1, parts).T.ravel(), parts)
    t.keep(result_of(result), spatial_axes(t, axes, 2, x))


def pixel_unshuffle(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, axes = args[0], axes_of(t, args[0])
    axes[-3] = None if axes[-3] is None else np.repeat(axes[-3], args[1] ** 2)
    t.keep(result_of(result), spatial_axes(t, axes, 2, x))


def channel_shuffle(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    axes, groups = axes_of(t, args[0]), args[1]
    first = t.blocks(axes[1], groups)
    axes[1] = None if first is None else np.repeat(first, groups)
    t.keep(result_of(result), axes)


def im2col(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, axes = args[0], axes_of(t, args[0])
    spatial_axes(t, axes, 2, x)
    vector = None if axes[-3] is None else np.repeat(axes[-3], prod(args[1]))
    t.keep(result_of(result), [*axes[:-3], vector, None])


def glu(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    axes = axes_of(t, args[0])
    axis = argument(func, args, options, "dim", -1)
    axes[axis] = t.blocks(axes[axis], 2)
    t.keep(result_of(result), axes)


def spatial_axes(t: Tracer, axes: Labels, count: int, x: Tensor) -> Labels:
    """Return labels after windows over the last axes, which must not be channels."""
    for axis in range(-count, 0):
        t.lock(axes[axis], f"{t.here()} has windows over its channels")
        axes[axis] = None
    return axes


def windows(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Pooling, resizing, padding by reflection: over the last axes, each channel alone."""
    name = func._overloadpacket.__name__
    count = next(number for number in (1, 2, 3) if f"{number}d" in name)
    t.keep(result_of(result), spatial_axes(t, axes_of(t, args[0]), count, args[0]))


def reduce(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """A sum leaves out what is zero; a mean, a maximum or a variance over channels does not."""
    x, out = args[0], result_of(result)
    name = func._overloadpacket.__name__
    over = argument(func, args, options, "dim")
    over = [over] if isinstance(over, int) else over
    over = {axis % x.ndim for axis in (over or range(x.ndim))} if x.ndim else set()
    axes = axes_of(t, x)
    if name not in ("sum", "linalg_vector_norm"):
        for axis in over:
            t.lock(axes[axis], f"{t.here()} takes the {name} over its channels")
    kept: Labels = [None if axis in over else vector for axis, vector in enumerate(axes)]
    if out.ndim != x.ndim:
        kept = [vector for axis, vector in enumerate(axes) if axis not in over]
    for tensor in [result] if isinstance(result, Tensor) else result:
        t.keep(tensor, kept)


# --- products ---------------------------------------------------------------------------------


def convolution(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """x (N, C, ...) with weights (O, C / groups, ...), or transposed (C, O / groups, ...)."""
    x, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    axes = axes_of(t, x)
    spatial_axes(t, axes, x.ndim - 2, x)
    enters = axes[1]
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
        if t.where.path not in t.packed:
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


# --- norms ------------------------------------------------------------------------------------


def batch_norm(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Each channel alone, with its vectors: weight, bias and running statistics."""
    x, axes = args[0], axes_of(t, args[0])
    axes[1] = _with_vectors(t, axes[1], args[1:5])
    t.keep(result_of(result), [*axes[:2], *[None] * (x.ndim - 2)])


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
        t.found.norms[t.where.path] = vector
    elif vector is not None:
        size = len(vector) // groups
        t.blocks(vector.reshape(groups, size).T.ravel(), size)
    t.keep(result_of(result), axes)


def layer_norm(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    x, shape, weight, bias = args[:4]
    t.keep(result_of(result), t.normalized(x, len(shape), weight, bias))


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(
        pointwise,
        "_prelu_kernel hardswish hardsigmoid hardtanh leaky_relu elu mish softplus threshold",
    ),
    **_named(
        same,
        "alias bernoulli clone detach empty_like lift_fresh log_sigmoid_forward native_dropout "
        "ones_like rand_like randn_like _to_copy zeros_like full_like contiguous",
    ),
    **_named(nothing, "new_zeros new_ones new_empty new_full zero fill"),
    **_named(strided, "as_strided"),
    **_named(written, "copy"),
    **_named(reshape, "view _unsafe_view reshape _reshape_alias squeeze unsqueeze"),
    **_named(permute, "permute t transpose"),
    **_named(slice_, "slice narrow"),
    **_named(split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk"),
    **_named(select, "select unbind"),
    **_named(expand, "expand"),
    **_named(repeat, "repeat"),
    **_named(flip, "flip"),
    **_named(roll, "roll"),
    **_named(along, "_softmax _log_softmax cumsum cumprod"),
    **_named(cat, "cat"),
    **_named(stack, "stack"),
    **_named(pad, "constant_pad_nd"),
    **_named(index, "index"),
    **_named(index_select, "index_select"),
    **_named(pixel_shuffle, "pixel_shuffle"),
    **_named(pixel_unshuffle, "pixel_unshuffle"),
    **_named(channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **_named(im2col, "im2col"),
    **_named(glu, "glu"),
    **_named(
        windows,
        "max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
        "avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d "
        "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
        "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d "
        "reflection_pad2d replication_pad1d replication_pad2d",
    ),
    **_named(reduce, "sum linalg_vector_norm mean amax amin max min var std var_mean prod argmax"),
    **_named(convolution, "convolution"),
    **_named(product, "mm addmm bmm baddbmm"),
    **_named(attention, "_scaled_dot_product_flash_attention_for_cpu"),
    **_named(embedding, "embedding"),
    **_named(
        batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
    ),
    **_named(group_norm, "native_group_norm"),
    **_named(layer_norm, "native_layer_norm"),
}
"""Operator (in place or not) -> its rule. Operators that torch calls pointwise need none."""
