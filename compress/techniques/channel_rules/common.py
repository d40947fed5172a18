"""What rules have in common: labels of axes, arguments by name, axes that must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from compress.techniques.channel_trace import Tracer

Vector = npt.NDArray[np.int64]
Labels = list[Vector | None]
Rule = Callable[["Tracer", Any, Any, dict[str, Any], Any], None]


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


def spatial_axes(t: Tracer, axes: Labels, count: int, x: Tensor) -> Labels:
    """Return labels after windows over the last axes, which must not be channels."""
    for axis in range(-count, 0):
        t.lock(axes[axis], f"{t.here()} has windows over its channels")
        axes[axis] = None
    return axes


def locked_along(t: Tracer, x: Tensor, result: Any, over: Sequence[int], what: str) -> None:
    axes = axes_of(t, x)
    for axis in over or range(x.ndim):
        t.lock(axes[axis], f"{t.here()} {what}")
        axes[axis] = None
    t.keep(result_of(result), axes)


def named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)
