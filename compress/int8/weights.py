"""int8 weights per output channel that no processor's kernels saturate.

The scale of each channel is the finest at which no two neighbouring weights saturate
(`deploy.saturation`), so that a processor without VNNI gives the same answers as all others. That
costs most channels a third of a bit, not the whole bit that 7-bit weights cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress.deploy.saturation import PAIR, largest_pair

BITS = 8
ON_GRID = 1e-3
"""Steps that a weight on a grid may lie beside it: it was multiplied by a batch norm's factor."""
BIAS = 2.0**30
"""The largest bias in steps. It is added in 32 bits, and the products need room."""


@dataclass(frozen=True)
class Weight:
    """Integers and the scale of each output channel, along `axis`."""

    integers: np.ndarray
    scale: np.ndarray
    axis: int

    @property
    def values(self) -> np.ndarray:
        return self.integers * along(self.scale, self.axis, self.integers.ndim)


def along(vector: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Return a vector shaped so that it multiplies along an axis."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def most(bits: int = BITS) -> int:
    """Return the largest integer of a weight; the smallest is as far below zero."""
    return int(2 ** (bits - 1) - 1)


def scales(
    weight: np.ndarray, axis: int, portable: bool, least: np.ndarray, bits: int = BITS
) -> np.ndarray:
    """Return the finest scale of each channel, at least `least`, as float32.

    `portable` excludes saturation. A channel of zeros gets a scale that its bias fits.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    found = np.abs(rows).max(1) / most(bits)
    if portable:
        # Two roundings add at most one step to a pair.
        found = np.maximum(found, largest_pair(weight, axis) / (PAIR - 1))
    found = np.maximum(found, least)
    # Weights so small that no scale of theirs is a number of full precision are zeros.
    return np.where(found >= np.finfo(np.float32).tiny, found, 1.0).astype(np.float32)


def kept_grids(
    weight: np.ndarray, axis: int, portable: bool, least: np.ndarray, bits: int, other: np.ndarray
) -> np.ndarray:
    """Return the scale of the grid that each channel lies on; of a channel on none, `other`.

    A grid is one that a training left: all weights are whole multiples of its scale, the largest
    `most(bits)` at most, and none saturate if `portable`.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    top = np.abs(rows).max(1)
    found, left = other.copy(), top > 0
    for levels in range(most(bits), 0, -1):
        if not left.any():
            break
        scale = top[left] / levels
        steps = rows[left] / scale[:, None]
        whole = np.round(steps)
        fits = (np.abs(steps - whole).max(1) < ON_GRID) & (scale >= least[left])
        if portable:
            fits &= largest_pair(whole.reshape(left.sum(), *_others(weight, axis)), 0) <= PAIR
        index = np.flatnonzero(left)[fits]
        found[index] = scale[fits]
        left[index] = False
    return found.astype(np.float32)


def _others(weight: np.ndarray, axis: int) -> tuple[int, ...]:
    return tuple(size for i, size in enumerate(weight.shape) if i != axis)


def rounded(weight: np.ndarray, axis: int, scale: np.ndarray, bits: int = BITS) -> Weight:
    """Return the nearest integers."""
    end = most(bits)
    integers = np.round(weight / along(scale, axis, weight.ndim)).clip(-end, end)
    return Weight(integers.astype(np.int8), scale, axis)


def least_scale(bias: np.ndarray | None, input_scale: float, channels: int) -> np.ndarray:
    """Return the scale of the weights below which the bias of a channel would not fit."""
    if bias is None:
        return np.zeros(channels)
    return np.abs(bias.astype(np.float64)) / (input_scale * BIAS)
