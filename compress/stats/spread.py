"""How long calls take, and how far they lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NOISY = 0.2
"""Calls are noisy if half of them lie further apart than this share of their median."""


@dataclass(frozen=True)
class Spread:
    """Percentiles of per-call times, in milliseconds."""

    p50_ms: float
    p90_ms: float
    iqr_ms: float


def spread(seconds: np.ndarray) -> Spread:
    """Summarise per-call seconds, shape (calls,)."""
    quarter, half, three, ninety = np.percentile(np.asarray(seconds) * 1e3, [25, 50, 75, 90])
    return Spread(float(half), float(ninety), float(three - quarter))


def is_noisy(median: float | None, iqr: float | None) -> bool:
    return median is not None and (iqr or 0) > NOISY * median
