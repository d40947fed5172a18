"""Medians and intervals from raw seconds. Pure functions of arrays; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """Percentiles of per-call times, in milliseconds."""

    p50_ms: float
    p90_ms: float
    iqr_ms: float


@dataclass(frozen=True)
class Ratio:
    """A speed-up (baseline / candidate) with its 95 % interval."""

    value: float
    low: float
    high: float


def spread(seconds: np.ndarray) -> Spread:
    """Summarise per-call seconds, shape (calls,)."""
    quarter, half, three, ninety = np.percentile(np.asarray(seconds) * 1e3, [25, 50, 75, 90])
    return Spread(float(half), float(ninety), float(three - quarter))


def speedup(
    baseline: Sequence[np.ndarray],
    candidate: Sequence[np.ndarray],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratio:
    """Return the median of per-round ratios, and a bootstrap interval.

    Both arguments hold one array of seconds per process, shape (rounds,), paired by round. The
    bootstrap resamples processes, then rounds within each (Davison and Hinkley 1997, section
    3.8): what differs from process to process (memory layout) does not average out over rounds.
    With three processes the interval is too narrow where processes differ much: simulated with
    5 % noise per round and 2 % per process, it held the truth 85 times in 100 (97 in 100 with
    0.5 % per process; 95 with eight processes and 2 %).
    """
    ratios = [np.asarray(b) / np.asarray(c) for b, c in zip(baseline, candidate, strict=True)]
    ratios = [values for values in ratios if len(values)]
    if not ratios:
        raise ValueError("there is no round in which both were timed")
    value = float(np.median(np.concatenate(ratios)))
    generator = np.random.default_rng(seed)
    medians = [_resample(ratios, generator) for _ in range(resamples)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(value, min(value, float(low)), max(value, float(high)))


def _resample(groups: Sequence[np.ndarray], generator: np.random.Generator) -> float:
    picked = [groups[i] for i in generator.integers(len(groups), size=len(groups))]
    drawn = [values[generator.integers(len(values), size=len(values))] for values in picked]
    return float(np.median(np.concatenate(drawn)))
