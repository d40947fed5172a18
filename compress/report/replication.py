"""What several seeds say together: the seed is the unit of replication. Pure arithmetic."""

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

    The interval is Student's, within [-1, 1], and p that of the paired t-test. Differences that
    are equal in all seeds have no t. They are what a deterministic chain gives, whose seeds are
    one replication and not several: p is the largest of the seeds' own `ps` and the interval
    spans their `intervals` (low, high), both over test items.
    """
    from scipy.stats import ttest_1samp

    if max(differences) - min(differences) <= EQUAL:
        return Mean(differences[0], *envelope(intervals), max(ps))
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(LEVEL)
    value = math.fsum(differences) / len(differences)
    return Mean(value, max(-1.0, float(low)), min(1.0, float(high)), float(test.pvalue))


def mean_ratio(ratios: Sequence[float], intervals: Sequence[Interval]) -> Mean:
    """Return the geometric mean of positive ratios.

    Its interval is Student's on the logarithms with three seeds or more; with fewer, or if all
    are equal, it spans the seeds' own `intervals`. There is no p: verdicts are the timing's.
    """
    from scipy.stats import t

    logs = [math.log(ratio) for ratio in ratios]
    centre = math.fsum(logs) / len(logs)
    if len(logs) < 3 or max(logs) - min(logs) <= EQUAL:
        return Mean(math.exp(centre), *envelope(intervals), None)
    half = float(t.ppf((1 + LEVEL) / 2, len(logs) - 1)) * deviation(logs) / math.sqrt(len(logs))
    return Mean(math.exp(centre), math.exp(centre - half), math.exp(centre + half), None)


def envelope(intervals: Sequence[Interval]) -> Interval:
    """Return from the lowest to the highest end; (None, None) if an end is missing."""
    lows = [low for low, _ in intervals if low is not None]
    highs = [high for _, high in intervals if high is not None]
    if not intervals or len(lows) < len(intervals) or len(highs) < len(intervals):
        return None, None
    return min(lows), max(highs)
