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


@dataclass(frozen=True)
class Difference:
    """A difference of accuracy between two files on the same items: after minus before.

    Counts that are no whole numbers, such as means over seeds, have all but an exact p-value.
    """

    lost: float
    gained: float
    items: int

    @property
    def value(self) -> float:
        return (self.gained - self.lost) / self.items

    @property
    def p(self) -> float:
        """The two-sided p-value of McNemar's exact test (McNemar 1947), 1 without flips.

        Given the number of flips, those that are losses are binomial with probability 1/2 if both
        files are equally good.
        """
        if self.lost == self.gained:
            return 1.0
        from scipy.stats import binomtest

        flips = self.lost + self.gained
        return float(binomtest(min(self.lost, self.gained), flips, 0.5).pvalue)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, within [-1, 1].

        Wald's with the Laplace adjustment of Bonett and Price (2012), as Fagerland, Lydersen and
        Laake (2014) recommend: with gain = (gained + 1) / (N + 2) and loss = (lost + 1) / (N + 2),
        gain - loss ± 1.96 · sqrt((gain + loss - (gain - loss)²) / (N + 2)).
        """
        middle = (self.gained - self.lost) / (self.items + 2)
        half = Z * self.error(self.items)
        return max(-1.0, middle - half), min(1.0, middle + half)

    def error(self, items: int) -> float:
        """Return the standard error of such a difference on `items` items, as in `interval`."""
        total = self.items + 2
        gain, loss = (self.gained + 1) / total, (self.lost + 1) / total
        return math.sqrt((gain + loss - (gain - loss) ** 2) / (items + 2))

    @property
    def bound(self) -> float:
        """The one-sided lower 95 % bound of the difference.

        It inverts the test: it is above -margin exactly where `noninferiority_p` is below 5 %.
        """
        return self.bound_at(Z_ONE_SIDED)

    def bound_at(self, z: float) -> float:
        """Return the one-sided lower bound that has the normal quantile `z`."""
        low, high = -1.0, self.value
        while low < (middle := (low + high) / 2) < high:
            if score(self.lost, self.gained, self.items, middle) > z:
                low = middle
            else:
                high = middle
        return low

    def interval_at(self, z: float) -> tuple[float, float]:
        """Return both one-sided bounds that have the normal quantile `z`: the tests' own."""
        return self.bound_at(z), -Difference(self.gained, self.lost, self.items).bound_at(z)

    def noninferiority_p(self, margin: float) -> float:
        """Return the one-sided p-value of the accuracy's having fallen by `margin` or more.

        `margin` is a fraction in (0, 1). With Bonett and Price's standard error, or with Tango's
        alone, the test claims up to 8.9 or 6.7 % of false equivalences; less half an item, it
        stays below the level at every size, discordance and margin tried, also at the far smaller
        levels of Holm's procedure (`benchmarks/measurement/equivalence.py`).

        For a table, adjust the p-values of all rows by `holm`, as those of differences are: then
        the chance that any row is falsely called equivalent is at most 5 %.
        """
        if not 0 < margin < 1:
            raise ValueError(f"a margin is a fraction between 0 and 1, not {margin}")
        z = score(self.lost, self.gained, self.items, -margin)
        return 0.5 * math.erfc(z / math.sqrt(2))


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """Compare two files, from whether each item was right: bool, shape (N,)."""
    lost, gained = before & ~after, ~before & after
    return Difference(int(lost.sum()), int(gained.sum()), len(before))
