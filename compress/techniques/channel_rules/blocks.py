"""Operators for which channels lie in blocks: shuffles, gates, unfolding."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.techniques.channel_rules.common import (
    Rule,
    argument,
    axes_of,
    named,
    result_of,
    spatial_axes,
)

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer


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


RULES: dict[str, Rule] = {
    **named(pixel_shuffle, "pixel_shuffle"),
    **named(pixel_unshuffle, "pixel_unshuffle"),
    **named(channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **named(im2col, "im2col"),
    **named(glu, "glu"),
}
