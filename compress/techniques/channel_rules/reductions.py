"""Operators over axes: windows, sums and means, softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from compress.techniques.channel_rules.common import (
    Labels,
    Rule,
    argument,
    axes_of,
    locked_along,
    named,
    result_of,
    spatial_axes,
)

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer


def windows(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Pooling, resizing, padding by reflection: over the last axes, each channel alone."""
    name = func._overloadpacket.__name__
    count = next(number for number in (1, 2, 3) if f"{number}d" in name)
    t.keep(result_of(result), spatial_axes(t, axes_of(t, args[0]), count, args[0]))


RESPONSE_NORMS = ("GlobalResponseNorm", "GRN")
"""Layers that divide by the mean over channels of their norms (Woo et al. 2023, section 3)."""


def reduce(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """A sum leaves out what is zero; a mean, a maximum or a variance over channels does not.

    That of a norm is taken over the channels that are kept, as those of all norms.
    """
    x, out = args[0], result_of(result)
    name = func._overloadpacket.__name__
    over = argument(func, args, options, "dim")
    over = [over] if isinstance(over, int) else over
    over = {axis % x.ndim for axis in (over or range(x.ndim))} if x.ndim else set()
    axes = axes_of(t, x)
    if name not in ("sum", "linalg_vector_norm"):
        response = name == "mean" and type(t.layer()).__name__ in RESPONSE_NORMS
        for axis in over:
            if response and axes[axis] is not None:
                t.takes_statistics(axes[axis])
                continue
            t.lock(axes[axis], f"{t.here()} takes the {name} over its channels")
    kept: Labels = [None if axis in over else vector for axis, vector in enumerate(axes)]
    if out.ndim != x.ndim:
        kept = [vector for axis, vector in enumerate(axes) if axis not in over]
    for tensor in [result] if isinstance(result, Tensor) else result:
        t.keep(tensor, kept)


def along(t: Tracer, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
    """Softmax, cumulative sums and the like, whose axis cannot be one of channels."""
    axis = argument(func, args, options, "dim")
    name = func._overloadpacket.__name__.strip("_")
    locked_along(t, args[0], result, [axis], f"takes {name} over its channels")


RULES: dict[str, Rule] = {
    **named(
        windows,
        "max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
        "avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d "
        "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
        "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d "
        "reflection_pad2d replication_pad1d replication_pad2d",
    ),
    **named(reduce, "sum linalg_vector_norm mean amax amin max min var std var_mean prod argmax"),
    **named(along, "_softmax _log_softmax cumsum cumprod"),
}
