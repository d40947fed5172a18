"""The level of every test and interval, and the quantiles that go with it."""

from __future__ import annotations

ALPHA = 0.05
"""Of all the verdicts on one question in a table, the chance that any is false."""
Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval (ALPHA / 2 above it)."""
Z_ONE_SIDED = 1.6448536269514722
"""The normal quantile of a one-sided 95 % bound (ALPHA above it)."""


def student(freedom: int, tail: float = ALPHA / 2) -> float:
    """Return the quantile of Student's t with a share of `tail` above it."""
    from scipy.stats import t

    return float(t.isf(tail, freedom))
