"""int8 weights per output channel that no processor's kernels saturate.

The scale of each channel is the finest at which no two neighbouring weights saturate
(`deploy.saturation`), so that a processor without VNNI gives the same answers as all others. That
costs most channels a third of a bit, not the whole bit that 7-bit weights cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress.deploy.saturation import PAIR, largest_pair

MOST = 127
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


def scales(weight: np.ndarray, axis: int, portable: bool, least: np.ndarray) -> np.ndarray:
    """Return the finest scale of each channel, at least `least`, as float32.

    `portable` excludes saturation. A channel of zeros gets a scale that its bias fits.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    found = np.abs(rows).max(1) / MOST
    if portable:
        # Two roundings add at most one step to a pair.
        found = np.maximum(found, largest_pair(weight, axis) / (PAIR - 1))
    found = np.maximum(found, least)
    # Weights so small that no scale of theirs is a number of full precision are zeros.
    return np.where(found >= np.finfo(np.float32).tiny, found, 1.0).astype(np.float32)


def rounded(weight: np.ndarray, axis: int, scale: np.ndarray) -> Weight:
    """Return the nearest integers."""
    integers = np.round(weight / along(scale, axis, weight.ndim)).clip(-MOST, MOST)
    return Weight(integers.astype(np.int8), scale, axis)


def least_scale(bias: np.ndarray | None, input_scale: float, channels: int) -> np.ndarray:
    """Return the scale of the weights below which the bias of a channel would not fit."""
    if bias is None:
        return np.zeros(channels)
    return np.abs(bias.astype(np.float64)) / (input_scale * BIAS)
