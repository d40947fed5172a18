"""Verdicts in words. Each function judges all rows of a table on one question together (Holm)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from compress.stats.levels import ALPHA
from compress.stats.ratios import Ratio, minimum_effect_p

BETTER, WORSE, EQUIVALENT, NOT_SHOWN = "better", "worse", "equivalent", "not shown"
FASTER, SLOWER, INDISTINGUISHABLE = "faster", "slower", "indistinguishable"
MIXED = "mixed"


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's step-down procedure (Holm 1979), in their own order.

    The i-th smallest of m becomes the largest of (m - j + 1) · p_j over j <= i, and at most 1.
    Claiming those that are then at most 0.05 makes any false claim at all with a probability of
    at most 5 %, whatever the dependence between the comparisons. Raises ValueError for a value
    that is not a probability.
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values must lie between 0 and 1, and not all do: {list(p_values)}")
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values), 0, -1) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def difference_verdicts(values: Sequence[float], ps: Sequence[float]) -> list[str]:
    """Return better, worse or not shown, from differences and their p-values."""
    return [
        NOT_SHOWN if p > ALPHA else BETTER if value > 0 else WORSE
        for value, p in zip(values, holm(ps), strict=True)
    ]


def equivalence_verdicts(
    values: Sequence[float], ps: Sequence[float], noninferiority_ps: Sequence[float]
) -> list[str]:
    """Return better, equivalent, worse or not shown, from differences and their p-values.

    `ps` test each difference against 0, `noninferiority_ps` against -margin. These are two
    questions, so Holm's procedure runs over each by itself, and each has no false claim in any row
    with 95 %.

    The first that applies: *better*, if that is shown; *equivalent*, if a loss of the margin or
    more is ruled out; *worse*, if that is shown; else *not shown*. So a row that is surely worse,
    and surely by less than the margin, is equivalent: that is what a margin is for, and the
    interval tells how much it lost.
    """
    verdicts = zip(difference_verdicts(values, ps), holm(noninferiority_ps), strict=True)
    return [EQUIVALENT if p <= ALPHA and verdict != BETTER else verdict for verdict, p in verdicts]


def speed_verdicts(ratios: Sequence[Ratio], bar: float, trusted: bool) -> list[str]:
    """Return faster, slower or indistinguishable, from speed-ups and their control's `bar`.

    Where the control is not to be trusted, what does not exceed the bar has no verdict: ''.
    """
    neither = INDISTINGUISHABLE if trusted else ""
    adjusted = holm([minimum_effect_p(ratio, bar) for ratio in ratios])
    return [
        neither if p > ALPHA else FASTER if ratio.value > 1 else SLOWER
        for ratio, p in zip(ratios, adjusted, strict=True)
    ]


def surely_fastest(ratios: Mapping[str, Ratio], bar: float) -> str:
    """Return the fastest of those that are faster than the bar beyond doubt; '' if none is."""
    verdicts = zip(ratios, speed_verdicts(list(ratios.values()), bar, trusted=True), strict=True)
    sure = [name for name, verdict in verdicts if verdict == FASTER]
    return max(sure, key=lambda name: ratios[name].value, default="")


def common_verdict(verdicts: Iterable[str]) -> str:
    """Return what all seeds' verdicts are, `mixed` if they differ, '' if any has none."""
    different = set(verdicts)
    if not different or "" in different:
        return ""
    return different.pop() if len(different) == 1 else MIXED
