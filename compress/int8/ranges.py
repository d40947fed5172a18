"""The range of an activation: which interval its 256 levels share.

Four ways propose one, and the one that reconstructs the histogram best is taken: the extremes,
percentiles, the interval that keeps most information (Migacz 2017), and intervals shrunk to least
squared error (Banner et al. 2019), where few large values are worth less than fine steps for the
many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compress.deploy.observe import Observed

LEVELS = 255
ROOM = 3.0
"""A hard-swish is x * clip(x + 3, 0, 6) / 6."""
COARSER = 1.5
"""How much coarser a range may become so that a hard-swish needs no addition."""
PERCENTILES = (99.9, 99.99, 99.999)
SHRUNK = np.linspace(0.3, 1.0, 36)
METHODS = ("best", "minmax", "percentile", "mse", "entropy")


@dataclass(frozen=True)
class Range:
    """The scale and the zero point of an unsigned 8-bit value: x ≈ scale * (q - zero)."""

    scale: float
    zero: int
    method: str = ""
    sqnr: float = float("nan")
    """Signal to quantization noise, in dB."""

    @property
    def low(self) -> float:
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        return (LEVELS - self.zero) * self.scale


FIXED_RANGES = {"Sigmoid": Range(1 / 256, 0, "fixed")}
"""Outputs whose range is known without looking; onnxruntime's own for them."""


def of_interval(low: float, high: float, method: str = "") -> Range:
    """Return the range that covers an interval and zero, which is a level of its own.

    A padded zero, and the zeros of a ReLU, must stay exactly zero (Jacob et al. 2018).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / LEVELS))
    if not scale >= np.finfo(np.float32).tiny:  # a constant zero, or as good as one
        return Range(1.0, 0, method)
    return Range(scale, int(np.clip(round(-low / scale), 0, LEVELS)), method)


def best(observed: Observed, method: str = "best") -> Range:
    """Return the range of least squared error among those that a method proposes."""
    proposed = [judged(one, observed) for one in _proposed(observed, method)]
    return max(proposed, key=lambda one: one.sqnr)


def for_hard_swish(one: Range, observed: Observed) -> Range:
    """Return a range that begins at -3, a whole number of steps below 0.

    There the integers of x are those of x + 3 as well, cut off at 0, with another zero point. What
    lies below -3 does not matter: it becomes 0. If x hardly gets below 0, its own range stays.
    """
    steps = int(ROOM * LEVELS / (one.high + ROOM))
    scale = float(np.float32(ROOM / max(steps, 1)))
    if not 0 < steps < LEVELS or scale > COARSER * one.scale:
        return one
    return judged(Range(scale, steps, one.method), observed, floor=-ROOM)


def begins_at_minus_three(one: Range) -> bool:
    return one.zero > 0 and one.scale == float(np.float32(ROOM / one.zero))


def _proposed(observed: Observed, method: str) -> Iterator[Range]:
    low, high = observed.low, observed.high
    if method in ("best", "minmax"):
        yield of_interval(low, high, "minmax")
    if method in ("best", "percentile"):
        cumulative = np.cumsum(observed.counts)
        edges = observed.centers + observed.width / 2
        for percentile in PERCENTILES if method == "best" else PERCENTILES[-1:]:
            beyond = cumulative[-1] * (1 - percentile / 100) / 2
            first = edges[np.searchsorted(cumulative, beyond)] - observed.width
            last = edges[np.searchsorted(cumulative, cumulative[-1] - beyond)]
            yield of_interval(max(low, first), min(high, last), f"percentile {percentile}")
    if method in ("best", "entropy"):
        shrunk = [of_interval(low * share, high * share, "entropy") for share in SHRUNK]
        yield min(shrunk, key=lambda one: _divergence(one, observed))
    if method in ("best", "mse"):
        for share in SHRUNK:
            yield of_interval(low * share, high * share, "mse")
            if low < 0 < high and share < 1:
                yield of_interval(low, high * share, "mse")
                yield of_interval(low * share, high, "mse")


def _divergence(one: Range, observed: Observed) -> float:
    """Return the Kullback-Leibler divergence of a histogram from what is left of it in levels.

    What a range cuts off counts where it ends; a level's share lies evenly on the bins that it
    stands for, as far as these held anything.
    """
    from scipy.special import rel_entr

    kept = observed.counts > 0
    values, counts = observed.centers[kept], observed.counts[kept].astype(float)
    if not len(values):
        return 0.0
    inside = (values >= one.low) & (values <= one.high)
    levels = np.clip(np.round(values / one.scale) + one.zero, 0, LEVELS).astype(int)
    held = np.bincount(levels, counts * inside, LEVELS + 1)
    bins = np.bincount(levels, inside, LEVELS + 1)
    spread = np.where(inside, (held / np.maximum(bins, 1))[levels], 0.0)
    if not inside.any():
        return np.inf
    whole = np.where(inside, counts, 0.0)
    first, last = np.flatnonzero(inside)[[0, -1]]
    whole[first] += counts[:first].sum()
    whole[last] += counts[last + 1 :].sum()
    return float(rel_entr(whole / whole.sum(), spread / spread.sum()).sum())


def judged(one: Range, observed: Observed, floor: float = -np.inf) -> Range:
    """Return a range with its SQNR for what was observed.

    Values below `floor` count as being there.
    """
    kept = observed.counts > 0
    values, counts = observed.centers[kept].clip(floor), observed.counts[kept]
    levels = np.clip(np.round(values / one.scale) + one.zero, 0, LEVELS)
    error = float((counts * (one.scale * (levels - one.zero) - values) ** 2).sum())
    # Within a bin, and between two levels, a value lies anywhere.
    signal = float((counts * values**2).sum())
    sqnr = 10 * np.log10(signal / error) if error > 0 and signal > 0 else 200.0
    return Range(one.scale, one.zero, one.method, float(sqnr))
