"""Speed-ups from raw seconds: the median of ratios, its interval, and its test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.stats.bootstrap import RESAMPLES, log_ratio
from compress.stats.levels import student


@dataclass(frozen=True)
class Ratio:
    """A speed-up (baseline / candidate) with its 95 % interval.

    `error` is the standard error of its logarithm, from `processes` processes.
    """

    value: float
    low: float
    high: float
    error: float
    processes: int

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """From `low` to `high`; None where one process alone leaves them open."""
        return (self.low, self.high) if self.processes > 1 else (None, None)


def speedup(
    baseline: Sequence[np.ndarray],
    candidate: Sequence[np.ndarray],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratio:
    """Return the median of per-round ratios, and a bootstrap interval.

    Both arguments hold one array of seconds per process, shape (rounds,), paired by round; every
    process weighs the same. The interval is value · exp(± t · error), with Student's t for the
    number of processes less one (Hesterberg 2015, section 5.3) and the standard error of
    `log_ratio`. With a single process it is infinitely wide.

    Raises ValueError if there is no round in which both were timed.
    """
    centre, error, count = log_ratio(baseline, candidate, seed, resamples)
    if count < 2:
        return Ratio(float(np.exp(centre)), 0.0, float("inf"), float("inf"), count)
    half = student(count - 1) * error
    low, value, high = np.exp([centre - half, centre, centre + half])
    return Ratio(float(value), float(low), float(high), error, count)


def minimum_effect_p(ratio: Ratio, margin: float) -> float:
    """Return the two-sided p of a speed-up's being within 1 / (1 + margin) and 1 + margin.

    The largest probability, over all true values within, of an estimate at least as far from 1 as
    this one, on either side (a minimum-effect test; Murphy and Myors 1999). It is largest where
    the true value lies at the margin, and grows with the margin: with none, it is Student's usual
    p, so what is claimed has an interval that leaves out 1.
    """
    size, least = abs(np.log(ratio.value)), np.log1p(margin)
    if size <= least or ratio.processes < 2:
        return 1.0
    if ratio.error == 0:
        return 0.0
    from scipy.stats import t

    beyond = np.array([size - least, size + least]) / ratio.error
    return float(min(1.0, t.sf(beyond, ratio.processes - 1).sum()))
