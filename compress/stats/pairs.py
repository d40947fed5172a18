"""Two files' answers to the same test items: is one better, is one worse, are they equivalent?

All that matters is how many items were lost (right before, wrong after) and gained (the reverse).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compress.stats.levels import Z_ONE_SIDED, Z

HALF_AN_ITEM = 0.5
"""The continuity correction of the test of non-inferiority: gained - lost moves in steps of 1."""


def flips(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Return how many items were lost and gained, from whether each was right: bool, shape (N,)."""
    return int((before & ~after).sum()), int((~before & after).sum())


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of equal answers, right or wrong, of two arrays of shape (N,)."""
    return float((one == other).mean())


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947), 1 without flips.

    Given the number of flips, those that are losses are binomial with probability 1/2 if both
    files are equally good.
    """
    if lost == gained:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(lost, gained), lost + gained, 0.5).pvalue)


def paired_interval(lost: int, gained: int, items: int) -> tuple[float, float]:
    """Return the 95 % interval of accuracy after minus accuracy before, within [-1, 1].

    Wald's with the Laplace adjustment of Bonett and Price (2012), as Fagerland, Lydersen and
    Laake (2014) recommend: with gain = (gained + 1) / (N + 2) and loss = (lost + 1) / (N + 2),
    gain - loss ± 1.96 · sqrt((gain + loss - (gain - loss)²) / (N + 2)).
    """
    total = items + 2
    gain, loss = (gained + 1) / total, (lost + 1) / total
    half = Z * math.sqrt((gain + loss - (gain - loss) ** 2) / total)
    return max(-1.0, gain - loss - half), min(1.0, gain - loss + half)


def constrained_error(lost: float, gained: float, items: int, difference: float) -> float:
    """Return the standard error of gained - lost in the likeliest tables with a given difference.

    Tango 1998, eq. 5 and 6, for -1 < difference < 1; 0 if that is 0 and nothing flipped. Works on
    arrays of counts too.
    """
    b = -(lost + gained) + (2 * items - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    root = np.sqrt(np.maximum(b * b - 8 * items * c, 0.0))
    loss = (root - b) / (4 * items)  # the likeliest share of losses
    error: float = np.sqrt(items * (2 * loss + difference * (1 - difference)))
    return error


def score(lost: float, gained: float, items: int, difference: float) -> float:
    """Return how many standard errors the observed difference lies above a supposed one.

    Tango's statistic (1998), less half an item for continuity.
    """
    distance = gained - lost - items * difference - HALF_AN_ITEM
    return distance / constrained_error(lost, gained, items, difference)


def noninferiority_p(lost: float, gained: float, items: int, margin: float) -> float:
    """Return the one-sided p-value of the accuracy's having fallen by `margin` or more.

    `margin` is a fraction in (0, 1). With Bonett and Price's standard error, or with Tango's alone,
    the test claims up to 8.9 or 6.7 % of false equivalences; less half an item, it stays
    below the level at every size, discordance and margin tried, also at the far smaller levels of
    Holm's procedure (`benchmarks/measurement/equivalence.py`).

    For a table, adjust the p-values of all rows by `holm`, as those of differences are: then the
    chance that any row is falsely called equivalent is at most 5 %.
    """
    if not 0 < margin < 1:
        raise ValueError(f"a margin is a fraction between 0 and 1, not {margin}")
    return 0.5 * math.erfc(score(lost, gained, items, -margin) / math.sqrt(2))


def lower_bound(lost: float, gained: float, items: int) -> float:
    """Return the one-sided lower 95 % bound of the difference.

    It inverts the test: it is above -margin exactly where `noninferiority_p` is below 5 %.
    """
    low, high = -1.0, (gained - lost) / items
    while low < (middle := (low + high) / 2) < high:
        if score(lost, gained, items, middle) > Z_ONE_SIDED:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Difference:
    """A difference of accuracy between two files on the same items: after minus before."""

    lost: int
    gained: int
    items: int

    @property
    def value(self) -> float:
        return (self.gained - self.lost) / self.items

    @property
    def interval(self) -> tuple[float, float]:
        return paired_interval(self.lost, self.gained, self.items)

    @property
    def p(self) -> float:
        return mcnemar(self.lost, self.gained)

    @property
    def bound(self) -> float:
        return lower_bound(self.lost, self.gained, self.items)

    def noninferiority_p(self, margin: float) -> float:
        return noninferiority_p(self.lost, self.gained, self.items, margin)


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """Compare two files, from whether each item was right: bool, shape (N,)."""
    return Difference(*flips(before, after), len(before))
