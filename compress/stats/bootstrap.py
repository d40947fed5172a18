"""The median of ratios and its standard error, by numpy alone: the portable timer needs it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 400
"""Enough for a standard error (Efron and Tibshirani 1993, section 6.4)."""
CHUNK = 1 << 13
"""Figures that are resampled at once: numpy's cost of a call is shared among few resamples."""
T_975 = (12.71, 4.31, 3.19, 2.78, 2.58, 2.45, 2.37, 2.31, 2.27, 2.23, 2.21, 2.18, 2.17, 2.15, 2.14)
"""Student's 97.5 % quantiles, rounded up, for 1, 2, ... degrees of freedom; the last for more."""


def rough_half(error: float, count: int) -> float:
    """Return half of the 95 % interval that goes with a standard error from `count` processes."""
    return T_975[min(count - 1, len(T_975)) - 1] * error


def log_ratio(
    baseline: Sequence[np.ndarray],
    candidate: Sequence[np.ndarray],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float, int]:
    """Return the median of the logarithms of ratios, its standard error, and the processes.

    The bootstrap resamples processes, then rounds within each (Davison and Hinkley 1997, section
    3.8): what differs from process to process, such as where the weights lie in memory, does not
    average out over rounds. That counts the rounds' own noise twice, once in how processes
    differ and once within them; the variance of a bootstrap over rounds alone is subtracted, and
    is the least that is left. k processes vary too little by (k - 1) / k, which is made good.
    """
    pairs = zip(baseline, candidate, strict=True)
    logs = [np.log(np.asarray(b) / np.asarray(c)) for b, c in pairs if len(b) and len(c)]
    if not logs:
        raise ValueError("there is no round in which both were timed")
    count, longest = len(logs), max(map(len, logs))
    # Every process gets as many rounds, so that the median of all weighs them equally.
    even = np.stack([values[np.arange(longest) * len(values) // longest] for values in logs])
    centre = float(np.median(even))
    if count < 2:
        return centre, float("inf"), count
    generator = np.random.default_rng(seed)
    itself = np.arange(count)[:, None]
    whole, rounds = np.empty(resamples), np.empty(resamples)
    together = max(1, CHUNK // even.size)
    for start in range(0, resamples, together):
        part = slice(start, min(start + together, resamples))
        draws = [
            (generator.integers(count, size=(count, 1)), generator.integers(longest, size=size))
            for size in [even.shape] * (part.stop - start)
        ]
        picked, drawn = (np.stack(indices) for indices in zip(*draws, strict=True))
        whole[part] = np.median(even[picked, drawn], axis=(1, 2))
        rounds[part] = np.median(even[itself, drawn], axis=(1, 2))
    noise = rounds.var(ddof=1)
    variance = max(whole.var(ddof=1) * count / (count - 1) - noise, noise)
    return centre, float(np.sqrt(variance)), count
