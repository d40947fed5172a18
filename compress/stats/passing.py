"""What the test of non-inferiority will say of a file on other items, by its answers to some.

Of the items seen so many were lost and so many gained. What is not known of the others is how many
of them will flip, and how many flips are losses; both are drawn from what the items seen leave
possible: the posterior of the shares after one loss and one gain more than were seen, which has
the means and the standard error of Bonett and Price's interval (`pairs.Difference.error`).
"""

from __future__ import annotations

import functools
import math

import numpy as np

from compress.stats.pairs import score

BLOCKS = 192
"""Numbers of flips, at most, that stand for all that may occur."""
NODES = 64
"""Shares of losses among flips that stand for all, each as likely as any other."""
DEVIATIONS = 12
"""Standard deviations about the mean within which the number of flips lies."""
HALVINGS = 40


def passing_losses(flips: np.ndarray, items: int, margin: float, z: float) -> np.ndarray:
    """Return the most losses among so many flips with which the test passes; -1 where none does.

    `z` is the normal quantile of its level, above 0: the score must reach it.
    """
    low, high = np.full(len(flips), -1), flips + 1
    while (left := high - low > 1).any():
        middle = np.maximum((low + high) // 2, 0)  # -1 of what is found already
        passes = score(middle, flips - middle, items, -margin) >= z  # type: ignore[arg-type]
        low, high = np.where(left & passes, middle, low), np.where(left & ~passes, middle, high)
    return low


@functools.lru_cache(maxsize=1 << 14)
def passing_chance(
    lost: float, gained: float, seen: int, items: int, margin: float, z: float
) -> float:
    """Return the probability that the test passes on `items` others, by those `seen`."""
    from scipy.special import bdtr, betaincinv

    flips, weights = _flips(lost + gained, seen, items)
    most = passing_losses(flips, items, margin, z)
    shares = betaincinv(lost + 1, gained + 1, (np.arange(NODES) + 0.5) / NODES)
    passes = bdtr(np.maximum(most, 0)[:, None], flips[:, None], shares).mean(1)
    return float(weights @ np.where(most < 0, 0.0, passes))


def _flips(flipped: float, seen: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of flips among `items`, and the probabilities of each (beta-binomial)."""
    from scipy.special import betaln, gammaln

    flip, stay = flipped + 2, max(seen - flipped, 0.5)
    share, total = flip / (flip + stay), flip + stay
    spread = math.sqrt(items * share * (1 - share) * (total + items) / (total + 1))
    least = max(0, math.floor(items * share - DEVIATIONS * spread))
    most = min(items, math.ceil(items * share + DEVIATIONS * spread))
    counts = np.arange(least, most + 1)
    logs = betaln(counts + flip, items - counts + stay)
    logs -= gammaln(counts + 1) + gammaln(items - counts + 1)
    weights = np.exp(logs - logs.max())
    # Odd, so that not all blocks have even numbers of flips in the middle: a difference moves in
    # steps of 2 where these are given.
    width = math.ceil(len(counts) / BLOCKS) | 1
    starts = np.arange(0, len(counts), width)
    middles = counts[np.minimum(starts + width // 2, len(counts) - 1)]
    return middles, np.add.reduceat(weights, starts) / weights.sum()


@functools.lru_cache(maxsize=1 << 14)
def needed_change(
    lost: float, gained: float, seen: int, items: int, margin: float, z: float
) -> float:
    """Return the change of accuracy on `items` others with which the test passes.

    Among as many flips as are to be expected. A change that takes more of them than these is the
    formula's, with losses below 0: no file comes by it, but of two the nearer one has the smaller.
    """
    flips = items * (lost + gained + 2) / (seen + 2)
    low, high = -margin, 1.0
    for _ in range(HALVINGS):
        change = (low + high) / 2
        half = items * change / 2
        passes = score(flips / 2 - half, flips / 2 + half, items, -margin) >= z
        low, high = (low, change) if passes else (change, high)
    return high
