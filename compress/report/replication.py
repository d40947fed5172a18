"""What several seeds say together: the seed is what is replicated. Pure arithmetic.

All seeds answer the same test items and are timed beside the same baseline. What these share does
not show in how the seeds scatter, so no interval is narrower than a single seed's own, on average:
the standard deviation of a mean is at most the mean of the standard deviations, however the parts
depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

EQUAL = 1e-9
"""Accuracies are multiples of one item's share: what differs by less differs by rounding."""
LEVEL = 0.95

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds with its 95 % interval (None where there is none) and p-value."""

    value: float
    low: float | None
    high: float | None
    p: float | None


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample, its sum of squares divided by n - 1."""
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def mean_difference(
    differences: Sequence[float], intervals: Sequence[Interval], ps: Sequence[float]
) -> Mean:
    """Return the mean of two or more seeds' paired differences (fractions), tested against 0.

    A difference must hold for other seeds and for other test items, so p is the larger one of the
    paired t-test's over seeds and a z-test's whose standard error is the mean of the seeds' own,
    read from their `intervals` (low, high) over test items. The interval is the wider one of the
    two, within [-1, 1].

    Differences that are equal in all seeds have no t. They are what a deterministic chain gives,
    whose seeds are one replication and not several: p is the largest of the seeds' own `ps` and
    the interval spans theirs.
    """
    from scipy.stats import norm, ttest_1samp

    if max(differences) - min(differences) <= EQUAL:
        return Mean(differences[0], *envelope(intervals), max(ps))
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(LEVEL)
    value = math.fsum(differences) / len(differences)
    shared = _mean_half(intervals)
    error = shared / float(norm.ppf((1 + LEVEL) / 2))
    by_items = 2 * float(norm.sf(abs(value) / error)) if error else 0.0
    low, high = min(float(low), value - shared), max(float(high), value + shared)
    return Mean(value, max(-1.0, low), min(1.0, high), max(float(test.pvalue), by_items))


def mean_ratio(ratios: Sequence[float], intervals: Sequence[Interval]) -> Mean:
    """Return the geometric mean of positive ratios.

    Its interval is Student's on the logarithms with three seeds or more, and no narrower than
    the seeds' own on average; with fewer seeds, or if all are equal, it spans the seeds' own
    `intervals`. There is no p: verdicts are the timing's.
    """
    from scipy.stats import t

    logs = [math.log(ratio) for ratio in ratios]
    centre = math.fsum(logs) / len(logs)
    if len(logs) < 3 or max(logs) - min(logs) <= EQUAL:
        return Mean(math.exp(centre), *envelope(intervals), None)
    half = float(t.ppf((1 + LEVEL) / 2, len(logs) - 1)) * deviation(logs) / math.sqrt(len(logs))
    known = [(low, high) for low, high in intervals if low and high]
    half = max(half, _mean_half([(math.log(low), math.log(high)) for low, high in known]))
    return Mean(math.exp(centre), math.exp(centre - half), math.exp(centre + half), None)


def _mean_half(intervals: Sequence[Interval]) -> float:
    """Return the mean half width of the intervals that have both ends, 0 if none has."""
    halves = [(b - a) / 2 for a, b in intervals if a is not None and b is not None]
    return math.fsum(halves) / len(halves) if halves else 0.0


def envelope(intervals: Sequence[Interval]) -> Interval:
    """Return from the lowest to the highest end; (None, None) if an end is missing."""
    lows = [low for low, _ in intervals if low is not None]
    highs = [high for _, high in intervals if high is not None]
    if not intervals or len(lows) < len(intervals) or len(highs) < len(intervals):
        return None, None
    return min(lows), max(highs)
