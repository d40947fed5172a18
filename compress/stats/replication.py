"""Several seeds together: the seed is what is replicated.

All seeds answer the same test items and are timed beside the same baseline. What these share does
not show in how the seeds scatter, so no interval is narrower than a single seed's own, on average:
the standard deviation of a mean is at most the mean of the standard deviations, however the parts
depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from compress.stats.levels import ALPHA, Z, student
from compress.stats.pairs import Difference

EQUAL = 1e-9
"""Accuracies are multiples of one item's share: what differs by less differs by rounding."""

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
    centre = fmean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def mean_difference(
    differences: Sequence[float], intervals: Sequence[Interval], ps: Sequence[float]
) -> Mean:
    """Return the mean of the seeds' paired differences (fractions), tested against 0.

    A difference must hold for other seeds and for other test items, so p is the larger one of the
    paired t-test's over seeds and a z-test's whose standard error is the mean of the seeds' own,
    read from their `intervals` (low, high) over test items. The interval is the wider one of the
    two, within [-1, 1].

    Differences that are equal in all seeds have no t, nor has a single one. They are what a
    deterministic chain gives, whose seeds are one replication and not several: p is the largest of
    the seeds' own `ps` and the interval spans theirs.
    """
    if _alike(differences):
        return Mean(differences[0], *envelope(intervals), max(ps))
    from scipy.stats import norm, ttest_1samp

    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(1 - ALPHA)
    value = fmean(differences)
    shared = _mean_half(intervals)
    error = shared / Z
    by_items = 2 * float(norm.sf(abs(value) / error)) if error else 0.0
    low, high = min(float(low), value - shared), max(float(high), value + shared)
    return Mean(value, max(-1.0, low), min(1.0, high), max(float(test.pvalue), by_items))


def mean_noninferiority_p(differences: Sequence[Difference], margin: float) -> float:
    """Return the one-sided p-value of the mean accuracy's having fallen by `margin` or more.

    As in `mean_difference`, it must hold for other seeds on these items, and for these seeds on
    other items: p is the larger one of the t-test's over seeds and of `noninferiority_p` for the
    mean numbers of items lost and gained. (A difference of such a table varies no less than the
    mean difference, however the seeds' answers depend on one another.) Of differences that are
    equal in all seeds it is the largest of their own. All are on the same items.
    """
    values = [one.value for one in differences]
    if _alike(values):
        return max(one.noninferiority_p(margin) for one in differences)
    from scipy.stats import t

    error = deviation(values) / math.sqrt(len(values))
    by_seeds = float(t.sf((fmean(values) + margin) / error, len(values) - 1))
    return max(by_seeds, _mean_counts(differences).noninferiority_p(margin))


def mean_lower_bound(differences: Sequence[Difference]) -> float:
    """Return the one-sided lower 95 % bound of the mean difference, within [-1, 1].

    It inverts the test: it is above -margin exactly where `mean_noninferiority_p` is below 5 %.
    """
    values = [one.value for one in differences]
    if _alike(values):
        return min(one.bound for one in differences)
    below = student(len(values) - 1, ALPHA) * deviation(values) / math.sqrt(len(values))
    return max(-1.0, min(fmean(values) - below, _mean_counts(differences).bound))


def _mean_counts(differences: Sequence[Difference]) -> Difference:
    (items,) = {one.items for one in differences}
    lost, gained = fmean(one.lost for one in differences), fmean(one.gained for one in differences)
    return Difference(lost, gained, items)


def mean_ratio(ratios: Sequence[float], intervals: Sequence[Interval]) -> Mean:
    """Return the geometric mean of positive ratios.

    Its interval is Student's on the logarithms with three seeds or more, and no narrower than
    the seeds' own on average; with fewer seeds, or if all are equal, it spans the seeds' own
    `intervals`. There is no p: verdicts are the timing's.
    """
    logs = [math.log(ratio) for ratio in ratios]
    centre = fmean(logs)
    if len(logs) < 3 or _alike(logs):
        return Mean(math.exp(centre), *envelope(intervals), None)
    from scipy.stats import t

    half = float(t.ppf(1 - ALPHA / 2, len(logs) - 1)) * deviation(logs) / math.sqrt(len(logs))
    known = [(low, high) for low, high in intervals if low and high]
    half = max(half, _mean_half([(math.log(low), math.log(high)) for low, high in known]))
    return Mean(math.exp(centre), math.exp(centre - half), math.exp(centre + half), None)


def _mean_half(intervals: Sequence[Interval]) -> float:
    """Return the mean half width of the intervals that have both ends, 0 if none has."""
    halves = [(b - a) / 2 for a, b in intervals if a is not None and b is not None]
    return fmean(halves) if halves else 0.0


def _alike(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= EQUAL


def envelope(intervals: Sequence[Interval]) -> Interval:
    """Return from the lowest to the highest end; (None, None) if an end is missing."""
    ends = [(low, high) for low, high in intervals if low is not None and high is not None]
    if not ends or len(ends) < len(intervals):
        return None, None
    return min(low for low, _ in ends), max(high for _, high in ends)
