"""Many comparisons in one table: p-values adjusted so that all verdicts hold together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's step-down procedure (Holm 1979), in their own order.

    The i-th smallest of m becomes the largest of (m - j + 1) · p_j over j <= i, and at most 1.
    Claiming those that are then at most 0.05 makes any false claim at all with a probability of
    at most 5 %, whatever the dependence between the comparisons. Raises ValueError for a value
    that is no probability.
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1, and these do not all: {list(p_values)}")
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values), 0, -1) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]
